"""`Dictionary.intervene` and `fsae.steer`: the edited language model, and what steering measures of it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import fsae
from fsae.autoencoders.layout import Ends, Layout
from fsae.export.folding import fold
from fsae.export.provenance import Provenance
from fsae.language_models.sites import Site, SiteName
from fsae.latents.findings import weights_digest
from fsae.outputs.latent_store import Meta, latent_rows, write_latent_store
from fsae.surface.steering import repetition
from tests.architectures import build
from tests.processes import finished

D_SAE = 40
TEXT = "The cat sat on the mat, and the dog sat on the cat."


@pytest.fixture(scope="module")
def model() -> fsae.LanguageModel:
    return fsae.language_model("tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    words = ["debug=tiny", "arch=abs_topk", f"arch.d_sae={D_SAE}", "arch.k=4", "trainer.samples=4096", "site.layer=2"]
    words += ["source.tokens=4096", "source.shard_tokens=4096", "eval=[vectors]", "name=steered"]
    done = finished(*words, outputs=outputs)
    assert done.returncode == 0, done.stdout
    return next((outputs / "runs").glob("steered-*"))


def dictionary_at(name: SiteName, model: fsae.LanguageModel, **provenance: Any) -> fsae.Dictionary:
    site = Site(name=name, layer=1)
    autoencoder = fold(build("topk", model.sites[str(site)], D_SAE, dtype=torch.float32), 0.5)
    return fsae.Dictionary(
        autoencoder, provenance=Provenance(model_name="tiny", hook_name=site.hook_name, **provenance)
    )


NORMALISED = (SiteName.mlp_normalized, SiteName.attn_normalized)
each_edited = pytest.mark.parametrize("name", [name for name in SiteName if name not in NORMALISED])


@pytest.mark.parametrize("name", NORMALISED)
def test_vectors_of_a_norm_are_only_read(name: SiteName, model: fsae.LanguageModel):
    with (
        pytest.raises(ValueError, match=r"can be read but not replaced \(replace \w+_in.1 instead"),
        dictionary_at(name, model).intervene(fsae.Ablate(3), language_model=model),
    ):
        pass


def test_a_transcoder_is_edited_and_steers_where_it_writes(model: fsae.LanguageModel):
    read, written = (Site(name=name, layer=1) for name in (SiteName.mlp_normalized, SiteName.mlp_out))
    ends = Ends(input=Layout.of(model.sites[str(read)]), target=Layout.of(model.sites[str(written)], "written"))
    transcoder = fsae.Dictionary(
        build("topk", ends, D_SAE, dtype=torch.float32),
        provenance=Provenance(hook_name=read.hook_name, hook_name_out=written.hook_name),
    )
    plain = model.activations(TEXT, str(written)).vectors
    with transcoder.intervene(fsae.Add(3, 2.0, unit="absolute"), language_model=model) as edited:
        change = edited.activations(TEXT, str(written)).vectors - plain
    torch.testing.assert_close(change, 2 * transcoder.W_dec[3].expand_as(change), rtol=1e-3, atol=1e-4)
    assert torch.equal(model.activations(TEXT, str(written)).vectors, plain)
    steered = fsae.steer(transcoder, 3, TEXT, strengths=[4.0], tokens=4, largest={3: 2.0}, language_model=model)
    # The targets are the tokens whose logits the latent's row raises most.
    assert steered.steered[0].target_effect > 0


def test_a_crosscoder_is_not_edited(model: fsae.LanguageModel):
    both = Layout((("resid_post.0", 32), ("resid_post.1", 32)))
    hooks = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    crosscoder = fsae.Dictionary(
        build("topk", Ends(input=both, target=both), D_SAE, dtype=torch.float32),
        provenance=Provenance(hook_name=hooks[0], hook_names=hooks),
    )
    with (
        pytest.raises(ValueError, match="reads or writes several sites"),
        crosscoder.intervene(fsae.Ablate(3), language_model=model),
    ):
        pass


@each_edited
def test_the_model_is_edited_within_the_block_and_plain_after_it(name: SiteName, model: fsae.LanguageModel):
    dictionary = dictionary_at(name, model)
    plain, text = model.logits(TEXT), model.generate(TEXT, 10)
    with dictionary.intervene(fsae.Add(3, 2.0), largest={3: 4.0}, language_model=model) as edited:
        assert edited is model
        assert not torch.equal(edited.logits(TEXT), plain)
        assert edited.generate(TEXT, 10) != text
        end = edited.activations(TEXT, "resid_post.3").vectors
    assert torch.equal(model.logits(TEXT), plain)
    assert model.generate(TEXT, 10) == text
    assert not torch.equal(model.activations(TEXT, "resid_post.3").vectors, end)


@each_edited
def test_a_block_without_edits_changes_no_bit(name: SiteName, model: fsae.LanguageModel):
    plain = model.logits(TEXT)
    with dictionary_at(name, model).intervene(language_model=model):
        assert torch.equal(model.logits(TEXT), plain)


def test_the_model_is_plain_after_an_exception(model: fsae.LanguageModel):
    dictionary, plain = dictionary_at(SiteName.resid_mid, model), model.logits(TEXT)
    with pytest.raises(KeyError), dictionary.intervene(fsae.Ablate(3), language_model=model):  # noqa: PT012
        assert not torch.equal(model.logits(TEXT), plain)
        raise KeyError
    assert torch.equal(model.logits(TEXT), plain)
    # Also if the exception came from within a forward pass.
    with pytest.raises(ValueError, match="257"), dictionary.intervene(fsae.Ablate(3), language_model=model):
        model.logits_of(torch.ones(257, dtype=torch.long))
    assert torch.equal(model.logits(TEXT), plain)


def test_blocks_of_several_dictionaries_are_in_force_together(model: fsae.LanguageModel):
    early, late = (dictionary_at(name, model) for name in (SiteName.attn_z, SiteName.resid_post))
    edit = fsae.Add(3, 2.0, unit="absolute")
    with early.intervene(edit, language_model=model):
        first = model.logits(TEXT)
        with late.intervene(edit, language_model=model):
            both = model.logits(TEXT)
        assert torch.equal(model.logits(TEXT), first)
    with late.intervene(edit, language_model=model):
        second = model.logits(TEXT)
        with early.intervene(edit, language_model=model):
            assert torch.equal(model.logits(TEXT), both)
    assert not any(torch.equal(both, each) for each in (first, second))


def test_a_text_is_edited_among_others_as_alone(model: fsae.LanguageModel):
    texts = [TEXT, "abc", TEXT[:20]]
    edit = fsae.Add(3, 2.0, unit="absolute", scope="last")
    with dictionary_at(SiteName.resid_pre, model).intervene(edit, language_model=model):
        for text, logits in zip(texts, model.logits(texts), strict=True):
            assert torch.equal(logits, model.logits(text))
        assert model.generate(texts, 8, temperature=0) == [model.generate(text, 8, temperature=0) for text in texts]


def test_positions_that_training_left_out_keep_their_activations(model: fsae.LanguageModel):
    site, edit = "resid_pre.1", fsae.Add(3, 2.0, unit="absolute")
    text = "ab" + model.model.strings([model.model.separator_id])[0] + "cd"
    plain = model.activations(text, site, special_tokens=True, prepend_bos=True).vectors
    norms = plain.norm(dim=1)
    for provenance, left_out in (
        ({}, []),
        ({"exclude_special_tokens": True}, [0, 3]),
        ({"exclude_special_tokens": model.token_ids(["d"])[0].tolist()}, [5]),
        ({"seqpos_slice": [2, None]}, [0, 1]),
        ({"max_activation_norm": float(norms.sort().values[-2])}, [int(norms.argmax())]),
    ):
        with dictionary_at(SiteName.resid_pre, model, **provenance).intervene(edit, language_model=model):
            edited = model.activations(text, site, special_tokens=True, prepend_bos=True).vectors
        assert (edited == plain).all(1).nonzero()[:, 0].tolist() == left_out


def test_a_bos_shifts_no_edit(model: fsae.LanguageModel):
    """The tiny model's tokenizer puts none there; the dictionary's training left it out."""
    dictionary = dictionary_at(SiteName.resid_pre, model, exclude_special_tokens=True)
    assert model.model.bos_id is None
    plain = model.activations(TEXT, "resid_pre.1", prepend_bos=True, special_tokens=True).vectors
    for after, first in (("T", 2), ("h", 3)):
        with dictionary.intervene(fsae.Add(3, 2.0, unit="absolute", after=after), language_model=model):
            edited = model.activations(TEXT, "resid_pre.1", prepend_bos=True, special_tokens=True).vectors
        assert (edited != plain).any(1).nonzero()[0].item() == first


def test_a_run_measures_the_largest_activations_on_its_held_out_samples(run: Path):
    dictionary = fsae.load(run)
    largest = dictionary.largest_activations
    assert dictionary.density is not None
    assert torch.equal(largest != 0, dictionary.density > 1e-9)
    # Codes of abs_topk have two signs.
    latent = int(largest.argmin())
    assert largest[latent] < 0 < largest.max()
    with dictionary.intervene(fsae.Clamp(latent, 1.0)) as model:
        relative = model.logits(TEXT)
    with dictionary.intervene(fsae.Clamp(latent, float(largest[latent]), unit="absolute")) as model:
        assert torch.equal(model.logits(TEXT), relative)


@pytest.mark.parametrize(("sae", "latents"), [("sae", "latents"), ("sae/1", "latents/1")])
def test_the_latent_store_s_largest_activations_are_taken(
    model: fsae.LanguageModel, tmp_path: Path, sae: str, latents: str
):
    (tmp_path / "config.yaml").touch()
    saved = dictionary_at(SiteName.resid_pre, model)
    fsae.save(saved, tmp_path / sae)
    dictionary = fsae.load(tmp_path / sae)
    stored = [float(latent + 1) for latent in range(D_SAE)]
    meta = Meta(
        kind="samples", d_sae=D_SAE, architecture="topk", weights=weights_digest(dictionary.autoencoder), positions=1,
        excluded={}, contexts=1, context=1, window=0, top=1, per_bin=1, bin_edges=[0.0], seed=0,
    )  # fmt: skip
    table = pd.DataFrame({"latent": range(D_SAE), "max": stored})
    write_latent_store(tmp_path / latents, latent_rows(table), [pd.DataFrame({"latent": []})], meta)
    assert dictionary.largest_activations.tolist() == stored
    with dictionary.intervene(fsae.Add(7, 1.0), language_model=model):
        relative = model.logits(TEXT)
    with dictionary.intervene(fsae.Add(7, stored[7], unit="absolute"), language_model=model):
        assert torch.equal(model.logits(TEXT), relative)


def test_a_given_largest_activation_is_the_unit(model: fsae.LanguageModel):
    dictionary = dictionary_at(SiteName.resid_pre, model)
    with dictionary.intervene(fsae.Add(3, 6.0, unit="absolute"), language_model=model):
        absolute = model.logits(TEXT)
    for largest in ({3: 3.0}, torch.full((D_SAE,), 3.0)):
        with dictionary.intervene(fsae.Add(3, 2.0), largest=largest, language_model=model):
            assert torch.equal(model.logits(TEXT), absolute)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (fsae.Ablate(D_SAE), f"Ablate.latent is {D_SAE}; the dictionary has the latents 0 to {D_SAE - 1}"),
        (fsae.Add(3, 1.0), "the largest activations of its latents are unknown, because it belongs to no run"),
        (fsae.Ablate(3, after="the"), "Ablate.after is 'the', which is 3 tokens of model tiny"),
        (fsae.Ablate(3, after=5000), "Ablate.after is 5000; model tiny has the ids 0 to 256"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused(model: fsae.LanguageModel, edit: Any, message: str):
    dictionary = dictionary_at(SiteName.resid_pre, model)
    with pytest.raises(ValueError, match=message), dictionary.intervene(edit, language_model=model):
        pass
    assert model._interventions == []


def test_a_dictionary_without_a_language_model_is_refused(model: fsae.LanguageModel):
    dictionary = fsae.Dictionary(fold(build("topk", dtype=torch.float32), 0.5))
    for given, missing in ((None, "language model"), (model, "site")):
        message = f"not trained on a language model's activations \\(it has no {missing}\\)"
        with pytest.raises(ValueError, match=message), dictionary.intervene(language_model=given):
            pass


def test_a_dictionary_of_another_width_is_refused(model: fsae.LanguageModel):
    dictionary = fsae.Dictionary(
        fold(build("topk", dtype=torch.float32), 0.5), provenance=Provenance(hook_name="blocks.1.hook_resid_pre")
    )
    with (
        pytest.raises(ValueError, match=r"width 5, and resid_pre.1 of model tiny has width 32"),
        dictionary.intervene(language_model=model),
    ):
        pass


def test_steering_compares_with_the_plain_model(model: fsae.LanguageModel):
    dictionary = dictionary_at(SiteName.resid_post, model)
    prompts, latent = [TEXT, "abc"], 3
    steering = fsae.steer(
        dictionary, latent, prompts, strengths=[0, 1, 3], tokens=12, seed=4, largest={latent: 2.0}, language_model=model
    )
    assert steering.plain.texts == model.generate(prompts, 12, seed=4)
    zero, one, three = steering.steered
    # An edit of nothing changes nothing.
    assert zero.texts == steering.plain.texts
    assert (zero.target_effect, zero.kl) == (0, 0)
    assert (zero.perplexity, zero.repetition) == (steering.plain.perplexity, steering.plain.repetition)
    with dictionary.intervene(fsae.Add(latent, 3.0), largest={latent: 2.0}, language_model=model):
        assert three.texts == model.generate(prompts, 12, seed=4)
    # The targets are what the latent's decoder row raises.
    assert 0 < one.target_effect < three.target_effect
    assert 0 < one.kl < three.kl
    assert len(steering.targets) == 10


def test_steering_s_numbers_are_those_of_their_definitions(model: fsae.LanguageModel):
    dictionary = dictionary_at(SiteName.resid_mid, model)
    edit = fsae.Clamp(3, 1.0, unit="absolute", scope="generated")
    steering = fsae.steer(
        dictionary, edit, TEXT, strengths=[5], targets=["a", 7], tokens=9, ngram=1, language_model=model
    )
    assert steering.targets == ["a", *model.model.strings([7])]
    (prompt,) = (row.tolist() for row in model.token_ids([TEXT]))
    n, targets = len(prompt), [int(model.token_ids(["a"])[0]), 7]

    def of(row: list[int]) -> torch.Tensor:
        return model.logits_of(torch.tensor(row), n).double().log_softmax(1)[n - 1 :]

    from fsae.language_models.generation import Sampling

    sampling = Sampling(tokens=9)
    (plain,) = model.generated_ids([prompt], sampling)
    before = of([*prompt, *plain])
    with dictionary.intervene(fsae.Clamp(3, 5.0, unit="absolute", scope="generated"), language_model=model):
        (text,) = model.generated_ids([prompt], sampling)
        after = of([*prompt, *plain])
    (steered,) = steering.steered
    # The last token of the prompt is not edited.
    assert torch.equal(after[0], before[0])
    rise = after[:, targets].exp().sum(1).log() - before[:, targets].exp().sum(1).log()
    assert steered.target_effect == pytest.approx(rise.mean().item(), rel=1e-4)
    assert steered.kl == pytest.approx((before.exp() * (before - after)).sum(1).mean().item(), rel=1e-4)
    likely = of([*prompt, *text])
    loss = -sum(likely[place, token].item() for place, token in enumerate(text)) / len(text)
    assert steered.perplexity == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-4)
    assert steered.repetition == pytest.approx(1 - len(set(text)) / len(text))
    assert steered.texts == [model.continuation(prompt, text)]


def test_a_factor_is_a_strength_too(model: fsae.LanguageModel):
    dictionary = dictionary_at(SiteName.resid_mid, model)
    steering = fsae.steer(dictionary, fsae.Scale(3, by=1.0), TEXT, strengths=[1, 0], tokens=5, language_model=model)
    same, without = steering.steered
    assert same.kl == 0 < without.kl
    assert steering.edit == fsae.Scale(3, by=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edit": fsae.Ablate(3)}, "Ablate has no strength to vary"),
        ({"edit": fsae.Scale(3, by=1.0), "strengths": [-1]}, "Scale.by is -1; it must be at least 0"),
        ({"edit": 99}, "Add.latent is 99; the dictionary has the latents 0 to 39"),
        ({"strengths": []}, "found 1 prompts and 0 strengths"),
        ({"prompts": ""}, "prompt 0 has no token"),
        ({"prompts": "a" * 250}, "prompt 0 has 250 tokens"),
        ({"targets": ["ab"]}, "a target is 'ab', which is 2 tokens"),
        ({"ngram": 0}, "ngram is 0"),
        ({"temperature": -1.0}, "generate.temperature is -1"),
    ],
)
def test_what_cannot_be_steered_is_refused(model: fsae.LanguageModel, changes: dict[str, Any], message: str):
    wanted: dict[str, Any] = {"edit": 3, "prompts": TEXT, "largest": {3: 2.0}, **changes}
    with pytest.raises(ValueError, match=message):
        fsae.steer(dictionary_at(SiteName.resid_mid, model), language_model=model, **wanted)


def test_steering_is_printed_side_by_side_with_a_table(model: fsae.LanguageModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    steered = fsae.Steered(
        strength=2.0, target_effect=1.25, kl=0.5, perplexity=30.0, repetition=0.125, texts=["two\nthree " * 5]
    )
    plain = fsae.Steered(strength=None, target_effect=0, kl=0, perplexity=20.0, repetition=0, texts=[""])
    steering = fsae.Steering(
        edit=fsae.Add(1, 2.0, scope="prompt", after="x", decay=0.5),
        targets=[" a", "b"],
        prompts=["one"],
        plain=plain,
        steered=[steered],
    )
    assert str(steering).splitlines() == [
        "latent 1: add in units of its largest activation, scope prompt, after 'x', decay 0.5",
        "",
        "prompt: one",
        "",
        "plain                        | strength 2",
        "-----                        | ----------",
        "(the model ends the text)    | two\\nthree two\\nthree",
        "                             | two\\nthree two\\nthree",
        "                             | two\\nthree",
        "",
        "strength  target effect   KL  perplexity  repetition",
        "   plain              0    0          20           0",
        "       2           1.25  0.5          30       0.125",
        "target effect in nats, on ' a', 'b'; KL in nats per token",
    ]


def test_repetition_counts_ngrams_within_a_row():
    assert repetition([[1, 2, 1, 2, 1], [1, 2]], 2) == pytest.approx(2 / 5)
    assert repetition([[1, 2], [1, 2]], 2) == 0
    assert json.dumps(repetition([[1]], 2)) == "NaN"

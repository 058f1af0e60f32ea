"""`fsae.language_model`: a name or a path to a model, and text to activations."""

from pathlib import Path

import pytest
import torch

import fsae
from fsae.language_models.packaged import packaged_folder
from fsae.language_models.settings import DType, Package
from fsae.language_models.sites import Site, SiteName


@pytest.fixture(scope="module")
def tiny() -> fsae.LanguageModel:
    return fsae.language_model("tiny")


def test_a_choice_comes_with_its_settings(tiny: fsae.LanguageModel):
    assert tiny.name == "tiny"
    assert tiny.settings.dtype is DType.float32
    assert repr(tiny) == "LanguageModel(tiny, 4 layers, torch.float32)"


def test_a_folder_is_opened_too(tiny: fsae.LanguageModel):
    folder = packaged_folder(Package.tiny)
    by_path = fsae.language_model(str(folder))
    read = by_path.activations("abc", "resid_post.3").vectors
    torch.testing.assert_close(read.float(), tiny.activations("abc", "resid_post.3").vectors, rtol=0.1, atol=0.1)


def test_what_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"model\.path"):
        fsae.language_model(str(tmp_path / "none"))


def test_its_sites_have_the_widths_of_what_is_read_there(tiny: fsae.LanguageModel):
    assert len(tiny.sites) == 4 * len(SiteName)
    for site, width in tiny.sites.items():
        assert tiny.activations("ab", site).vectors.shape[1] == width


def test_activations_are_one_row_per_token_with_what_it_stands_for(tiny: fsae.LanguageModel):
    read = tiny.activations("Héllo you", "resid_mid.2")
    assert "".join(read.strings).isascii() is False or "\ufffd" in "".join(read.strings)
    assert len(read.strings) == len(read.tokens) == len(read.vectors) == len(read.texts)
    plain = tiny.activations("Hello you", "resid_mid.2")
    assert "".join(plain.strings) == "Hello you"
    assert plain.tokens.tolist() == tiny.model.tokenise(["Hello you"])[0]


def test_a_text_s_vectors_do_not_depend_on_the_others(tiny: fsae.LanguageModel):
    texts = ["Once upon a time", "", "there was"]
    together = tiny.activations(texts, Site(name=SiteName.mlp_out, layer=1))
    assert together.texts.unique().tolist() == [0, 2]
    for number in (0, 2):
        alone = tiny.activations(texts[number], "mlp_out.1")
        assert torch.equal(together.vectors[together.texts == number], alone.vectors)
        assert alone.texts.unique().tolist() == [0]


def test_special_tokens_are_read_by_the_model_and_left_out(tiny: fsae.LanguageModel):
    text = "ab" + tiny.model.strings([tiny.model.separator_id])[0] + "c"
    without, whole = (tiny.activations(text, "resid_post.0", special_tokens=kept) for kept in (False, True))
    assert "".join(without.strings) == "abc"
    assert "".join(whole.strings).endswith(text)
    begins = 0 if tiny.model.bos_id is None else 1
    assert torch.equal(whole.vectors[begins : begins + 2], without.vectors[:2])
    assert torch.equal(whole.vectors[-1], without.vectors[-1])
    # The model saw the separator.
    assert not torch.equal(tiny.activations("abc", "resid_post.0").vectors[-1], without.vectors[-1])


@pytest.mark.packaged
def test_strings_of_a_model_s_tokens_join_to_the_text():
    model = fsae.language_model("smollm2_135m_instruct_q4_1")
    text = "The cat sat on the mat,\n  and 2 dogs came."
    assert "".join(model.activations(text, "resid_post.0").strings) == text


def test_what_cannot_be_read_is_refused(tiny: fsae.LanguageModel):
    with pytest.raises(ValueError, match=r"text 1 has .* tokens, more than the"):
        tiny.activations(["a", "b" * (tiny.model.context_limit + 1)], "resid_mid.0")
    with pytest.raises(ValueError, match="layer"):
        tiny.activations("a", "resid_mid.4")
    with pytest.raises(ValueError, match="is no site"):
        tiny.activations("a", "residual")
    with pytest.raises(ValueError, match="1 texts without a token"):
        tiny.activations("", "resid_mid.0")


def test_logits_are_those_at_every_token_of_each_text(tiny: fsae.LanguageModel):
    texts = ["abc", "Hello you"]
    several = tiny.logits(texts)
    for text, logits in zip(texts, several, strict=True):
        assert torch.equal(logits, tiny.logits(text))
        assert torch.equal(logits, tiny.model.logits(torch.tensor(tiny.model.tokenise([text])))[0])


def test_a_bos_stands_before_a_text_if_it_is_asked_for(tiny: fsae.LanguageModel, monkeypatch: pytest.MonkeyPatch):
    (plain,), (begun,) = tiny.token_ids(["abc"]), tiny.token_ids(["abc"], prepend_bos=True)
    assert begun.tolist() == [tiny.model.bos_token_id, *plain.tolist()]
    assert torch.equal(tiny.logits("abc", prepend_bos=True), tiny.logits_of(begun))
    assert tiny.generate("", 5, prepend_bos=True) != ""
    monkeypatch.setattr(tiny.model, "bos_id", tiny.model.bos_token_id)
    assert torch.equal(tiny.token_ids(["abc"])[0], begun)
    assert torch.equal(tiny.token_ids(["abc"], prepend_bos=False)[0], plain)
    monkeypatch.setattr(tiny.model, "bos_token_id", None)
    with pytest.raises(ValueError, match="prepend_bos is True, but the tokenizer of model tiny has no BOS"):
        tiny.token_ids(["abc"], prepend_bos=True)


def test_generated_text_continues_the_prompt(tiny: fsae.LanguageModel):
    text = tiny.generate("Once", 12, temperature=0)
    (row,) = tiny.token_ids(["Once"])
    for _ in range(12):
        row = torch.cat([row, tiny.logits_of(row)[-1].argmax()[None]])
    assert tiny.model.text(row.tolist()) == "Once" + text
    assert tiny.generate(["Once", "a"], 12, temperature=0)[0] == text
    assert tiny.generate([], 12) == []


def test_a_prompt_that_ends_within_a_character_has_a_text_too(tiny: fsae.LanguageModel):
    before, after = (tiny.model.tokenise(["é"])[0][place] for place in (0, 1))
    assert tiny.continuation([before], [after, *tiny.model.tokenise(["b"])[0]]).endswith("b")


def test_a_token_is_named_by_its_text_or_its_id(tiny: fsae.LanguageModel):
    assert tiny.token_id("a") == tiny.token_id(tiny.token_id("a")) == tiny.model.tokenise(["a"])[0][0]
    for wrong, message in (("ab", r"token is 'ab', which is 2 tokens of model tiny: \['a', 'b'\]"), (257, "0 to 256")):
        with pytest.raises(ValueError, match=message):
            tiny.token_id(wrong)


def test_a_row_without_tokens_or_with_too_many_is_refused(tiny: fsae.LanguageModel):
    for length in (0, 257):
        with pytest.raises(ValueError, match=f"a row has {length} tokens; model tiny takes 1 to 256"):
            tiny.logits_of(torch.ones(length, dtype=torch.long))

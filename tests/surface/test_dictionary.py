"""`fsae.load`, `fsae.save` and the dictionary between them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fsae
from fsae.autoencoders.autoencoder import Autoencoder
from fsae.export.folding import fold
from fsae.export.provenance import Provenance
from fsae.export.saelens import save_saelens
from tests.architectures import FITTED, build, each_architecture, each_with_gradients_of_codes
from tests.processes import finished
from tests.surface.vectors import sparse_features


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A language model's run, and a population's."""
    outputs = tmp_path_factory.mktemp("outputs")
    tiny = ["debug=tiny", "arch=topk", "arch.d_sae=64", "arch.k=4", "trainer.samples=4096"]
    tiny += ["source.tokens=4096", "source.shard_tokens=4096", "eval=[vectors]"]
    several = ["source=sparse_sources", "tracking=none", "population.size=2", "arch=topk", "arch.k=3"]
    several += ["trainer.samples=4096", "suite=quick"]
    for name, words in (("tiny", tiny), ("several", several)):
        done = finished(f"name={name}", *words, outputs=outputs)
        assert done.returncode == 0, done.stdout
    return {name: next((outputs / "runs").glob(f"{name}-*")) for name in ("tiny", "several")}


def autoencoder_of(arch: str) -> Autoencoder:
    return fold(build(arch, dtype=torch.float32), 0.5)


def dictionary_of(arch: str) -> fsae.Dictionary:
    return fsae.Dictionary(autoencoder_of(arch))


def test_a_run_is_loaded_with_all_that_is_known_of_it(runs: dict[str, Path]):
    dictionary = fsae.load(runs["tiny"])
    assert (dictionary.d_in, dictionary.d_sae, dictionary.architecture) == (32, 64, "topk")
    assert dictionary.results == json.loads((runs["tiny"] / "results.json").read_text())
    settings = dictionary.settings
    assert settings is not None
    assert settings.arch.d_sae == 64
    assert settings.trainer.samples == 4096
    assert settings.dataset is not None
    assert str(dictionary.site) == "resid_mid.1" == str(settings.site)
    assert dictionary.cfg["architecture"] == "topk"
    assert dictionary.provenance.hook_name == "blocks.1.hook_resid_mid"
    assert dictionary.density is not None
    assert dictionary.density.sum().item() == pytest.approx(dictionary.results["eval/l0"], rel=1e-4)
    assert repr(dictionary) == "Dictionary(topk, d_in=32, d_sae=64, blocks.1.hook_resid_mid of tiny)"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"hook_name": "a.3", "model_name": "tiny"}, "a.3 of tiny"),
        ({"hook_name": "a.3", "hook_name_out": "b.3", "model_name": "tiny"}, "a.3 -> b.3 of tiny"),
        ({"hook_names": ["a.3", "a.6"], "model_name": "tiny"}, "a.3 + a.6 of tiny"),
        (
            {"hook_names": ["a.3", "a.6"], "hook_names_out": ["b.3", "b.6"], "model_name": "tiny"},
            "a.3 + a.6 -> b.3 + b.6 of tiny",
        ),
        (
            {"hook_names": ["a.3", "a.3"], "model_name": "base", "model_names": ["base", "chat"]},
            "a.3 of base + a.3 of chat",
        ),
    ],
)
def test_a_dictionary_names_all_of_its_sites(said: dict[str, Any], shown: str):
    dictionary = fsae.Dictionary(autoencoder_of("topk"), provenance=Provenance(**said))
    assert repr(dictionary).endswith(f", {shown})")


def test_the_run_is_known_from_its_sae_folder_too(runs: dict[str, Path]):
    assert fsae.load(runs["tiny"] / "sae").settings == fsae.load(str(runs["tiny"])).settings


def test_a_run_s_language_model_is_opened_once_and_gives_vectors_to_encode(runs: dict[str, Path]):
    dictionary = fsae.load(runs["tiny"])
    model, site = dictionary.language_model, dictionary.site
    assert model is dictionary.language_model
    assert model is not None
    assert site is not None
    vectors = model.activations("Once upon a time", site).vectors
    assert (dictionary.encode(vectors) > 0).sum(1).max() <= 4


def test_members_of_a_population_are_loaded_one_by_one(runs: dict[str, Path]):
    run = runs["several"]
    first, second = (fsae.load(run, member=number) for number in (0, 1))
    assert not torch.equal(first.W_dec, second.W_dec)
    assert torch.equal(second.W_dec, fsae.load(run / "sae" / "1").W_dec)
    assert torch.equal(second.W_dec, fsae.load(run / "sae", member=1).W_dec)
    assert first.settings == second.settings
    assert second.settings is not None
    assert second.settings.population.size == 2
    assert second.results["eval/pw_mcc"] == first.results["eval/pw_mcc"]
    with pytest.raises(ValueError, match=r"the 2 members 0 to 1 of a population, and member is None; .*member=0\)"):
        fsae.load(run)
    with pytest.raises(ValueError, match="member is 2"):
        fsae.load(run, member=2)


def test_results_that_are_cut_off_are_refused_with_the_remedy(runs: dict[str, Path], tmp_path: Path):
    run = shutil.copytree(runs["tiny"], tmp_path / "run")
    (run / "results.json").write_text('{"eval/fvu": ')
    remedy = rf"delete it, and evaluate the run again, as in python -m fsae\.evaluate {run}$"
    with pytest.raises(ValueError, match=remedy):
        fsae.load(run)


def test_a_folder_of_sae_lens_has_no_run(tmp_path: Path):
    folder = tmp_path / "released"
    save_saelens(autoencoder_of("topk"), folder, fsae.Provenance(model_name="tiny", hook_name="blocks.1.hook_mlp_out"))
    dictionary = fsae.load(folder)
    assert dictionary.settings is None
    assert dictionary.results == {}
    assert dictionary.density is None
    assert str(dictionary.site) == "mlp_out.1"
    assert dictionary.language_model is not None
    assert dictionary.language_model.name == "tiny"
    with pytest.raises(ValueError, match="member is 0, but it holds one dictionary"):
        fsae.load(folder, member=0)


def test_what_holds_no_dictionary_is_refused_with_what_it_holds(tmp_path: Path):
    with pytest.raises(ValueError, match="found no folder"):
        fsae.load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"expected a dictionary \(cfg.json here or in sae/\), found an empty folder"):
        fsae.load(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"found notes\.txt"):
        fsae.load(tmp_path)


def test_settings_of_another_version_are_refused_when_they_are_asked_for(runs: dict[str, Path]):
    run = runs["tiny"]
    text = (run / "config.yaml").read_text()
    try:
        (run / "config.yaml").write_text(text.replace("  checkpoint_seconds: ", "  checkpoint_every: "))
        dictionary = fsae.load(run)
        with pytest.raises(ValueError, match=r"config.yaml has other settings than this version .*checkpoint_every"):
            dictionary.settings  # noqa: B018
    finally:
        (run / "config.yaml").write_text(text)


@each_architecture
def test_saved_and_loaded_it_gives_the_same_codes(arch: str, tmp_path: Path):
    dictionary = dictionary_of(arch)
    dictionary.density = torch.linspace(0, 1, dictionary.d_sae)
    dictionary.provenance = fsae.Provenance(model_name="gpt2", hook_name="blocks.3.hook_resid_mid", context_size=64)
    fsae.save(dictionary, tmp_path / "sae")
    again = fsae.load(tmp_path / "sae")
    x = torch.randn(40, dictionary.d_in, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again.encode(x), dictionary.encode(x))
    torch.testing.assert_close(again(x), dictionary(x))
    assert again.provenance == dictionary.provenance
    assert again.density is not None
    torch.testing.assert_close(again.density, dictionary.density, atol=1e-6, rtol=1e-4)
    assert again.architecture == ("jumprelu" if arch == "batch_topk" else arch)


@pytest.mark.parametrize("arch", FITTED)
def test_what_is_fitted_is_saved_and_loaded_too(arch: str, tmp_path: Path):
    dictionary = fsae.train(sparse_features(), FITTED[arch], samples=6000, batch_size=200)
    fsae.save(dictionary, tmp_path / "sae")
    again = fsae.load(tmp_path / "sae")
    x = sparse_features(50, seed=1)
    torch.testing.assert_close(again(x), dictionary(x))
    assert again.architecture == {"pca": "abs_topk"}.get(arch, arch)


def test_saving_takes_another_provenance_and_a_bare_autoencoder(tmp_path: Path):
    autoencoder = autoencoder_of("gated")
    said = fsae.Provenance(model_name="gpt2")
    fsae.save(autoencoder, tmp_path / "bare")
    fsae.save(fsae.load(tmp_path / "bare"), tmp_path / "named", said)
    assert fsae.load(tmp_path / "bare").provenance == fsae.Provenance()
    assert fsae.load(tmp_path / "named").provenance == said


def test_saving_replaces_a_dictionary_and_nothing_else(tmp_path: Path):
    one, other = dictionary_of("gated"), dictionary_of("topk")
    fsae.save(one, tmp_path / "sae")
    fsae.save(other, tmp_path / "sae")
    assert fsae.load(tmp_path / "sae").architecture == "topk"
    with pytest.raises(ValueError, match="expected a new folder"):
        fsae.save(one, tmp_path)
    assert fsae.load(tmp_path / "sae").architecture == "topk"


@each_architecture
def test_codes_times_decoder_plus_bias_is_the_reconstruction(arch: str):
    dictionary = dictionary_of(arch)
    x = torch.randn(2, 5, dictionary.d_in, generator=torch.Generator().manual_seed(1))
    codes = dictionary.encode(x)
    assert codes.shape == (2, 5, dictionary.d_sae)
    torch.testing.assert_close(dictionary(x), codes @ dictionary.W_dec + dictionary.b_dec)
    torch.testing.assert_close(dictionary.decode(codes), dictionary(x))
    # One vector alone, and each row alone.
    torch.testing.assert_close(dictionary.encode(x[1, 3]), codes[1, 3])
    assert dictionary.W_enc.shape == (dictionary.d_in, dictionary.d_sae)
    assert dictionary.W_dec.shape == (dictionary.d_sae, dictionary.d_in)
    assert not codes.requires_grad


@each_with_gradients_of_codes
def test_gradients_flow_to_inputs_that_ask_for_them(arch: str):
    """Against differences of the loss along one direction, at a point where the same latents stay on."""
    dictionary = dictionary_of(arch).to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    x, direction = (torch.randn(6, dictionary.d_in, generator=generator, dtype=torch.float64) for _ in range(2))

    def loss(inputs: Tensor) -> Tensor:
        return dictionary(inputs).square().sum() + dictionary.encode(inputs).sum()

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    step = 1e-6 * direction
    assert torch.equal(dictionary.encode(x + step) != 0, dictionary.encode(x - step) != 0)
    difference = (loss(x + step) - loss(x - step)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-6)
    assert all(parameter.grad is None for parameter in dictionary.autoencoder.parameters())


def test_gradients_flow_to_codes_that_ask_for_them():
    dictionary = dictionary_of("topk")
    codes = torch.zeros(3, dictionary.d_sae, requires_grad=True)
    dictionary.decode(codes).sum().backward()
    assert codes.grad is not None
    torch.testing.assert_close(codes.grad, dictionary.W_dec.sum(1).expand(3, -1))


def test_a_reconstruction_has_its_input_s_type_and_codes_the_dictionary_s():
    dictionary = dictionary_of("topk")
    x = torch.randn(4, dictionary.d_in, dtype=torch.bfloat16)
    assert dictionary(x).dtype is torch.bfloat16
    assert dictionary.encode(x).dtype is torch.float32
    assert dictionary.to(dtype=torch.float64) is dictionary
    assert dictionary.encode(x).dtype is dictionary.dtype is torch.float64


@pytest.mark.parametrize(
    ("given", "found"),
    [(torch.zeros(3, 4), r"\(3, 4\) of float32"), (torch.tensor(1.0), r"\(\) of float32")],
)
def test_vectors_of_another_shape_are_refused(given: Any, found: str):
    dictionary = dictionary_of("topk")
    with pytest.raises(ValueError, match=rf"encode: x: expected .* \(\.\.\., d_in\) with d_in = \d+, found {found}"):
        dictionary.encode(given)
    with pytest.raises(ValueError, match=rf"decode: codes: expected .* \(\.\.\., d_sae\) .*, found {found}"):
        dictionary.decode(given)


def test_whole_numbers_are_refused():
    dictionary = dictionary_of("topk")
    with pytest.raises(ValueError, match="of int64"):
        dictionary.encode(torch.zeros(2, dictionary.d_in, dtype=torch.long))

"""A Jacobian pair from its command to its files: each autoencoder is measured and exported at its own site."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from omegaconf import OmegaConf

from fsae.configuration.accept import accept
from fsae.configuration.origin import Origin
from fsae.configuration.schema import RunSettings, Task
from fsae.export.dictionary_files import load_members, read_provenance
from fsae.runs.pack import run_experiment
from tests.composition import composed
from tests.runs.test_pack import SHORT

SMALL = (*(word for word in SHORT if not word.startswith("eval.")), "suite.tokens=128")
PAIR = ("layout=jacobian_pair", "arch.k=8", "trainer.samples=4096", "penalty=none")
MEASURED = ("eval=[vectors,splice,jacobian,latents]", "eval.latents.triggers=0", "eval.latents.control=0")


def job(outputs: Path, name: str, *overrides: str) -> tuple[RunSettings, Origin]:
    config = composed(*SMALL, *overrides)
    OmegaConf.update(config, "paths.outputs", str(outputs))
    return accept(config, outputs / name, [*SMALL, *overrides])


class Trained(NamedTuple):
    folder: Path
    results: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    settings, origin = job(tmp_path_factory.mktemp("outputs"), "pair", *PAIR, *MEASURED)
    return Trained(origin.folder, run_experiment(settings, origin))


def test_each_is_measured_at_its_own_site(trained: Trained):
    numbers = trained.results
    assert numbers["eval/fvu"] == pytest.approx((numbers["eval/0/fvu"] + numbers["eval/1/fvu"]) / 2)
    assert numbers["eval/0/fvu"] != numbers["eval/1/fvu"]
    # The mean in place of the MLP's inputs is not the mean in place of its outputs; zeros are zeros of both.
    assert numbers["eval/0/ce_mean"] != numbers["eval/1/ce_mean"]
    assert numbers["eval/0/ce_base"] == numbers["eval/1/ce_base"]
    assert "eval/mmcs" not in numbers
    assert {each.name for each in (trained.folder / "plots").iterdir()} >= {"firing.0.png", "firing.1.png"}


def test_the_jacobian_is_counted(trained: Trained):
    numbers = trained.results
    counts = [numbers[f"eval/jacobian_above_{name}"] for name in ("005", "01", "015", "02")]
    assert 64 >= counts[0] >= counts[1] >= counts[2] >= counts[3] > 0
    assert numbers["eval/jacobian_share_01"] == pytest.approx(counts[1] / 64)


def test_files_name_both_sites(trained: Trained):
    hooks = ["blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"]
    found = [read_provenance(trained.folder / "sae" / str(number)) for number in range(2)]
    assert [each.hook_name for each in found] == hooks
    assert [each.hook_name_out for each in found] == [None, None]
    assert [each.pair_hook_names for each in found] == [hooks, hooks]
    assert all(each.ends.plain for each in load_members(trained.folder / "sae"))
    pages = [(trained.folder / "latents" / str(number) / "meta.json").read_text() for number in range(2)]
    assert [json.loads(page)["site"] for page in pages] == ["mlp_in.1", "mlp_out.1"]


def test_an_evaluation_afterwards_finds_the_same(trained: Trained):
    overrides = ("eval=[vectors,jacobian]",)
    config = composed(*SMALL, *overrides)
    config.task = Task.reevaluate
    settings, origin = accept(config, trained.folder, list(overrides))
    again = run_experiment(settings, origin)
    for name in ("eval/jacobian_mean", "eval/0/fvu", "eval/1/l2_ratio"):
        assert again[name] == pytest.approx(trained.results[name], rel=1e-5)


def test_each_alone_is_an_autoencoder_of_its_site(trained: Trained):
    overrides = (f"sae.path={trained.folder / 'sae' / '1'}", "task=eval", "site=mlp_out", "eval=[vectors]")
    settings, origin = job(trained.folder.parent, "alone", *overrides)
    assert run_experiment(settings, origin)["eval/fvu"] == pytest.approx(trained.results["eval/1/fvu"], rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["arch=batch_topk"], r"arch BatchTopK has no fixed k, .* as in arch=topk"),
        (["population.size=3"], r"a pair has two members; set population\.size=2"),
        (["population.mutual.weight=1"], r"set population\.mutual\.weight=0"),
        (["site=resid_mid"], r"site is resid_mid\.1; set site=mlp_in"),
        (["layout.target=resid_post"], r"choose layout=jacobian_pair"),
        (["layout.layers=[0,1]"], r"around one MLP, .* choose layout=jacobian_pair site\.layer=5"),
        (["layout.layers=[0,1]", "layout.latents=per_layer"], r"around one MLP"),
        (["layout.exclusive=0.1"], r"without a skip path or exclusive latents"),
        (["task=eval", "sae.path=/some"], r"sae\.path=RUN/sae/0 site=mlp_in"),
        (["eval=[vectors,agreement]"], r"eval\.agreement cannot be measured"),
    ],
)
def test_settings_that_are_refused(overrides: list[str], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        job(tmp_path, "refused", "layout=jacobian_pair", *overrides)


def test_the_term_needs_a_pair(tmp_path: Path):
    with pytest.raises(ValueError, match=r"choose layout=jacobian_pair, or set"):
        job(tmp_path, "refused", "arch=topk", "population=jacobian_pair")
    with pytest.raises(ValueError, match=r"the run is no pair of autoencoders; choose layout=jacobian_pair"):
        job(tmp_path, "refused", "arch=topk", "eval=[jacobian]")

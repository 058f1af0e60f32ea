"""Dictionaries of other projects are evaluated on the tiny model like those of fsae."""

import math
from pathlib import Path

import pytest

from fsae.runs.pack import run_pack
from tests.export.releases import test_gemma_scope as gemma_scope
from tests.export.releases import test_gemma_scope_2 as gemma_scope_2
from tests.export.releases import test_openmoss as openmoss
from tests.export.releases import test_sparsify as sparsify
from tests.export.releases import test_state_dict_file as state_dict_file
from tests.runs.test_pack import job

HOOK = "blocks.1.hook_resid_post"


def written(root: Path) -> dict[str, Path]:
    """A dictionary in several layouts, all for the end of block 1: folders and files, with and without a config."""
    of_openai = state_dict_file.OPENAI | state_dict_file.TOPK
    return {
        "gemma_scope": gemma_scope.write(root / "gemma-scope-2b-pt-res", "layer_1/width_16k/average_l0_82"),
        "gemma_scope_2": gemma_scope_2.write(
            root / "gemma_scope_2", gemma_scope_2.CONFIG | {"hf_hook_point_in": "model.layers.1.output"}
        ),
        "openmoss": openmoss.openmoss(root / "openmoss", hook_point_in=HOOK, hook_point_out=HOOK),
        "sparsify": sparsify.write(root / "layers.1"),
        "openai": state_dict_file.write(root / "resid_post_mlp_v5_32k" / "1.pt", of_openai),
    }


def test_dictionaries_of_other_projects_are_evaluated_together(tmp_path: Path):
    paths = written(tmp_path / "releases")
    same = [
        "task=eval",
        "eval=[vectors,splice]",
        "site=resid_post",
        "site.layer=1",
        "dataset.context=32",
        "dataset.prepend_bos=false",
    ]
    outcomes = run_pack([job(tmp_path, name, *same, f"sae.path={path}") for name, path in paths.items()])
    found = {}
    for name, outcome in zip(paths, outcomes, strict=True):
        assert outcome.error is None, name
        assert outcome.results is not None
        found[name] = outcome.results
        assert all(math.isfinite(outcome.results[f"eval/{number}"]) for number in ("fvu", "ce_spliced"))
        assert 0 < outcome.results["eval/l0"] < 64
    # Both have the same weights and the same definition.
    assert found["gemma_scope"]["eval/fvu"] == pytest.approx(found["gemma_scope_2"]["eval/fvu"], rel=1e-6)

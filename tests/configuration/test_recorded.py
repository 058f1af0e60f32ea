"""Settings that a run wrote into its folder, read back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from fsae.configuration.origin import origin_of
from fsae.configuration.recorded import recorded_evaluations, recorded_settings, with_evaluations_of
from fsae.configuration.schema import RunSettings, settings_of
from fsae.evaluation.geometry import Geometry
from fsae.evaluation.splice import Splice
from fsae.evaluation.vectors import Vectors
from fsae.tracking.mlflow_upload import describe_run
from tests.composition import composed

RUNS = {
    "gated": ("arch=gated", "model=tiny", "dataset.prefix=Once", "eval=[vectors,geometry]"),
    "tanh": ("arch=jumprelu", "loss=jumprelu_tanh", "penalty=none", "model=tiny"),
    "fitted": ("arch=local_pca", "source=mnist"),
    "members": ("arch=topk", "source=grouped_features", "population=mfr/base", "trainer=pam"),
}
SUITE = ("suite.samples=600", "suite.batch_size=300", "suite.tokens=128")


def write(folder: Path, *overrides: str) -> DictConfig:
    """Write the settings into a folder as a run does, and return the config."""
    config = composed(*overrides)
    origin = origin_of(config, folder, overrides)
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(origin.config_yaml)
    describe_run(folder, uri="", outputs=folder, experiment="", run_name="", params=origin.flat, tags={})
    return config


@pytest.mark.parametrize("overrides", RUNS.values(), ids=RUNS)
def test_a_run_s_settings_are_read_back(overrides: tuple[str, ...], tmp_path: Path):
    config = write(tmp_path / "run", *overrides)
    assert recorded_settings(tmp_path / "run") == settings_of(config)


def evaluated(folder: Path, *given: str) -> RunSettings:
    overrides = ("task=reevaluate", *given)
    return settings_of(with_evaluations_of(composed(*overrides), folder, overrides))


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        # Without a size of the command each is the run's own.
        ((), {"vectors": Vectors(samples=700, batch_size=300), "splice": Splice(tokens=128)}),
        # A new evaluation has the run's suite.
        (("eval=[geometry]",), {"geometry": Geometry(samples=600, batch_size=300)}),
        # A size of the suite counts for all evaluations that share it, and the run's others stay.
        (("suite.samples=500",), {"vectors": Vectors(samples=500, batch_size=300), "splice": Splice(tokens=128)}),
        (("suite=quick",), {"vectors": Vectors(samples=2048, batch_size=1024), "splice": Splice(tokens=512)}),
        # An evaluation's own size comes first.
        (
            ("suite=quick", "eval.vectors.samples=4000"),
            {"vectors": Vectors(samples=4000, batch_size=1024), "splice": Splice(tokens=512)},
        ),
    ],
)  # fmt: skip
def test_the_command_s_sizes_replace_the_run_s(given: tuple[str, ...], sizes: Mapping[str, Any], tmp_path: Path):
    folder = tmp_path / "run"
    write(folder, "model=tiny", "arch=topk", "arch.k=3", *SUITE, "eval.vectors.samples=700")
    listed = () if any(each.startswith("eval=") for each in given) else ("eval=[vectors,splice]",)
    again = evaluated(folder, *listed, *given)
    assert again.eval == sizes
    own = recorded_settings(folder)
    assert (again.arch, again.source, again.model, again.paths) == (own.arch, own.source, own.model, own.paths)


def test_an_evaluation_is_listed_if_the_run_was_measured_by_it(tmp_path: Path):
    write(tmp_path / "run", "eval=[vectors,splice,geometry]")
    with pytest.raises(ValueError, match=r"does not name the run's evaluations; name them, as in eval="):
        recorded_evaluations(tmp_path / "run")
    (tmp_path / "run" / "evaluations").mkdir()
    for name in ("geometry", "vectors"):
        (tmp_path / "run" / "evaluations" / f"{name}.json").touch()
    assert recorded_evaluations(tmp_path / "run") == ["vectors", "geometry"]


def test_a_choice_that_is_not_installed_is_named(tmp_path: Path):
    write(tmp_path / "run", "arch=gated")
    config = (tmp_path / "run" / "tracking.json").read_text()
    (tmp_path / "run" / "tracking.json").write_text(config.replace('"arch": "gated"', '"arch": "woven"'))
    with pytest.raises(ValueError, match=r"other settings than this version .*\(arch is woven, and there is no such"):
        recorded_settings(tmp_path / "run")


def test_values_of_another_kind_are_refused(tmp_path: Path):
    write(tmp_path / "run", "arch=topk", "arch.k=3")
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    OmegaConf.update(config, "arch.k", "many")
    OmegaConf.save(config, tmp_path / "run" / "config.yaml")
    for read in (recorded_settings, evaluated):
        with pytest.raises(ValueError, match=r"config\.yaml has other settings than this version .*many"):
            read(tmp_path / "run")

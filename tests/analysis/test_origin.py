from collections.abc import Mapping
from pathlib import Path

import pytest

from fsae.analysis.origin import Origin
from fsae.analysis.runs import COMMIT_TAG
from fsae.tracking.mlflow_upload import describe_run
from fsae.tracking.tags import DIRTY_TAG

TRAINED = {"task": "train", "seed": 3, "trainer.samples": 4096, "dataset.name": "texts", "source": "activations"}


def described(run: Path, outputs: Path, params: Mapping[str, object], **tags: str) -> Path:
    run.mkdir(parents=True)
    shared = {"uri": "null", "outputs": outputs, "experiment": "fsae", "run_name": run.name}
    describe_run(run, **shared, params=params, tags=tags)  # type: ignore[arg-type]
    return run


def test_a_run_is_named_from_the_folder_above_the_outputs(tmp_path: Path):
    outputs = tmp_path / "home" / "outputs"
    run = described(outputs / "sweeps" / "day" / "0", outputs, TRAINED, **{COMMIT_TAG: "abc", DIRTY_TAG: "false"})
    origin = Origin.of(run)
    assert (origin.title, origin.path) == ("0", "outputs/sweeps/day/0")
    assert origin.facts == {"run": "0", "trained on": "4096 samples of texts, with seed 3", "code": "commit abc"}


def test_a_member_has_its_own_path(tmp_path: Path):
    run = described(tmp_path / "runs" / "a", tmp_path, TRAINED)
    origin = Origin.of(run, 2)
    assert (origin.title, origin.path) == ("a, member 2", f"{tmp_path.name}/runs/a/sae/2")


def test_changed_code_is_named(tmp_path: Path):
    run = described(tmp_path / "a", tmp_path, TRAINED, **{COMMIT_TAG: "abc", DIRTY_TAG: "true"})
    assert Origin.of(run).facts["code"] == "commit abc, with changes"


def test_samples_without_text_are_named_by_their_source(tmp_path: Path):
    params = {name: value for name, value in TRAINED.items() if name != "dataset.name"} | {"source": "mnist"}
    assert (
        Origin.of(described(tmp_path / "a", tmp_path, params)).facts["trained on"].startswith("4096 samples of mnist")
    )


@pytest.mark.parametrize("within", [True, False])
def test_an_evaluated_dictionary_is_opened_where_it_lies(within: bool, tmp_path: Path):
    outputs = tmp_path / "outputs"
    place = (outputs / "runs" if within else tmp_path / "secret") / "mine"
    origin = Origin.of(described(outputs / "runs" / "eval", outputs, {"task": "eval", "sae.path": str(place)}))
    assert origin.path == ("outputs/runs/mine" if within else "mine")
    assert "trained on" not in origin.facts


def test_a_folder_that_nothing_describes_has_its_name(tmp_path: Path):
    assert Origin.of(tmp_path / "moved") == Origin("moved", {"run": "moved"}, "moved")


def test_a_damaged_description_is_refused(tmp_path: Path):
    (tmp_path / "tracking.json").write_text("{")
    with pytest.raises(ValueError, match="does not describe a run"):
        Origin.of(tmp_path)

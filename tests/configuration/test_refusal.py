import re
from pathlib import Path

import pytest
from omegaconf.errors import OmegaConfBaseException

from fsae.configuration.conf_folder import choices_of
from fsae.configuration.refusal import explain, included_itself, record_refusal
from fsae.configuration.schema import settings_of
from fsae.outputs.status import Failure, RunState, mark, read_status
from tests.composition import composed


def refusal(*overrides: str, own: Path | None = None) -> str:
    with pytest.raises(Exception) as caught:
        composed(*overrides, own=own)
    return explain(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # Choices: the error lists them, and the nearest.
        (
            "arch=topj",
            "arch=topj: there is no such choice; did you mean topk?\narch has: abs_topk, batch_topk, gated, ",
        ),
        ("model=gpt5", "model=gpt5: there is no such choice; did you mean gpt2?\nmodel has: custom, gemma2_2b, "),
        (
            "arch=released/gatd",
            "arch=released/gatd: there is no such choice; did you mean released/gated?\narch has: abs_topk, batch",
        ),
        (
            "experiment=mine",
            "experiment=mine: there is no such choice\nexperiment has: controls/dictionaries, ",
        ),
        ("hydra/launcher=mine", "hydra/launcher=mine: there is no such choice\nhydra/launcher has: basic"),
        # Keys.
        (
            "site.layr=1",
            "site.layr: there is no such setting; did you mean site.layer?\nsite (Site) has: head, layer, name",
        ),
        (
            "trainer.learning_rate=1",
            "trainer.learning_rate: there is no such setting\ntrainer (AdamSettings) has: acti",
        ),
        (
            "loss.sparsty.weight=1",
            "loss.sparsty: there is no such setting; did you mean loss.sparsity?\nloss has: auxi",
        ),
        ("loss.penalty.wieght=1", "loss.penalty.wieght: there is no such setting; did you mean loss.penalty.weight?\n"),
        ("arch.k=3", "arch.k: there is no such setting\narch (GatedSettings) has: "),
        ("modle=tiny", "modle: there is no such setting; did you mean model?\nthe root has: arch, dataset, "),
        ("model.name=gpt2", "model.name: there is no such setting; a model's name follows from what it is: choose "),
        ("dataset.name=c4", "dataset.name: there is no such setting; a data set's name follows from what it is: "),
        # Values.
        ("seed=abc", "seed: 'abc' is not a whole number; write digits, as in 250_000 or 1e6"),
        ("seed=null", "seed: it must not be null"),
        ("trainer.lr=fast", "trainer.lr: Value 'fast' of type 'str' could not be converted to Float"),
        ("trainer.samples=1M", "trainer.samples: '1M' is not a whole number; write 1e6"),
        ("trainer.samples=2.5k", "trainer.samples: '2.5k' is not a whole number; write 2.5e3"),
        ("trainer.samples=2.5", "trainer.samples: 2.5 is not a whole number; write digits"),
        ("trainer.samples=inf", "trainer.samples: inf is not a whole number"),
        ("trainer.samples=true", "trainer.samples: True is not a whole number"),
        (f"trainer.lr={10**400}", "trainer.lr: 1e400 is too large for a number"),
        (f"trainer.lr=-{'7' * 400}", "trainer.lr: -77... (401 digits) is too large for a number"),
        (f"loss.penalty.weight={10**400}", "loss.penalty.weight: 1e400 is too large for a number"),
        ("trainer.lr=true", "trainer.lr: Value 'True' of type 'bool' could not be converted to Float"),
        ("trainer.compile=1", "trainer.compile: 1 is neither true nor false"),
        ("arch.tied=true", "arch.tied: there is no such setting; a tied encoder is a choice of arch.encoder_init: "),
        ("tracking.mlflow=0.0", "tracking.mlflow: 0.0 is neither true nor false"),
        ("tracking.mlflow='2'", "tracking.mlflow: '2' is neither true nor false"),
        ("site.name=resid", "site.name: Invalid value 'resid', expected one of [resid_pre, resid_mid, "),
        ("tracking.mlflow=maybe", "tracking.mlflow: Value 'maybe' is not a valid bool"),
        ("source.also=5", "source.also: it must be a list, as in source.also=[...]"),
        # Deletions.
        # Sweeps without -m.
        ("seed=0,1", "seed=0,1: several values are a sweep; add -m"),
        ("arch=gated,topk", "arch=gated,topk: several values are a sweep; add -m"),
        ("seed=range(3)", "seed=range(3): several values are a sweep; add -m"),
        ("eval=vectors,splice", "eval=vectors,splice: several evaluations are a list, as in eval=[vectors,splice]"),
        ("+trainer.lr=3", "+trainer.lr: this setting exists already; leave out the +"),
        ("~trainer.lr", "trainer.lr: a setting cannot be deleted; give it a value"),
        # Not an override.
        (
            "trainer.lr=[1",
            "trainer.lr=[1: not an override Hydra can read (no viable alternative at input '[1'); as in ",
        ),
    ],
)
def test_explain_names_the_mistake_its_place_and_a_remedy(override: str, message: str):
    found = refusal(override)
    assert found.startswith(message)
    assert "Traceback" not in found
    assert found.count("\n") <= 1


@pytest.mark.parametrize(
    ("old", "instead"),
    [
        ("trainer.tokens=1", "it is trainer.samples"),
        ("trainer.centres=0.1", "it is trainer.centre_fraction"),
        ("objective.metric=eval/fvu", "it is search, as in search.metric=eval/fvu"),
        ("loss.fisher.weight=1", "the Fisher penalty is loss.penalty, and theta is loss.penalty.weight"),
        ("eval=default", "the default is what runs without any eval=...; suite=default has its sizes"),
        ("eval=quick", "how much is evaluated is suite=quick now"),
        ("eval.tokens=1", "each evaluation has its own size, as in eval.vectors.samples=32768"),
        ("eval.batch_size=1", "it is eval.vectors.batch_size now"),
        ("eval.splice_tokens=1", "it is eval.splice.tokens now"),
        ("eval.geometry=true", "geometry is an evaluation to choose"),
        ("source.worker=1", "jobs that harvest together differ by their names, as in name=harvest-1,harvest-2"),
        ("arch.tied=true", "a tied encoder is a choice of arch.encoder_init: set arch.encoder_init=tied"),
        ("model=smollm2_135m", "it is model=smollm2_135m_instruct_q4_1"),
        ("model=gemma3_270m", "it is model=gemma3_270m_q4_k_m"),
        ("loss=base", "it is loss=squared_error, and the penalty is a group of its own, as in penalty=fisher"),
        ("loss=abs_topk", "it is loss=topk, which arch=abs_topk brings"),
        ("loss=batch_topk", "it is loss=topk, which arch=batch_topk brings"),
        ("loss=splines_topk", "it is loss=topk, which arch=splines/topk brings"),
        ("experiment=fisher_grid", "it is experiment=fisher/grid_as_released"),
        ("population=mfr", "it is population=mfr/base"),
    ],
)
def test_the_error_names_what_took_the_place_of_an_old_name(old: str, instead: str):
    assert f": there is no such {'choice' if '.' not in old else 'setting'}; {instead}" in refusal(old)


MOVED = [
    f"{group}={folder}/{name}"
    for group, moved in {
        "arch": {
            "released": ["gated", "jumprelu", "standard", "topk"],
            "splines": ["llm", "llm_small", "local_pca", "mnist", "relu", "topk", "topk_3"],
        },
        "loss": {"released": ["gated", "jumprelu", "standard", "topk"], "splines": ["relu"]},
        "population": {"mfr": ["eeg", "gpt2", "synthetic"]},
        "experiment": {
            "fisher": [
                "as_released", "repaired", "grid_as_released", "grid_as_released_small", "grid_repaired",
                "grid_repaired_small", "grid_repaired_topk",
            ],
            "mfr": ["eeg", "eeg_small", "gpt2", "smollm2", "smollm2_small", "synthetic", "synthetic_small"],
            "search": ["sparsity"],
            "splines": ["toy"],
        },
    }.items()
    for folder, names in moved.items()
    for name in names
]  # fmt: skip
# These did not have their new folder's name before.
UNPREFIXED = [
    f"experiment=splines/{way}_{where}"
    for way in ("pam", "sgd")
    for where in ("mnist", "mnist_small", "smollm2", "smollm2_small", "gemma2_2b")
]


@pytest.mark.parametrize(
    ("old", "new"),
    [(new.replace("/", "_"), new) for new in MOVED] + [(new.replace("splines/", ""), new) for new in UNPREFIXED],
)
def test_the_error_names_the_folder_into_which_a_choice_has_moved(old: str, new: str):
    assert refusal(old) == f"{old}: there is no such choice; it is {new}"


def test_the_error_lists_choices_of_a_users_own_folder(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").touch()
    assert "; did you mean mine?\n" in refusal("experiment=mina", own=tmp_path)
    assert ", mine, " in refusal("experiment=mfr/other", own=tmp_path)


@pytest.mark.parametrize("override", ["arch=released/nonsense", "loss=splines/nonsense", "arch=nonsense"])
def test_the_error_lists_choices_that_exist_alone(override: str):
    (listed,) = re.findall(r" has: (.*); --config-dir", refusal(override))
    assert listed.split(", ") == choices_of(override.partition("=")[0])


def test_deleting_a_setting_that_others_refer_to_is_refused():
    with pytest.raises(OmegaConfBaseException) as caught:
        settings_of(composed("~seed"))
    assert explain(caught.value) == "seed is not set, and a run needs it; add seed=..., or leave out ~seed"


def test_the_error_names_an_experiment_that_includes_itself(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("defaults: [/experiment: mine, _self_]\n")
    with pytest.raises(RecursionError):
        composed("experiment=mine", own=tmp_path)
    message = str(included_itself(["seed=1", "experiment=mine"]))
    assert message.startswith("experiment=mine: the defaults list of mine.yaml includes itself")


def test_explain_does_not_list_class_variables_as_settings():
    assert "needs" not in refusal("loss.penalty.foo=1").splitlines()[1]
    assert "provides" not in refusal("arch.foo=1").splitlines()[1]


def test_the_error_names_a_users_own_file(tmp_path: Path):
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch" / "typo.yaml").write_text("defaults: [/schema/arch@_here_: topk, _self_]\nkay: 3\n")
    found = refusal("arch=typo", "loss=topk", own=tmp_path)
    assert "arch/typo" in found
    assert "arch.kay" in found
    (tmp_path / "arch" / "broken.yaml").write_text("k: [\n")
    assert str(tmp_path / "arch" / "broken.yaml") in refusal("arch=broken", "loss=topk", own=tmp_path)


def test_the_error_names_the_file_and_the_key_that_another_choice_lacks(tmp_path: Path):
    assert refusal("debug=tiny", "source=eeg") == (
        "debug/tiny.yaml sets source.tokens, and EEGSettings has no such setting; leave out debug=tiny, or choose "
        "another source"
    )
    assert refusal("experiment=fisher/repaired", "source=mnist") == (
        "experiment/fisher/repaired.yaml sets source.tokens, and MNISTSettings has no such setting; leave out "
        "experiment=fisher/repaired, or choose another source"
    )
    (tmp_path / "experiment").mkdir()
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\ntrianer:\n  lr: 1e-3\n")
    assert refusal("experiment=mine", own=tmp_path) == (
        "experiment/mine.yaml sets trianer, and RunSettings has no such setting; leave out that line"
    )
    mine.write_text("# @package _global_\nseed: many\n")
    assert refusal("experiment=mine", own=tmp_path).startswith("experiment/mine.yaml: seed: 'many' is not a whole num")


def test_explain_does_not_change_our_own_errors():
    assert explain(ValueError("site.layer is 4, but model tiny has 4 layers")) == (
        "site.layer is 4, but model tiny has 4 layers"
    )


def failure_in(folder: Path) -> Failure | None:
    status = read_status(folder)
    assert status is not None
    assert status.state is RunState.refused
    assert status.ended is not None
    return status.failure


def test_a_refusal_without_a_run_folder_is_recorded_in_the_outputs_folder(tmp_path: Path):
    for folder in (None, tmp_path / "outputs" / "runs" / "one"):
        record_refusal(ValueError("no such thing"), tmp_path / "outputs", folder)
        assert failure_in(tmp_path / "outputs") == Failure(kind="ValueError", message="no such thing")
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["status.json"]


def test_a_refusal_is_recorded_in_an_existing_run_folder(tmp_path: Path):
    run, outputs = tmp_path / "outputs" / "runs" / "one", tmp_path / "outputs"
    run.mkdir(parents=True)
    for message in ("wrong", "still wrong"):
        record_refusal(ValueError(message), outputs, run)
        assert failure_in(run) == Failure(kind="ValueError", message=message)
    assert not (outputs / "status.json").exists()


@pytest.mark.parametrize("state", [state for state in RunState if state is not RunState.refused])
def test_a_refusal_does_not_replace_a_runs_status(state: RunState, tmp_path: Path):
    run, outputs = tmp_path / "outputs" / "runs" / "one", tmp_path / "outputs"
    run.mkdir(parents=True)
    before = mark(run, state)
    record_refusal(ValueError("wrong"), outputs, run)
    assert read_status(run) == before
    assert failure_in(outputs) == Failure(kind="ValueError", message="wrong")


def test_a_refusal_does_not_replace_a_damaged_status(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text("half of")
    record_refusal(ValueError("wrong"), tmp_path, tmp_path / "run")
    assert (tmp_path / "run" / "status.json").read_text() == "half of"
    assert failure_in(tmp_path) == Failure(kind="ValueError", message="wrong")

import pandas as pd
import pytest

from fsae.analysis.design import comparable, design_of
from tests.analysis.run_folders import settings_of


def table(*rows: dict) -> pd.DataFrame:
    finished = {"state": "finished", "commit": None, "eval/l0": 8.0, "eval/fvu": 0.3}
    return pd.DataFrame([finished | row for row in rows])


def test_design_of_assigns_a_role_to_each_setting():
    design = design_of(
        table(
            *(
                settings_of(arch, theta, weight, seed, **{"site.layer": layer, "site.name": "mlp_out"})
                for arch in ("gated", "jumprelu")
                for theta in (0.0, 0.01)
                for weight in (1.0, 2.0)
                for seed in (0, 1)
                for layer in (5, 10)
            )
        )
    )
    assert design.varied == [
        "arch", "site.layer", "loss.penalty.weight", "loss.sparsity.weight", "seed", "source.seed",
    ]  # fmt: skip
    assert design.conditions == ["site.layer"]
    # Only jumprelu has this setting.
    assert design.follows == ["arch.bandwidth"]
    assert design.constant["site.name"] == "mlp_out"
    assert design.constant["trainer.samples"] == "500000"
    assert not any(name.startswith("paths.") for name in design.constant)
    assert len(design.cells) == 32
    first = design.cells.iloc[0]
    assert (first["arch"], first["condition"], first["treatment"]) == ("gated", "layer=5", "θ = 0")
    assert (first["sparsity"], first["replicate"]) == ("loss.sparsity.weight=1", "seed=0, source.seed=0")


def test_a_setting_that_follows_from_another_is_no_condition():
    rows = [
        settings_of("gated", 0, 1, seed, **{"dataset.name": name, "dataset.path": f"hub/{name}"})
        for seed in (0, 1)
        for name in ("devign", "tinystories")
    ]
    design = design_of(table(*rows))
    assert (design.conditions, design.follows) == (["dataset.name"], ["dataset.path"])
    assert set(design.cells["condition"]) == {"dataset=devign", "dataset=tinystories"}


def test_names_that_follow_from_paths_are_no_condition():
    """A data set's name comes from its path, so two paths may have one name."""
    rows = [
        settings_of("gated", 0, 1, 0) | {"dataset.name": name, "dataset.path": path}
        for name, path in (("a", "hub/a"), ("b", "hub/b"), ("a", "other/a"))
    ]
    design = design_of(table(*rows[:2]))
    assert (design.conditions, design.follows) == (["dataset.name"], ["dataset.path"])
    assert design_of(table(*rows[::2])).conditions == ["dataset.path"]
    both = design_of(table(*rows))
    assert both.conditions == ["dataset.name", "dataset.path"]
    assert len(both.cells) == 3


def test_a_penalty_without_weight_has_one_name():
    rows = [
        settings_of("gated", theta, 1, 0) | {"loss.penalty.form": form}
        for theta in (0.0, 0.1)
        for form in ("pre", "codes")
    ]
    design = design_of(table(*rows))
    assert list(design.cells["treatment"]) == ["θ = 0", "θ = 0.1, form=pre", "θ = 0.1, form=codes"]
    # The two runs without the penalty are one cell.
    assert design.repeats == 1


def test_a_loss_without_the_term_is_a_baseline():
    without = settings_of("gated", 0, 1, 0)
    del without["loss.penalty.weight"], without["loss.penalty.form"]
    design = design_of(table(without, settings_of("gated", 0.5, 1, 0)))
    assert list(design.cells["treatment"]) == ["θ = 0", "θ = 0.5"]


def test_each_architecture_has_its_own_sparsity_setting():
    topk = settings_of("topk", 0, 1, 0) | {"loss.sparsity.weight": None, "arch.k": 32.0}
    design = design_of(
        table(topk, topk | {"arch.k": 64.0}, settings_of("gated", 0, 1, 0), settings_of("gated", 0, 2, 0))
    )
    assert list(design.cells["sparsity"]) == [
        "arch.k=32", "arch.k=64", "loss.sparsity.weight=1", "loss.sparsity.weight=2",
    ]  # fmt: skip
    assert design.conditions == []


def test_runs_that_repeat_another_are_averaged():
    row = settings_of("gated", 0, 1, 0)
    design = design_of(table(row | {"eval/fvu": 0.2}, row | {"eval/fvu": 0.4, "name": "again"}))
    assert list(design.cells["eval/fvu"]) == pytest.approx([0.3])
    assert design.repeats == 1


@pytest.mark.parametrize(
    "change",
    [{"state": "failed"}, {"task": "eval"}, {"task": "harvest"}, {"eval/l0": float("nan")}, {"eval/fvu": None}],
)
def test_only_evaluated_training_runs_are_compared(change: dict):
    runs = table(settings_of("gated", 0, 1, 0), settings_of("gated", 0, 1, 1) | change)
    assert comparable(runs).index.tolist() == [0]
    assert len(design_of(runs).cells) == 1


def test_design_of_accepts_an_empty_table():
    design = design_of(table({"state": "failed"}))
    assert (design.varied, design.constant, len(design.cells)) == ([], {}, 0)


def test_a_negative_zero_is_the_baseline():
    design = design_of(table(settings_of("gated", -0.0, 1, 0), settings_of("gated", 0.5, 1, 0)))
    assert list(design.cells["treatment"]) == [design.baseline, "θ = 0.5"]


def test_weights_that_differ_in_late_digits_are_different_treatments():
    design = design_of(table(*(settings_of("gated", theta, 1, 0) for theta in (0.01234567, 0.01234568))))
    assert list(design.cells["treatment"]) == ["θ = 0.01234567", "θ = 0.01234568"]
    assert design.repeats == 0


def test_long_seeds_in_a_column_with_gaps_stay_different():
    rows = [settings_of("gated", 0, 1, 0) | {"source.seed": seed} for seed in (12345678901.0, 12345678902.0, None)]
    assert design_of(table(*rows)).repeats == 0


def test_two_penalties_of_one_weight_are_two_treatments():
    rows = [
        settings_of("gated", theta, 1, 0) | {"loss.penalty": penalty, "eval/fvu": fvu}
        for theta, penalty, fvu in ((0.0, "none", 0.5), (1.0, "fisher", 0.1), (1.0, "orthogonal", 0.3))
    ]
    cells = design_of(table(*rows)).cells
    assert dict(zip(cells["treatment"], cells["eval/fvu"], strict=True)) == {
        "θ = 0": 0.5,
        "θ = 1, penalty=fisher": 0.1,
        "θ = 1, penalty=orthogonal": 0.3,
    }

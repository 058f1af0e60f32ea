import math

import pytest

from fsae.evaluation.search_objective import SearchObjective

RESULTS = {"eval/fvu": 0.25, "eval/l0": 32.0, "density_histogram": [1, 2]}


def test_it_is_the_metric():
    assert SearchObjective().value(RESULTS) == 0.25


@pytest.mark.parametrize(("target", "penalty"), [(32, 0.0), (64, math.log(2)), (16, math.log(2)), (320, math.log(10))])
def test_another_sparsity_than_the_wanted_costs_its_log_ratio_either_way(target: float, penalty: float):
    assert SearchObjective(target_l0=target).value(RESULTS) == pytest.approx(0.25 + penalty)


def test_nothing_firing_is_as_bad_as_can_be():
    assert SearchObjective(target_l0=64).value(RESULTS | {"eval/l0": 0.0}) == math.inf


def test_an_unmeasured_metric_is_refused_with_the_names_of_measured_ones():
    with pytest.raises(ValueError, match=r"search\.metric is eval/kl, but the results are eval/fvu, eval/l0$"):
        SearchObjective(metric="eval/kl").value(RESULTS)
    # Not finite: null in the results.
    with pytest.raises(ValueError, match=r"search\.metric is eval/fvu"):
        SearchObjective().value(RESULTS | {"eval/fvu": None})


@pytest.mark.parametrize("wrong", [{"metric": "train/loss"}, {"target_l0": 0.0}])
def test_wrong_settings_are_refused(wrong: dict):
    with pytest.raises(ValueError, match="search"):
        SearchObjective(**wrong)

import pytest

from fsae.configuration.overrides import check_choices, check_jobs, options_first
from tests.composition import composed_with_hydra


@pytest.mark.parametrize(
    ("arguments", "ordered"),
    [
        ("debug=tiny -m seed=1,2", "-m debug=tiny seed=1,2"),
        ("-m debug=tiny", "-m debug=tiny"),
        ("debug=tiny --multirun ~dataset +a=1", "--multirun debug=tiny ~dataset +a=1"),
        # An option's value is no override, whatever it looks like.
        ("seed=1 --config-dir /a=b seed=2", "--config-dir /a=b seed=1 seed=2"),
        ("seed=1 --config-dir=/a --cfg job seed=2", "--config-dir=/a --cfg job seed=1 seed=2"),
    ],
)
def test_overrides_stand_behind_options(arguments: str, ordered: str):
    assert options_first(arguments.split()) == ordered.split()


@pytest.mark.parametrize(
    "argument", ["arch=null", "loss=5", "trainer=[1]", "model=1.5", "debug=true", "experiment=null"]
)
def test_what_is_no_choice_of_a_group_is_told_with_those_that_are(argument: str):
    group, _, value = argument.partition("=")
    with pytest.raises(ValueError, match="is no choice of") as caught:
        check_choices(["seed=1", argument])
    assert str(caught.value).startswith(f"{argument}: {value} is no choice of {group}; it has: ")


@pytest.mark.parametrize(
    "argument",
    ["arch=topk", "arch=topk,gated", "experiment=2024_mine", "model='tiny'", "~dataset", "seed=null", "arch=[1"],
)
def test_choices_and_what_hydra_tells_itself_are_let_through(argument: str):
    check_choices([argument])


@pytest.mark.parametrize(
    "key", ["loss", "arch", "trainer", "source", "paths", "population", "eval", "tracking", "sae", "search", "seed"]
)
def test_what_a_run_needs_is_not_taken_away(key: str):
    with pytest.raises(ValueError, match=f"^~{key}: a run needs {key}; leave out ~{key}, or give it another value by"):
        check_choices(["seed=1", f"~{key}"])


@pytest.mark.parametrize(
    ("overrides", "jobs"),
    [
        (["seed=range(1000000)"], "1,000,000"),
        (["seed=range(200)", "trainer.lr=1e-3,1e-4", "arch.expansion=range(1,101)"], "40,000"),
    ],
)
def test_more_jobs_than_anybody_means_are_refused_before_they_are_made(overrides: list[str], jobs: str):
    config = composed_with_hydra("hydra.mode=MULTIRUN")
    config.hydra.overrides.task = overrides
    with pytest.raises(
        ValueError, match=f"^seed=range.*: this sweep has {jobs} jobs, .*hydra.callbacks.sweep.max_jobs="
    ):
        check_jobs(config, 10_000)
    check_jobs(config, 1_000_000)


def test_a_limit_for_sweeps_is_among_the_settings():
    assert composed_with_hydra().hydra.callbacks.sweep.max_jobs == 10_000

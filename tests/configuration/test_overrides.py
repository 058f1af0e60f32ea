import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fsae.configuration.overrides import check_choices, check_jobs, options_first, with_lists, with_one_config_dir
from tests.composition import composed_with_hydra


@pytest.mark.parametrize(
    ("arguments", "ordered"),
    [
        ("debug=tiny -m seed=1,2", "-m debug=tiny seed=1,2"),
        ("-m debug=tiny", "-m debug=tiny"),
        ("debug=tiny --multirun ~dataset +a=1", "--multirun debug=tiny ~dataset +a=1"),
        # An option's value is no override, even if it looks like one.
        ("seed=1 --config-dir /a=b seed=2", "--config-dir /a=b seed=1 seed=2"),
        ("seed=1 --config-dir=/a --cfg job seed=2", "--config-dir=/a --cfg job seed=1 seed=2"),
    ],
)
def test_options_first_moves_overrides_behind_options(arguments: str, ordered: str):
    assert options_first(arguments.split()) == ordered.split()


def test_further_config_dirs_join_hydras_search_path(tmp_path: Path):
    for name in ("one", "t,w o", "three"):
        (tmp_path / name).mkdir()
    words = ["-m", "--config-dir", f"{tmp_path}/one", f"--config-dir={tmp_path}/t,w o", "-cd", f"{tmp_path}/three"]
    searched = f"hydra.searchpath=[pkg://own,'file://{tmp_path}/three']"
    first, *rest, override = with_one_config_dir([*words, "seed=1", searched])
    assert (first, rest) == (f"--config-dir={tmp_path / 'one'}", ["-m", "seed=1"])
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert parsed.key_or_group == "hydra.searchpath"
    further = [f"file://{tmp_path / name}" for name in ("t,w o", "three")]
    assert parsed.value() == [*further, "pkg://own"]


@pytest.mark.parametrize("arguments", ["--config-dir=/a seed=1", "-cd /a", "seed=1", "--config-dir=/a --config-dir"])
def test_hydra_reads_one_config_dir_itself(arguments: str):
    assert with_one_config_dir(arguments.split()) == arguments.split()


def test_one_of_several_config_dirs_that_does_not_exist_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^--config-dir=/no/such: there is no such folder$"):
        with_one_config_dir([f"--config-dir={tmp_path}", "--config-dir=/no/such"])
    with pytest.raises(ValueError, match=r"^hydra.searchpath=/a: it must be a list, as in hydra.searchpath=\["):
        with_one_config_dir([f"--config-dir={tmp_path}", f"--config-dir={tmp_path}", "hydra.searchpath=/a"])


@pytest.mark.parametrize(
    "argument", ["arch=null", "loss=5", "trainer=[1]", "model=1.5", "debug=true", "experiment=null"]
)
def test_the_error_for_an_invalid_choice_lists_the_choices(argument: str):
    group, _, value = argument.partition("=")
    with pytest.raises(ValueError, match="is no choice of") as caught:
        check_choices(["seed=1", argument])
    assert str(caught.value).startswith(f"{argument}: {value} is no choice of {group}; it has: ")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("eval=[]", "eval names no evaluation; list one or more, as in eval=[vectors,splice]"),
        ("eval=[vectors,splice,vectors]", "eval=[vectors,splice,vectors]: vectors is listed twice; leave one out"),
        ("+eval=[vectors]", "+eval=[vectors]: a choice of eval has no +; leave it out"),
        ("+experiment=fisher/repaired", "+experiment=fisher/repaired: a choice of experiment has no +; leave it out"),
        ("arch=[]", "arch=[]: [] is no choice of arch; it has: "),
    ],
)
def test_check_choices_names_what_is_wrong_with_a_list_or_a_plus(argument: str, message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check_choices([argument])


@pytest.mark.parametrize(
    "argument",
    ["arch=topk", "arch=topk,gated", "experiment=2024_mine", "model='tiny'", "~dataset", "seed=null", "arch=[1"],
)
def test_check_choices_accepts_choices_and_what_hydra_reports_itself(argument: str):
    check_choices([argument])


@pytest.mark.parametrize(
    "key", ["loss", "arch", "trainer", "source", "paths", "population", "eval", "tracking", "sae", "search", "seed"]
)
def test_check_choices_refuses_to_remove_a_needed_group(key: str):
    with pytest.raises(ValueError, match=f"^~{key}: a run needs {key}; leave out ~{key}, or give it another value by"):
        check_choices(["seed=1", f"~{key}"])


@pytest.mark.parametrize(
    ("overrides", "jobs"),
    [
        (["seed=range(1000000)"], "1,000,000"),
        (["seed=range(200)", "trainer.lr=1e-3,1e-4", "arch.expansion=range(1,101)"], "40,000"),
    ],
)
def test_check_jobs_refuses_too_many_jobs_before_creating_them(overrides: list[str], jobs: str):
    config = composed_with_hydra("hydra.mode=MULTIRUN")
    config.hydra.overrides.task = overrides
    with pytest.raises(
        ValueError, match=f"^seed=range.*: this sweep has {jobs} jobs, .*hydra.callbacks.sweep.max_jobs="
    ):
        check_jobs(config, 10_000)
    check_jobs(config, 1_000_000)


def test_the_limit_of_jobs_is_a_setting():
    assert composed_with_hydra().hydra.callbacks.sweep.max_jobs == 10_000


def test_a_list_of_layers_is_of_the_layout():
    words = ["layout=crosscoder", "site.layer=[3,6,9]", "site.layer=3", "-m"]
    assert with_lists(words) == ["layout=crosscoder", "layout.layers=[3,6,9]", "site.layer=3", "-m"]


def test_a_list_of_two_models_is_of_the_layout():
    pair = ["model=gpt2", "+model@layout.model=custom"]
    assert with_lists(["model=[gpt2,custom]", "seed=1"]) == [*pair, "layout.layers=[]", "seed=1"]
    assert with_lists(["site.layer=[3,6]", "model=[gpt2, custom]"]) == ["layout.layers=[3,6]", *pair]


@pytest.mark.parametrize("value", ["[gpt2]", "[gpt2,custom,tiny]", "[gpt2,custom],[gpt2,tiny]"])
def test_other_lists_of_models_are_refused(value: str):
    assert with_lists([f"model={value}"]) == [f"model={value}"]
    with pytest.raises(ValueError, match=r"over two models.*\+model@layout\.model=custom"):
        check_choices([f"model={value}"])

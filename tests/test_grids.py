"""The grids in conf/experiment: their numbers of jobs, whether every job can be run, and overriding a list."""

import math
from itertools import product

import pytest

from fsae.autoencoders.fitted import FittedSettings
from fsae.autoencoders.local_pca import KMeansSettings, LocalPCASettings
from fsae.autoencoders.topk import TopKSettings
from fsae.configuration.checks import check
from fsae.configuration.schema import settings_of
from fsae.sweeps.launch import drop_overridden_lists
from tests.composition import composed, composed_with_hydra

JOBS = {
    # 3 sites x 3 layers x 4 architectures x 3 weights
    "fisher/grid_as_released": 108,
    # 4 architectures x 2 weights
    "fisher/grid_as_released_small": 8,
    # 2 sites x 3 layers x 3 architectures x 4 sparsities x 4 weights x 5 seeds
    "fisher/grid_repaired": 1440,
    # 2 sites x 3 layers x 4 sparsities x 4 weights x 5 seeds
    "fisher/grid_repaired_topk": 480,
    # 4 sparsities x 2 weights x 5 seeds
    "fisher/grid_repaired_small": 40,
    # 5 dictionaries x 3 k x 3 seeds
    "controls/dictionaries": 45,
    "controls/dictionaries_small": 15,
    # 3 models x 3 seeds
    "controls/language_models_small": 9,
    # 2 weights x 5 seeds
    "mfr/synthetic_small": 10,
    "mfr/smollm2_small": 10,
    "mfr/eeg_small": 10,
    # 5 seeds
    "splines/sgd_mnist_small": 5,
    "splines/pam_mnist_small": 5,
    "splines/sgd_smollm2_small": 5,
    "splines/pam_smollm2_small": 5,
    # seeds; each command adds its architecture and sparsities
    "synth_sae_bench/full": 3,
    "synth_sae_bench/small": 2,
    # 4 architectures x 4 sizes x 5 seeds
    "splines/toy": 80,
}


@pytest.fixture(autouse=True)
def _outputs(monkeypatch, tmp_path):
    monkeypatch.setenv("FSAE_OUTPUTS", str(tmp_path))


def grid(experiment: str, *overrides: str) -> dict[str, list[str]]:
    """Return the lists that a command sweeps over."""
    config = composed_with_hydra(f"experiment={experiment}", *overrides)
    assert config.hydra.mode.name == "MULTIRUN"
    drop_overridden_lists(config)
    return {key: str(values).split(",") for key, values in config.hydra.sweeper.params.items()}


@pytest.mark.parametrize("experiment", JOBS)
def test_a_grids_jobs_are_counted_and_can_be_run(experiment):
    lists = grid(experiment)
    assert math.prod(map(len, lists.values())) == JOBS[experiment]
    # Values of different lists interact with the architecture alone, so each is tried once per architecture. Of seeds
    # one is enough.
    longest = max((len(values) for key, values in lists.items() if key not in ("arch", "seed")), default=1)
    for i, arch in product(range(longest), lists.get("arch", [None])):
        values = {key: each[i % len(each)] for key, each in lists.items()} | ({"arch": arch} if arch else {})
        check(settings_of(composed(f"experiment={experiment}", *(f"{key}={value}" for key, value in values.items()))))


def test_the_command_line_replaces_a_grids_list():
    assert grid("fisher/grid_as_released_small", "arch=released/gated", "loss.penalty.weight=0") == {
        "site": ["resid_mid"],
        "site.layer": ["3"],
    }


def test_the_toys_k_means_has_as_many_centres_as_local_pca_has_cells():
    """Both numbers are those of SplInterp's toy."""
    archs, sizes = (grid("splines/toy")[key] for key in ("arch", "arch.expansion"))
    built = [
        settings_of(composed("experiment=splines/toy", f"arch={a}", f"arch.expansion={s}")).arch
        for a, s in product(archs, sizes)
    ]
    cells = {(type(each), each.cells(2)) for each in built if isinstance(each, FittedSettings)}
    assert {(KMeansSettings, 3), (LocalPCASettings, 3)} <= cells
    atoms = {(each.k, each.width(2)) for each in built if isinstance(each, TopKSettings)}
    assert {(1, 40), (3, 80)} <= atoms


def test_all_seeds_of_a_grid_share_one_stream():
    orders = {settings_of(composed("experiment=fisher/grid_repaired", f"seed={seed}")).source.seed for seed in (1, 2)}
    assert orders == {0}


def test_baselines_measure_the_penalty():
    """Every run measures the penalty, so the report has its value for the baselines too."""
    fisher = settings_of(composed("experiment=fisher/grid_repaired", "loss.penalty.weight=0")).loss["penalty"]
    assert fisher.weight == 0


def test_the_grids_run_on_models_that_need_no_hub():
    for model in ("smollm2_135m_instruct_q4_1", "gemma3_270m_q4_k_m"):
        for layer in (0, 5, 10):
            here = [f"model={model}", "dataset=python_source", f"site.layer={layer}"]
            check(settings_of(composed("experiment=fisher/grid_as_released", *here)))
            check(settings_of(composed("experiment=fisher/grid_repaired", *here)))

"""Every choice of every group composes, becomes settings and passes the checks, as far as it can without a download."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from fsae.configuration.checks import check
from fsae.configuration.conf_folder import conf_folder
from fsae.configuration.schema import RunSettings, schemas, settings_of
from tests.composition import composed
from tests.work import calls

CONF = conf_folder()
CHOICES = sorted(
    str(path.relative_to(CONF).with_suffix(""))
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and path.parts[len(CONF.parts)] != "hydra"
)
GROUPS = sorted({choice.partition("/")[0] for choice in CHOICES})

# What a choice cannot do without.
PARTNERS = {
    "dataset/text_files": ["dataset.path=/some/*.txt"],
    "dataset/json_files": ["dataset.path=/some/*.jsonl"],
    "dataset/parquet_files": ["dataset.path=/some/*.parquet"],
    "eval/autointerp": ["eval.autointerp.url=http://127.0.0.1:8000/v1", "eval.autointerp.model=some"],
    "model/custom": ["model.path=someone/something"],
    # Refused otherwise where this machine has the model, and so knows its shape.
    "model/tinystories_21m": ["site.layer=0"],
    "model/pythia70m": ["site=resid_post"],
    "model/pythia160m": ["site=resid_post"],
    "population/mfr/base": ["arch=topk"],
    "trainer/pam": ["arch.decoder_norm=free"],
    "population/mfr/synthetic": ["arch=topk"],
    "population/jacobian_pair": ["layout=jacobian_pair"],
    "loss/standard": ["arch=standard"],
    "loss/jumprelu": ["arch=jumprelu"],
    "loss/jumprelu_tanh": ["arch=jumprelu"],
    "loss/jumprelu_target_l0": ["arch=jumprelu"],
    "loss/jumprelu_target_l0_per_sample": ["arch=jumprelu"],
    "loss/topk": ["arch=topk"],
    "loss/group_topk_nuclear": ["arch=group_topk"],
    "loss/code_norm": ["arch=top_afa"],
    "loss/p_anneal": ["arch=standard"],
    "loss/jumprelu_density": ["arch=jumprelu"],
    "trainer/fit": ["arch=kmeans"],
    "loss/released/standard": ["arch=released/standard"],
    "loss/released/jumprelu": ["arch=released/jumprelu"],
    "loss/released/topk": ["arch=released/topk"],
}


# Architectures without gradients.
FITTED = {"kmeans", "local_pca", "pca", "splines/local_pca"}


@pytest.fixture(autouse=True)
def _outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FSAE_OUTPUTS", str(tmp_path))


@cache
def settings_with(choice: str) -> RunSettings:
    """Return the settings of a run with this choice, and with what it cannot do without."""
    group, _, name = choice.partition("/")
    return settings_of(composed(f"{group}={name}", *PARTNERS.get(choice, [])))


@pytest.mark.parametrize("choice", CHOICES)
def test_it_composes_and_passes_the_checks(choice: str):
    group, _, name = choice.partition("/")
    settings = settings_with(choice)
    check(settings)
    # What needs no path is called in runs and tables what the command line calls it.
    if group in ("model", "dataset", "site") and getattr(getattr(settings, group), "path", None) is None:
        found = getattr(settings, group).name
        assert getattr(found, "value", found) == name


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.startswith("arch/")])
def test_an_architecture_fits_the_loss_that_it_brings_and_refuses_others_by_name(choice: str):
    arch = choice.partition("/")[2]
    own, fits, refused = settings_with(choice), [], {}
    for loss in [choice for choice in CHOICES if choice.startswith("loss/")]:
        # The penalty is a choice of its own, which an architecture may bring.
        terms = {**settings_with(loss).loss, "penalty": own.loss["penalty"]}
        try:
            check(replace(own, loss=terms))
            fits.append(loss)
        except ValueError as error:
            refused[loss] = str(error)
    name = type(own.arch).__name__.removesuffix("Settings")
    assert all(message.startswith("loss.") and f"arch {name} " in message for message in refused.values())
    check(own)
    assert "loss/squared_error" in fits
    # Fitting minimises the squared error alone.
    assert not (arch in FITTED and own.loss["penalty"].weight)


def test_there_are_all_groups():
    wanted = "arch dataset debug eval launcher loss model paths site source tracking trainer"
    assert set(GROUPS) >= set(wanted.split())
    assert {schema.partition("/")[0] for schema in schemas()} <= {*GROUPS, "sae", "search"}


def test_every_schema_is_used_by_a_choice():
    text = "".join(path.read_text() for path in CONF.rglob("*.yaml"))
    for path in schemas():
        group, _, name = path.partition("/")
        assert f"/schema/{group}@" in text, path
        assert f": {name}\n" in text, path


def test_a_config_is_composed_and_checked_with_little_work():
    # A million calls take about a second.
    assert calls(lambda: check(settings_of(composed()))) < 1_000_000

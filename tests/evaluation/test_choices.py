"""Properties of every evaluation that can be chosen by name."""

from collections import Counter
from pathlib import Path

import pytest

from fsae.configuration.conf_folder import conf_folder
from fsae.configuration.overrides import SUITE
from fsae.configuration.schema import settings_of
from fsae.evaluation.choices import CHOICES
from fsae.evaluation.evaluation import Evaluation
from fsae.evaluation.suite_settings import SuiteSettings
from fsae.evaluation.vectors import Vectors
from tests.composition import composed
from tests.evaluation.meanings import MEANINGS

# Held-out samples of evaluations whose cost per sample is too large for the suite's size.
OWN = {"amortisation": 1024, "mdl": 8192, "jacobian": 70}
# What an evaluation cannot do without.
PARTNERS = {"autointerp": ("eval.autointerp.url=http://127.0.0.1:8000/v1", "eval.autointerp.model=some")}


@pytest.fixture(autouse=True)
def _outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FSAE_OUTPUTS", str(tmp_path))


def test_every_evaluation_has_a_yaml_file_of_its_name():
    assert {path.stem for path in (conf_folder() / "eval").glob("*.yaml")} == CHOICES.keys() | {SUITE}


def test_the_suite_has_every_evaluation_that_runs_alone_and_without_a_judge():
    settings = settings_of(composed(f"eval=[{SUITE}]"))
    others = {"agreement", "geometry", "stability", "jacobian", "autointerp", "scr", "tpp"}
    assert settings.eval.keys() == CHOICES.keys() - others


@pytest.mark.parametrize("name", CHOICES)
def test_a_chosen_evaluation_takes_the_sizes_of_the_suite(name: str):
    sizes = ("suite.samples=1500", "suite.tokens=70", "suite.latents=71")
    settings = settings_of(composed(f"eval=[{name}]", "suite=quick", *sizes, *PARTNERS.get(name, ())))
    (evaluation,) = settings.eval.values()
    assert isinstance(evaluation, CHOICES[name])
    assert evaluation.held_out in (0, OWN.get(name, 1500))
    assert getattr(evaluation, "tokens", 70) == (71 if name == "latents" else 70)


def test_a_size_of_one_evaluation_is_its_own():
    settings = settings_of(composed("eval=[vectors,geometry]", "eval.geometry.samples=123"))
    assert [each.held_out for each in settings.eval.values()] == [32768, 123]


def test_numbers_of_different_evaluations_have_different_names():
    counts = Counter(name for evaluation in CHOICES.values() for name in evaluation.meanings)
    assert set(counts.values()) == {1}


def test_meanings_fit_a_terminal():
    rows = {name: each for name, each in MEANINGS.items() if not each.noise_of and not each.control_of}
    assert max(len(name) + 24 + len(str(meaning)) for name, meaning in rows.items()) <= 110


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (Vectors, {"batch_size": 1}, r"eval\.vectors\.batch_size is 1"),
        (Vectors, {"samples": 100}, r"eval\.vectors\.samples is 100.*eval\.vectors\.batch_size=2048"),
        (CHOICES["splice"], {"tokens": 0}, r"eval\.splice\.tokens is 0"),
        (SuiteSettings, {"samples": 0}, r"suite\.samples is 0"),
    ],
)
def test_impossible_sizes_are_refused(settings: type[Evaluation], changes: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        settings(**changes)

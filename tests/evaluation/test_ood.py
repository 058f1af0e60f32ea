from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsae.evaluation import ood
from fsae.evaluation.downstream.answerability import DOMAINS
from fsae.evaluation.downstream.labelled_texts import LabelledTexts
from fsae.evaluation.evaluation import Measured
from fsae.evaluation.ood import Ood
from tests.evaluation.downstream.labels import CLASSES, known_latents, measured, random_latents, some_text

SETTINGS = Ood(train=130, test=50, repeats=2)


def some_texts(name: str, flipped: bool = False, rows: int = 200) -> LabelledTexts:
    """Texts whose last character is of their class; of the other class if `flipped`."""
    generator = np.random.default_rng(len(name))
    labels = np.arange(rows) % 2
    before = ["".join(generator.choice(list("ijklmnopqr "), size=6)) for _ in range(rows)]
    ends = [generator.choice(list(CLASSES[1 - label if flipped else label])) for label in labels]
    return LabelledTexts(name, [a + b for a, b in zip(before, ends, strict=True)], labels, ("n", "p"))


@pytest.fixture(scope="module")
def found() -> list[Measured]:
    """The shifted version of a data set has the other sign; the domains of answerability have the same one."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ood, "shifted_names", lambda: ["one"])
        patched.setattr(ood, "packaged_texts", some_texts)
        patched.setattr(ood, "shifted_texts", lambda name: some_texts(f"{name} shifted", flipped=True))
        patched.setattr(ood, "answerability", lambda domain, count, seed: some_texts(domain))
        return measured(SETTINGS, known_latents(), random_latents())


def test_a_sign_that_the_target_does_not_share_is_not_flipped(found: list[Measured]):
    known = found[0].numbers[0]
    for row in ("latent", "k5", "k20"):
        assert known[f"ood_shifted_in_{row}"] > 0.95
        assert known[f"ood_shifted_{row}"] < 0.05
        assert known[f"ood_shifted_worst_{row}"] == pytest.approx(known[f"ood_shifted_{row}"])


def test_a_latent_of_the_label_holds_in_every_domain(found: list[Measured]):
    known, random = (each.numbers[0] for each in found)
    assert known["ood_answerable_latent"] == known["ood_answerable_in_latent"] == 1
    assert known["ood_answerable_worst_k20"] > 0.95
    assert random["ood_answerable_latent"] < 0.9
    assert known["ood_answerable_k20_residual"] > 0.9
    assert known["ood_answerable_latent_random"] < known["ood_answerable_latent"]
    assert known.keys() == Ood.meanings.keys()


def test_the_areas_are_a_matrix_of_sources_and_targets(found: list[Measured]):
    (shifted, answerable) = found[0].content["ood_areas"][0]
    assert (shifted["domains"], shifted["sources"]) == (["one", "one shifted"], ["one"])
    assert np.array(shifted["latent"]).shape == (1, 2)
    assert answerable["domains"] == answerable["sources"] == list(DOMAINS)
    assert np.array(answerable["k5_random"]).shape == (4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": ["riddles", "order"]}, "has 'riddles'; the domains are arithmetic"),
        ({"domains": ["order"]}, "one domain; name another one"),
    ],
)
def test_domains_that_cannot_be_compared_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Ood(**changes)


@pytest.mark.skipif(find_spec("sae_probes") is None, reason="sae-probes is not installed")
def test_a_data_set_without_a_shifted_version_is_refused():
    with pytest.raises(ValueError, match="no shifted version of '96_spam_is'"):
        measured(Ood(shifted=["96_spam_is"]), random_latents())


def test_a_further_dictionary_shares_the_areas_that_owe_nothing_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fitted: list[int] = []
    monkeypatch.setattr(ood, "residual_probe", lambda *data: fitted.append(1) or ood.difference_probe(*data))
    monkeypatch.setattr(ood, "shifted_names", list)
    monkeypatch.setattr(ood, "answerability", lambda domain, count, seed: some_texts(domain))
    settings = Ood(train=130, test=50, repeats=1, domains=list(DOMAINS)[:2])
    texts = [some_text(None), *(some_text(tmp_path) for _ in range(2))]
    found = [measured(settings, random_latents(), text=text)[0] for text in texts]
    assert found[0].numbers == found[1].numbers == found[2].numbers
    assert found[0].content == found[2].content
    # Two sources, without a folder and with an empty one.
    assert len(fitted) == 4

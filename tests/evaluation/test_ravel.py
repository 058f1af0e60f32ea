from pathlib import Path
from typing import Any

import pytest

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.evaluation import Measured
from fsae.evaluation.ravel import Ravel, Score
from tests.evaluation.downstream.knowing import (
    ATTRIBUTES,
    OWN,
    VALUES,
    KnowingModel,
    apart,
    knowing_text,
    together,
    write_entities,
)
from tests.evaluation.downstream.texts import subject_on


def settings(folder: Path, **changes: Any) -> Ravel:
    chosen = {"path": write_entities(folder), "entity": "word", "steps": 30, "batch": 16, "lr": 0.1, "seed": 3}
    return Ravel(**{**chosen, **changes})


def measured(
    ravel: Ravel, *autoencoders: Autoencoder, knows: bool = True, kept_in: Path | None = None
) -> list[Measured]:
    return ravel.measure(subject_on(knowing_text(knows, kept_in), autoencoders))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Measured]:
    return measured(settings(Path(tmp_path_factory.mktemp("entities"))), apart(), together())


def test_latents_of_one_attribute_each_are_disentangled(both: list[Measured]):
    numbers = both[0].numbers[0]
    assert numbers["ravel_cause"] == numbers["ravel_isolation"] == numbers["ravel_disentanglement"] == 1
    assert numbers["ravel_with_error"] == 1
    assert numbers["ravel_disentanglement_noise"] == 0
    assert numbers["ravel_latents"] == VALUES
    assert numbers["ravel_entities"] == len(OWN)
    assert numbers["ravel_known"] == 1
    assert numbers.keys() == Ravel.meanings.keys()


def test_latents_of_two_attributes_are_entangled(both: list[Measured]):
    apart_from, numbers = (each.numbers[0] for each in both)
    assert numbers["ravel_disentanglement"] < 0.7
    assert apart_from["ravel_disentanglement_random"] < 0.9


def test_controls_change_everything_or_nothing(both: list[Measured]):
    for each in both:
        numbers = each.numbers[0]
        assert (numbers["ravel_cause_swap"], numbers["ravel_isolation_swap"]) == (1, 0)
        assert (numbers["ravel_cause_none"], numbers["ravel_isolation_none"]) == (0, 1)


def test_the_content_has_every_attribute(both: list[Measured]):
    (content,) = both[0].content["ravel_attributes"]
    assert content.keys() == set(ATTRIBUTES)
    assert content["size"] == {
        "prompts": 2 * len(OWN),
        "entities": len(OWN),
        "cause": 1,
        "isolation": 1,
        "cause_swap": 1,
        "isolation_swap": 0,
        "latents": VALUES,
    }


def test_disentanglement_is_the_mean_of_cause_and_isolation():
    assert Score(cause=0.75, isolation=0.25).disentanglement == 0.5


def test_a_model_that_knows_nothing_is_refused(tmp_path: Path):
    message = r"completes 0 of 144 prompts rightly \(entities per attribute: none\)"
    with pytest.raises(ValueError, match=message):
        measured(settings(tmp_path), apart(), knows=False)


def test_too_few_known_entities_are_refused(tmp_path: Path):
    message = r"completes 144 of 144 prompts rightly \(entities per attribute: colour 36, size 36\)"
    with pytest.raises(ValueError, match=message):
        measured(settings(tmp_path, least=100), apart())


def test_entities_and_templates_are_drawn_from_the_seed(tmp_path: Path):
    few = settings(tmp_path, entities=10, templates=1)
    found = few._entities()
    assert len(found.values) == 10
    assert {len(each) for each in found.templates.values()} == {1}
    assert found == few._entities()
    assert found.values.keys() != settings(tmp_path, entities=10, seed=4)._entities().values.keys()


def test_a_further_dictionary_shares_the_questions_and_the_whole_interchanges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked, logits = list[int](), KnowingModel.logits
    monkeypatch.setattr(KnowingModel, "logits", lambda *given, **at: asked.append(1) or logits(*given, **at))
    few, passes = settings(tmp_path, steps=1, seeds=1), []
    for kept_in in (None, tmp_path / "kept", tmp_path / "kept"):
        asked.clear()
        (found,) = measured(few, apart(), kept_in=kept_in)
        passes.append((len(asked), found.numbers, found.content))
    assert passes[0] == passes[1]
    assert passes[0][1:] == passes[2][1:]
    # Two attributes, each with cause and isolation: one pass of whole vectors, three of the mask and three of the
    # control's.
    assert passes[2][0] == 2 * 2 * 6
    assert passes[0][0] > 2 * 2 * 7

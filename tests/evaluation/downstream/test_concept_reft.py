from typing import Any, cast

import pytest
import torch

from fsae.evaluation.downstream.concept_reft import reft_direction
from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.transformer_lens import open_language_model
from tests.evaluation.downstream.texts import SITE, Text
from tests.evaluation.downstream.words import OTHERS, OWN, WordModel

TEXTS = [f"{OTHERS[i]} {OTHERS[i + 1]} {OWN['birds'][i % 4]} {OWN['birds'][(i + 1) % 4]}" for i in range(12)]


def direction(text: Any, **changes: Any) -> torch.Tensor:
    return reft_direction(text, **{"texts": TEXTS, "tokens": 8, "epochs": 60, "seed": 0, **changes})


def test_training_finds_the_direction_that_makes_the_texts_likely():
    text = Text()
    text.model = cast(Any, WordModel())
    found = direction(text)
    assert found.norm() == pytest.approx(1, abs=1e-5)
    # The first dimension raises the logits of birds, and no other dimension does.
    assert found[0] > 0.8
    assert torch.equal(found, direction(text))
    assert found[0] > direction(text, epochs=1)[0]


def test_a_language_model_gives_gradients_and_stays_as_it_is():
    tiny = open_language_model(ModelSettings(package=Package.tiny))
    text = Text(prepends_bos=False, site=SITE)
    text.model = cast(Any, tiny)
    rows = torch.tensor([[40, 41, 42]])
    before = tiny.logits(rows)
    found = direction(text, epochs=2)
    assert found.shape == (tiny.width(SITE),)
    assert not torch.equal(found, direction(text, epochs=1))
    assert torch.equal(tiny.logits(rows), before)

"""`eval.influence` on a linear language model whose latents are known."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fsae.evaluation.evaluation import Measured
from fsae.evaluation.influence import Influence
from fsae.evaluation.subject import Examined
from fsae.sources.room import Room
from tests.evaluation.causal.toy import EARLY, LinearModel, axes, halved, pairs, subject

ROWS = pairs(64).clean.tokens
SMALL: dict[str, Any] = {"prompts": 8, "length": 3, "latents": 20, "ablations": 8, "steps": 20, "seeds": 2}
PROBABILITY = LinearModel().logits(ROWS)[:, -1].softmax(1).amax(1)


def measured(*autoencoders, keep: torch.Tensor | None = None, **changes: Any) -> Measured:
    runs = subject(Examined(autoencoders or (axes(),)), site=EARLY, tokens=ROWS, keep=keep)
    (found,) = Influence(**(SMALL | changes)).measure(runs)
    return found


@pytest.fixture(scope="module")
def found() -> Measured:
    return measured(shares=[0.1, 0.3])


def test_masking_influential_latents_costs_most(found: Measured):
    (numbers,) = found.numbers
    assert numbers.keys() == Influence.meanings.keys()
    assert numbers["influence_drop"] > 1.3 * numbers["influence_drop_active"]
    assert numbers["influence_drop"] > 1.5 * numbers["influence_drop_random"]
    assert abs(numbers["influence_drop_least"]) < 0.1 * numbers["influence_drop"]
    (curves,) = found.content["masking"]
    assert curves["shares"] == [0.1, 0.3]
    assert sum(curves["influential"]) / 2 == pytest.approx(numbers["influence_drop"])


def test_estimates_rank_latents_as_ablation_does(found: Measured):
    (numbers,) = found.numbers
    assert numbers["attribution_rank"] > 0.9
    assert numbers["ig_rank"] > 0.9
    assert numbers["ig_incompleteness"] < 1e-3


def test_without_any_latent_all_tokens_have_one_probability():
    """The dictionary reconstructs everything, so that the activations are zero; six tokens have a sixth each."""
    (numbers,) = measured(shares=[1.0], seeds=1, prompts=64).numbers
    lost = 1 - (1 / 6) / PROBABILITY.mean().item()
    drops = [numbers[f"influence_drop{suffix}"] for suffix in ("", "_active", "_random", "_least")]
    assert drops == pytest.approx([lost] * 4, abs=1e-5)


def test_the_error_stays():
    (numbers,) = measured(halved(), shares=[1.0], seeds=1, prompts=64).numbers
    # Half of the activations is left, and the model is linear up to its logits.
    left = (LinearModel().logits(ROWS)[:, -1] / 2).softmax(1)
    likeliest = LinearModel().logits(ROWS)[:, -1].argmax(1)
    wanted = left[torch.arange(64), likeliest].mean() / PROBABILITY.mean()
    assert numbers["influence_drop"] == pytest.approx(1 - wanted.item(), abs=1e-5)


def test_positions_that_do_not_count_are_not_masked():
    nothing = torch.zeros_like(ROWS, dtype=torch.bool)
    (numbers,) = measured(keep=nothing).numbers
    assert numbers["influence_drop"] == 0
    assert numbers["attribution_rank"] != numbers["attribution_rank"]  # NaN: no latent could be ablated
    some = nothing.clone()
    some[:, 0] = True
    (numbers,) = measured(keep=some, shares=[1.0], seeds=1, prompts=64).numbers

    def first_is_zero(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], dim=1)

    likeliest = LinearModel().logits(ROWS)[:, -1].argmax(1)
    left = LinearModel().logits(ROWS, (EARLY, first_is_zero))[:, -1].softmax(1)[torch.arange(64), likeliest]
    assert numbers["influence_drop"] == pytest.approx(1 - (left.mean() / PROBABILITY.mean()).item(), abs=1e-5)


def test_the_language_model_is_read_once_for_all_dictionaries():
    passes = []
    for count in (1, 3):
        model = LinearModel()
        runs = subject(*[Examined([axes()]) for _ in range(count)], site=EARLY, tokens=ROWS, model=model)
        found = Influence(**SMALL).measure(runs)
        passes.append(model.passes)
        # A dictionary has the same numbers alone and with others.
        assert found[-1].numbers[0] == pytest.approx(measured().numbers[0])
    shared = passes[0] - (passes[1] - passes[0]) / 2
    # Per seed: the likeliest token, gradients and its probability.
    assert shared == 3 * SMALL["seeds"]


def test_too_little_text_is_refused():
    runs = subject(Examined([axes()]), tokens=ROWS[:3])
    with pytest.raises(ValueError, match=r"has 3 rows of 3 tokens, and eval\.influence needs 4 rows of at least 2"):
        Influence(**SMALL).measure(runs)


def test_a_further_dictionary_shares_the_passes_that_replace_nothing(tmp_path: Path):
    kept_in = Room(folder=tmp_path, limit_gb=None)
    passes, numbers = [], []
    for room in (None, kept_in, kept_in):
        model = LinearModel()
        runs = subject(Examined([halved()]), site=EARLY, model=model, tokens=ROWS, kept_in=room)
        (found,) = Influence(**SMALL).measure(runs)
        passes.append(model.passes)
        numbers.append(found.numbers)
    assert numbers[0] == numbers[1] == numbers[2]
    # Per seed: the likeliest tokens, their gradients and their probabilities, each in one pass.
    assert passes[0] == passes[1] == passes[2] + 3 * SMALL["seeds"]

import random
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fsae.evaluation.downstream.entities import ravel_entities
from fsae.evaluation.downstream.entity_prompts import KnownPrompts, known, prompts_about
from fsae.evaluation.downstream.interchange import Held, Pair, Schedule, learned_masks, pairs_of, share_right
from fsae.sparse.codes import Codes
from tests.evaluation.downstream.knowing import (
    ATTRIBUTES,
    D_IN,
    OWN,
    VALUES,
    apart,
    knowing_text,
    together,
    write_entities,
)

SCHEDULE = Schedule(steps=30, pairs=16, lr=0.1)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> KnownPrompts:
    text = knowing_text()
    entities = ravel_entities(write_entities(Path(tmp_path_factory.mktemp("entities"))), "word")
    found = known(text, prompts_about(cast(Any, text.model), entities, True), lambda: None)
    assert len(found.prompts) == found.asked == 4 * len(OWN)
    return found


def test_an_interchange_decodes_the_mixture_of_codes(asked: KnownPrompts):
    autoencoder = apart()
    with torch.no_grad():
        autoencoder.b_dec.copy_(torch.arange(D_IN) / 10)
    held = Held(autoencoder, asked.vectors)
    base, source = torch.tensor([0, 1, 2]), torch.tensor([9, 30, 55])
    gates = torch.rand(len(held.rows), generator=torch.Generator().manual_seed(0))
    codes = (1 - gates) * held.codes[base] + gates * held.codes[source]
    with torch.no_grad():
        decoded = autoencoder.decode(Codes(codes))
        error = asked.vectors[base] - autoencoder(asked.vectors[base]).reconstruction
    torch.testing.assert_close(held.swap(gates)(base, source), decoded)
    torch.testing.assert_close(held.swap(gates, keeps_error=True)(base, source), decoded + error)
    assert held.densities.sum() == pytest.approx(2)


def test_pairs_cannot_be_right_by_accident(asked: KnownPrompts):
    train, test = pairs_of(asked, "size", 300, 20, random.Random(0))
    assert len(test.cause) == len(test.isolation) == 20
    for kind, asks in (("cause", "size"), ("isolation", "colour")):
        learned, tested = (getattr(each, kind) for each in (train, test))
        assert not set(learned) & set(tested)
        assert 200 < len(learned) <= 300
        for pair in (*learned, *tested):
            base, source = asked.prompts[pair.base], asked.prompts[pair.source]
            assert (base.attribute, source.attribute) == (asks, "size")
            number = ATTRIBUTES.index(asks)
            assert OWN[base.entity][number] != OWN[source.entity][number]
            assert pair.target == (source if kind == "cause" else base).answer[0]


def test_entities_of_one_value_make_no_pairs(asked: KnownPrompts):
    one_size = [number for number, each in enumerate(asked.prompts) if OWN[each.entity][1] == 0]
    few = KnownPrompts([asked.prompts[number] for number in one_size], asked.vectors[one_size], asked.asked)
    train, test = pairs_of(few, "size", 20, 5, random.Random(0))
    assert train.cause == test.cause == []
    assert len(test.isolation) == 5


def test_the_masks_have_the_latents_of_their_attributes(asked: KnownPrompts):
    text, held = knowing_text(), Held(apart(), asked.vectors)
    beats: list[int] = []
    tasks = [(held, pairs_of(asked, attribute, 200, 0, random.Random(0))[0]) for attribute in ATTRIBUTES]
    masks = learned_masks(text, asked, tasks, SCHEDULE, lambda: beats.append(1))
    for number, mask in enumerate(masks):
        assert mask.tolist() == [latent // VALUES == number for latent in range(D_IN)]
    assert len(beats) == SCHEDULE.steps


def test_masks_are_the_same_whatever_is_learned_with_them_and_in_passes_of_any_size(
    asked: KnownPrompts, monkeypatch: pytest.MonkeyPatch
):
    text, read = knowing_text(), list[tuple[int, int]]()
    model = cast(Any, text.model)
    logits = model.differentiable_logits

    def counted(tokens: torch.Tensor, *rest: Any, **at: Any) -> torch.Tensor:
        read.append((len(tokens), tokens.numel()))
        return logits(tokens, *rest, **at)

    monkeypatch.setattr(model, "differentiable_logits", counted)
    tasks = [
        (Held(autoencoder, asked.vectors), pairs_of(asked, attribute, 100, 5, random.Random(0))[0])
        for autoencoder in (together(), apart())
        for attribute in ATTRIBUTES
    ]
    masks, passes = [], []
    for at_once in (10**6, 60):
        read.clear()
        masks.append(learned_masks(text, asked, tasks, SCHEDULE, lambda: None, at_once))
        passes.append((len(read) / SCHEDULE.steps, sum(tokens for _, tokens in read)))
        assert sum(rows for rows, _ in read) == SCHEDULE.steps * SCHEDULE.pairs * len(tasks)
    masks.append([learned_masks(text, asked, [task], SCHEDULE, lambda: None)[0] for task in tasks])
    for one, other, alone in zip(*masks, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, alone)
        assert 0 < one.sum() < len(one)
    # All masks of a step are in one pass; smaller passes have prompts of about one length and pad less.
    assert passes[0][0] == 1
    assert passes[1][0] > 4
    assert passes[1][1] < passes[0][1]


def test_the_share_of_right_answers_is_counted(asked: KnownPrompts):
    text = knowing_text()
    # The first word asks for a colour; the vector of another word is put in its place.
    other = next(number for number, each in enumerate(asked.prompts) if OWN[each.entity][0] == 1)
    target = asked.prompts[other].answer[0]
    base = next(
        number
        for number, each in enumerate(asked.prompts)
        if each.attribute == "colour" and each.answer[0] != asked.prompts[other].answer[0]
    )
    pairs = [Pair(base, other, target), Pair(base, other, asked.prompts[base].answer[0]), Pair(other, other, target)]
    assert asked.prompts[other].attribute == "colour"
    swapped = share_right(text, asked, pairs, lambda base, source: asked.vectors[source], 2, lambda: None)
    kept = share_right(text, asked, pairs, lambda base, source: asked.vectors[base], 2, lambda: None)
    assert (swapped, kept) == (pytest.approx(2 / 3), pytest.approx(2 / 3))

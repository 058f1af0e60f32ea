import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fsae.sources import activations as module
from fsae.sources.activations import ActivationSource, ActivationSourceSettings
from tests.streams import D_IN, SITE, TEXTS, TableModel, activation_source, packed

SIZE, BATCH = 70, 16
PER_PASS = SIZE // BATCH


def take(source: ActivationSource, count: int) -> list[Tensor]:
    stream = source.batches(BATCH)
    return [next(stream).inputs for _ in range(count)]


def harvested(count: int) -> Tensor:
    """The first activations of the training text in its own order, computed beside the source."""
    model, found = TableModel(), []
    text = packed(TEXTS, repeat=True)
    while sum(map(len, found)) < count:
        tokens, keep = next(text)
        found.append((model.table[tokens] + model.positions)[keep])
    return torch.cat(found)[:count]


def test_an_autoencoder_is_to_return_what_it_is_given():
    batch = next(activation_source().batches(BATCH))
    assert batch.inputs is batch.targets
    assert batch.inputs.shape == (BATCH, D_IN)


def test_the_batches_of_a_pass_are_different_vectors_of_one_buffer():
    source = activation_source()
    rows = source.first_vectors()
    assert torch.equal(rows, harvested(SIZE))
    # Numbered, so that equal vectors are told apart.
    rows[:, 0] = torch.arange(SIZE)
    for _ in range(2):
        seen = [int(vector[0]) for batch in take(source, PER_PASS) for vector in batch]
        assert len(seen) == len(set(seen)) == PER_PASS * BATCH
        assert seen != sorted(seen)


def test_buffers_follow_one_another_in_the_text():
    # 70 vectors end within a block of two rows: its rest is left out, and the next buffer begins after it.
    model, text = TableModel(), packed(TEXTS, repeat=True)
    source = activation_source(passes=1)
    for _ in range(3):
        block, count = [], 0
        while count < SIZE:
            tokens, keep = next(text)
            block.append((model.table[tokens] + model.positions)[keep])
            count += len(block[-1])
        rows = torch.cat(block)[:SIZE]
        for batch in take(source, PER_PASS):
            assert all((rows == vector).all(dim=1).any() for vector in batch)


def test_every_pass_buffer_and_seed_has_its_own_order_and_keeps_it(monkeypatch: pytest.MonkeyPatch):
    drawn: list[tuple[int, ...]] = []
    randperm = torch.randperm

    def recorded(size: int, *, generator: torch.Generator) -> Tensor:
        order = randperm(size, generator=generator)
        drawn.append(tuple(order.tolist()))
        return order

    monkeypatch.setattr(module.torch, "randperm", recorded)
    for seed in (0, 0, 1):
        # Two passes over each of two buffers.
        take(activation_source(seed=seed), 4 * PER_PASS)
    assert drawn[:4] == drawn[4:8]
    assert len(set(drawn)) == 8
    assert all(sorted(order) == list(range(SIZE)) for order in drawn)


@pytest.mark.parametrize("at", [0, 1, PER_PASS - 1, PER_PASS, PER_PASS + 1, 2 * PER_PASS, 2 * PER_PASS + 1, 19])
def test_a_position_names_the_batch_that_comes_next(at: int):
    wanted = take(activation_source(), at + 3 * PER_PASS)[at:]
    before = activation_source()
    take(before, at)
    state = copy.deepcopy(before.state_dict())
    resumed = activation_source()
    resumed.load_state_dict(state)
    for batch, expected in zip(take(resumed, 3 * PER_PASS), wanted, strict=True):
        assert torch.equal(batch, expected)


def test_a_position_holds_no_activations():
    source = activation_source()
    take(source, 5)
    state = source.state_dict()
    assert {key: state[key] for key in ("index", "pass", "batch")} == {"index": 0, "pass": 1, "batch": 1}
    pending = state["text"]["pending"]
    assert pending.untyped_storage().nbytes() == pending.numel() * pending.element_size()


def test_the_first_vectors_are_harvested_once():
    model = TableModel()
    source = activation_source(model=model)
    vectors = source.first_vectors()
    passes = model.passes
    assert torch.equal(source.first_vectors(), vectors)
    take(source, 2 * PER_PASS)
    assert model.passes == passes
    take(source, 1)
    assert model.passes > passes


def test_held_out_vectors_are_always_the_same_whatever_is_trained_meanwhile():
    source = activation_source()
    first = list(source.held_out(60, 25))
    assert [len(batch) for batch in first] == [25, 25, 10]
    take(source, 5)
    again = list(source.held_out(60, 25))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    source.held_out_rows(30)
    other_size = torch.cat(list(activation_source(seed=9).held_out(60, 7)))
    assert torch.equal(other_size, torch.cat(first))
    # Nor does evaluating disturb the training.
    quiet = activation_source()
    take(quiet, 5)
    assert all(torch.equal(a, b) for a, b in zip(take(source, 5), take(quiet, 5), strict=True))


def test_held_out_vectors_end_with_the_text():
    everything = torch.cat(list(activation_source().held_out(10_000, 25)))
    _, keep = activation_source().held_out_rows(10_000)
    assert len(everything) == int(keep.sum()) < 10_000


def test_held_out_rows_are_the_first_and_no_more_than_needed():
    source = activation_source()
    tokens, keep = source.held_out_rows(30)
    assert tokens.shape == keep.shape == (4, 8)
    longer, _ = source.held_out_rows(41)
    assert longer.shape == (6, 8)
    assert torch.equal(longer[:4], tokens)


def test_special_tokens_are_no_training_vectors():
    tokens, keep = next(packed(TEXTS, repeat=True))
    assert (tokens[~keep] == 0).all()
    assert (tokens[keep] != 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused_by_place(value: float):
    model = TableModel()
    tokens, keep = next(packed(TEXTS, repeat=True))
    row, position = keep.nonzero()[-1].tolist()
    model.table[tokens[row, position], 3] = value
    bad = (tokens == tokens[row, position]).nonzero()
    first_row, first_position = bad[0].tolist()
    message = (
        rf"activations at resid_post\.0 are not finite: {len(bad)} of 16 positions .* the first in its row {first_row} "
        rf"at position {first_position}; .*model\.dtype=bfloat16 or float32"
    )
    with pytest.raises(ValueError, match=message):
        activation_source(model=model).first_vectors()


def test_what_is_left_out_may_be_what_it_likes():
    model = TableModel()
    model.table[0] = float("nan")
    assert activation_source(model=model).first_vectors().isfinite().all()


def test_a_buffer_that_cannot_fit_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=1e9))
    model = TableModel()
    # 1e8 vectors of 6 floats are 2.4 GB; 0.8 of 1 GB holds 33,333,333.
    source = activation_source(buffer_tokens=100_000_000, model=model)
    monkeypatch.setattr(module.torch, "empty", _only_scalars(torch.empty))
    with pytest.raises(
        ValueError, match=r"buffer_tokens=100000000 takes 2\.4 GB and 1\.0 GB are free .* most 33333333"
    ):
        source.first_vectors()
    assert model.passes == 0


def _only_scalars(empty):
    def checked(*shape, **kinds):
        assert shape in ((), ((),)), "memory was taken"
        return empty(*shape, **kinds)

    return checked


def test_a_batch_larger_than_the_buffer_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.batch_size is 71, more than the buffer's 70 vectors"):
        next(activation_source().batches(71))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"buffer_tokens": 0}, r"source\.buffer_tokens is 0"), ({"passes": 0}, r"source\.passes is 0")],
)
def test_a_value_out_of_range_is_refused_by_name(changes: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        ActivationSourceSettings(**changes)


def test_a_harvest_can_be_stopped_between_forward_passes():
    model = TableModel()

    def heartbeat() -> None:
        if model.passes == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        activation_source(model=model, heartbeat=heartbeat).first_vectors()
    assert model.passes == 3


def test_the_site_is_what_the_model_is_asked_for():
    asked = []

    class Asked(TableModel):
        def activations(self, tokens, sites):
            asked.extend(sites)
            return super().activations(tokens, sites)

    activation_source(model=Asked()).first_vectors()
    assert set(asked) == {SITE}

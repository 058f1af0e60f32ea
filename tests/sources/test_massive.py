import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fsae.sources.activations import ActivationSource
from fsae.sources.massive import norm_limit, within
from fsae.sources.open_activations import ActivationSourceSettings
from tests.streams import TableModel, activation_source

BATCH, PER_EPOCH = 16, 4
# "m" is in "stream" alone: 4 of the first shard's 40 vectors, 5 of the 70 in both.
MASSIVE_TOKEN = ord("m") + 1
TIMES = 1000.0


def sinking_model() -> TableModel:
    """One token's activations are a thousand times as long as the others'."""
    model = TableModel()
    model.table[MASSIVE_TOKEN] *= TIMES
    return model


def epoch_of(source: ActivationSource) -> Tensor:
    stream = source.batches(BATCH)
    return torch.cat([next(stream).inputs for _ in range(PER_EPOCH)])


def rows(vectors: Tensor) -> set[tuple[float, ...]]:
    return set(map(tuple, vectors.tolist()))


def is_massive(vectors: Tensor) -> Tensor:
    return vectors.norm(dim=1) > 100


def test_the_limit_is_a_multiple_of_the_median_norm():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
    assert norm_limit(vectors, 2.0) == 10.0
    assert within(vectors, 10.0).tolist() == [True, True, True]
    assert within(vectors, 9.9).tolist() == [True, True, False]


def test_half_precision_norms_do_not_overflow():
    vectors = torch.full((3, 4), 60_000.0, dtype=torch.float16)
    assert norm_limit(vectors, 10.0) == pytest.approx(10 * 2 * 60_000, rel=1e-3)


def test_training_sees_every_vector_except_massive_ones():
    everything = epoch_of(activation_source(model=sinking_model(), max_norm_multiple=None))
    massive = is_massive(everything)
    assert 0 < massive.sum() < 10
    seen = epoch_of(activation_source(model=sinking_model()))
    assert len(seen) == len(everything)
    assert not is_massive(seen).any()
    # Six of the 70 vectors fill no batch, and which ones depends on the order.
    assert len(rows(everything[~massive]) - rows(seen)) <= 6


def test_a_limit_does_not_change_a_stream_without_massive_vectors():
    limited, free = (epoch_of(activation_source(max_norm_multiple=multiple)) for multiple in (10.0, None))
    assert torch.equal(limited, free)


def test_scale_and_biases_are_measured_without_massive_vectors():
    kept = activation_source(model=sinking_model()).first_vectors()
    everything = activation_source(model=sinking_model(), max_norm_multiple=None).first_vectors()
    assert rows(kept) == rows(everything[~is_massive(everything)])


def test_massive_held_out_vectors_are_left_out_and_counted():
    source = activation_source(model=sinking_model(), held_out_tokens=1000)
    kept = torch.cat([batch.inputs for batch in source.held_out(1000, 25)])
    free = activation_source(model=sinking_model(), held_out_tokens=1000, max_norm_multiple=None)
    everything = torch.cat([batch.inputs for batch in free.held_out(1000, 25)])
    assert torch.equal(kept, everything[~is_massive(everything)])
    assert source.massive_share == pytest.approx(float(is_massive(everything).float().mean()))
    assert source.massive_share
    assert free.massive_share == 0.0


def test_training_and_evaluation_have_one_limit(tmp_path: Path):
    source = activation_source(tmp_path, model=sinking_model())
    limit = 10 * float(activation_source(max_norm_multiple=None).first_vectors().norm(dim=1).median())
    # The median of a shard with four long vectors is a neighbour of that without.
    assert source.norm_limit == pytest.approx(limit, rel=0.2)
    before = source.norm_limit
    epoch_of(source)
    list(source.held_out(60, 25))
    assert source.norm_limit == before == source.state_dict()["norm_limit"]


def test_an_evaluation_without_training_measures_its_limit_on_held_out_vectors():
    source = activation_source(model=sinking_model(), tokens=0, held_out_tokens=1000)
    assert not is_massive(torch.cat([batch.inputs for batch in source.held_out(1000, 25)])).any()
    assert source.massive_share


def test_a_given_limit_replaces_the_multiple():
    for multiple in (None, 1e6, 10.0):
        source = activation_source(model=sinking_model(), max_norm_multiple=multiple, max_norm=50.0)
        assert source.norm_limit == 50.0
        assert not is_massive(epoch_of(source)).any()
        assert source.state_dict()["norm_limit"] == 50.0


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_resumed_stream_leaves_out_the_same_vectors(at: int):
    before = activation_source(model=sinking_model())
    stream = before.batches(BATCH)
    for _ in range(at):
        next(stream)
    state = copy.deepcopy(before.state_dict())
    wanted = [next(stream).inputs for _ in range(2 * PER_EPOCH)]
    resumed = activation_source(model=sinking_model())
    resumed.load_state_dict(state)
    stream = resumed.batches(BATCH)
    assert all(torch.equal(next(stream).inputs, each) for each in wanted)


def test_a_store_holds_massive_vectors_for_runs_of_another_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with activation_source(tmp_path, model=sinking_model()) as first:
        epoch_of(first)
    model = sinking_model()
    with activation_source(tmp_path, model=model, max_norm_multiple=None) as second, caplog.at_level(logging.INFO):
        assert is_massive(epoch_of(second)).any()
    assert model.passes == 0


def test_a_shard_with_only_massive_vectors_is_refused():
    model = TableModel()
    source = activation_source(model=model)
    source.first_vectors()
    model.table *= TIMES
    model.positions *= TIMES
    with pytest.raises(ValueError, match=r"every activation of shard 1 has a norm above .* set both to null"):
        epoch_of(source)


@pytest.mark.parametrize("multiple", [1.0, 0.0, -3.0, float("nan"), float("inf")])
def test_a_multiple_out_of_range_is_refused(multiple: float):
    with pytest.raises(ValueError, match=r"source.max_norm_multiple is .* median norm"):
        ActivationSourceSettings(max_norm_multiple=multiple)

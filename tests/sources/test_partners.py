"""Batches in which each sample has the one before it in its document."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fsae.configuration.checks import check
from fsae.configuration.composition import composed_settings
from fsae.sources.shard import Part
from fsae.sources.source import Batch
from tests.sources.test_layout import BETWEEN, BOTH
from tests.sources.test_massive import sinking_model
from tests.streams import D_IN, activation_source

BATCH = 16


def take(count: int, folder: Path | None = None, **changes) -> list[Batch]:
    with activation_source(folder, partners=True, **changes) as source:
        batches = source.batches(BATCH)
        return [next(batches) for _ in range(count)]


def partners_by_vector(**changes) -> dict[tuple, set]:
    """Return the vectors before each one in its document, from shards in the order of the text, None for no vector.

    A token at the same position of its row has the same vector in every document.
    """
    found: dict[tuple, set] = {}
    with activation_source(max_norm_multiple=None, **changes) as source:
        for number in range(2):
            shard = source._shards.shard(Part.train, number)
            order = torch.randperm(len(shard), generator=torch.Generator().manual_seed(number)).argsort()
            vectors, documents = shard.activations[order].tolist(), shard.documents[order].tolist()
            for place, vector in enumerate(vectors):
                same = place > 0 and documents[place] == documents[place - 1]
                found.setdefault(tuple(vector), set()).add(tuple(vectors[place - 1]) if same else None)
    return found


def pairs(batch: Batch) -> list[tuple[tuple, tuple | None]]:
    assert batch.partners is not None
    rows = zip(batch.inputs.tolist(), batch.partners.inputs.tolist(), batch.partners.there.tolist(), strict=True)
    return [(tuple(vector), tuple(partner) if there else None) for vector, partner, there in rows]


@pytest.mark.parametrize("stored", [False, True], ids=["memory", "store"])
def test_partner_is_the_vector_before_in_the_document(stored: bool, tmp_path: Path):
    wanted = partners_by_vector()
    # Ten batches are more than two epochs.
    found = [pair for batch in take(10, tmp_path if stored else None) for pair in pairs(batch)]
    assert all(partner in wanted[vector] for vector, partner in found)
    assert 9 <= sum(partner is None for _, partner in found) < len(found) / 2


def test_batches_are_those_without_partners():
    with activation_source() as source:
        batches = source.batches(BATCH)
        plain = [next(batches) for _ in range(6)]
    for batch, alone in zip(take(6), plain, strict=True):
        assert alone.partners is None
        assert torch.equal(batch.inputs, alone.inputs)
        assert batch.targets is batch.inputs


def test_position_resumes_with_the_next_partners():
    whole = take(9)
    with activation_source(partners=True) as source:
        batches = source.batches(BATCH)
        for _ in range(6):
            next(batches)
        state = source.state_dict()
    with activation_source(partners=True) as source:
        source.load_state_dict(state)
        assert pairs(next(source.batches(BATCH))) == pairs(whole[6])


def test_massive_vectors_are_no_partners():
    everything = partners_by_vector(model=sinking_model())
    batches = take(8, model=sinking_model())
    largest, without = torch.cat([batch.inputs for batch in batches]).norm(dim=1).max(), 0
    for vector, partner in [pair for batch in batches for pair in pairs(batch)]:
        if partner is None:
            without += None not in everything[vector]
        else:
            assert partner in everything[vector]
            assert torch.tensor(partner).norm() <= 2 * largest
    assert without > 0


def test_source_without_an_order_is_refused():
    words = ["source=sparse_sources", "tracking=none", "arch=batch_topk", "arch.d_sae=64", "loss=tsae"]
    with pytest.raises(ValueError, match=r"loss\.contrast .*needs a source with partners.*source=activations"):
        check(composed_settings(words, {}))


def test_partners_have_the_layout_of_inputs():
    def shape(batch: Batch) -> Tensor:
        assert batch.partners is not None
        return batch.partners.inputs

    for read, parts in ((BETWEEN, 1), (BOTH, 2)):
        (batch,) = take(1, read=read)
        assert shape(batch).shape == (BATCH, parts * D_IN)
        if parts == 2:
            assert torch.equal(shape(batch)[:, D_IN:], 2 * shape(batch)[:, :D_IN])

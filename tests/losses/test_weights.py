"""Terms of the weights by hand and against their definitions."""

import pytest
import torch
from torch import Tensor

from fsae.losses.term import LossTerm, Moment
from fsae.losses.weights import Orthogonality, WeightNorm, nearest_rows
from tests.architectures import build, gradients, samples, with_weights


def moment(step: int = 0, seed: int = 0) -> Moment:
    generator = torch.Generator().manual_seed(seed)
    return Moment(torch.tensor([], dtype=torch.int64), step=step, steps=100, generator=generator)


def number(term: LossTerm, W_enc: list, W_dec: list, at: Moment | None = None) -> float:
    autoencoder = with_weights("standard", {"W_enc": W_enc, "W_dec": W_dec})
    return float(term.measure(autoencoder(samples(3, len(W_enc))), at or moment()).value.detach())


def test_weight_norm_by_hand():
    # 1 + 4 + 0 + 1 and 1 + 0 + 0 + 4; the published weight is 1e-4.
    assert number(WeightNorm(), [[1.0, 2.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]]) == 11
    assert WeightNorm().weight * 11 == pytest.approx(0.0011)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], (0.36 + 0.64 + 0.64) / 3),  # maxima .6, .8, .8
        ([[2.0, 0.0], [3.0, 4.0], [0.0, 0.5]], (0.36 + 0.64 + 0.64) / 3),  # of any length
        ([[1.0, 0.0], [-1.0, 0.0]], 0),  # opposite rows: the maximum is -1, and counts 0
        ([[1.0, 0.0]], 0),
    ],
)
def test_orthogonality_by_hand(rows: list, wanted: float):
    W_enc = torch.zeros(2, len(rows)).tolist()
    assert number(Orthogonality(every=1), W_enc, rows) == pytest.approx(wanted)


def definition(rows: Tensor, chunks: list[Tensor]) -> Tensor:
    """(1/K) sum over chunks, of full matrices of cosines."""
    unit, values = rows / rows.norm(dim=1, keepdim=True), []
    for chunk in chunks:
        cosines = unit[chunk] @ unit[chunk].T
        others = cosines.masked_fill(torch.eye(len(chunk), dtype=torch.bool), -2.0)
        values.append(others.amax(1).clamp_min(0).square().mean())
    return torch.stack(values).mean()


@pytest.mark.parametrize("chunk", [3, 7, 30])
def test_orthogonality_is_its_definition(chunk: int):
    autoencoder, other = build("standard", 4, 30), build("standard", 4, 30)
    value = Orthogonality(chunk=chunk, every=1).measure(autoencoder(samples(3, 4)), moment(seed=4)).value
    order = torch.randperm(30, generator=torch.Generator().manual_seed(4))
    count = -(-30 // chunk)
    wanted = definition(other.W_dec, list(order.tensor_split(count)))
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=0)
    found = gradients(value, autoencoder)
    torch.testing.assert_close(found["W_dec"], gradients(wanted, other)["W_dec"], rtol=1e-10, atol=1e-14)
    assert not found["W_enc"].any()


@pytest.mark.parametrize("rows_at_once", [1, 3, 10, 99])
def test_nearest_rows(rows_at_once: int):
    rows = samples(10, 3)
    products = rows @ rows.T
    products.fill_diagonal_(-torch.inf)
    assert torch.equal(nearest_rows(rows, rows_at_once), products.argmax(1))


def test_each_product_is_computed_once(monkeypatch: pytest.MonkeyPatch):
    computed = []
    product = torch.Tensor.__matmul__

    def counted(a: Tensor, b: Tensor) -> Tensor:
        computed.append(a.shape[0] * b.shape[1])
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", counted)
    nearest_rows(samples(12, 3), 3)
    # Rows 3 at a time, with 12, 9, 6 and 3 rows: 90 instead of 144.
    assert computed == [36, 27, 18, 9]


def test_orthogonality_counts_every_nth_step_n_times():
    autoencoder = build("standard")
    record = autoencoder(samples(3))
    each = float(Orthogonality(every=1).measure(record, moment(step=10)).value.detach())
    values = [float(Orthogonality(every=5).measure(record, moment(step)).value.detach()) for step in range(10, 20)]
    assert values == pytest.approx([5 * each, 0, 0, 0, 0] * 2)


@torch.no_grad()
def test_orthogonality_that_is_only_measured_has_its_value_in_every_step():
    record = build("standard")(samples(3))
    values = [float(Orthogonality(every=5).measure(record, moment(step)).value) for step in range(10, 15)]
    assert values == pytest.approx([float(Orthogonality(every=1).measure(record, moment(10)).value)] * 5)
    assert values[0] > 0


def test_chunks_are_drawn_for_each_measurement():
    record, at = build("standard", 4, 30)(samples(3, 4)), moment()
    term = Orthogonality(chunk=5, every=1)
    first, second = (float(term.measure(record, at).value.detach()) for _ in range(2))
    assert first != second

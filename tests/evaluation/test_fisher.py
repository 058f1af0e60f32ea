import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.record import ForwardRecord
from fsae.evaluation.fisher import FisherMetric
from fsae.losses.fisher import Fisher, FisherEstimator, FisherForm, fisher_sums
from fsae.sparse.codes import Codes
from tests.architectures import ARCHITECTURES, build, each_architecture, samples
from tests.evaluation.records import CPU, record_of

each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])


def measured(fisher: Fisher, *records: ForwardRecord) -> dict[str, float]:
    metric = FisherMetric(fisher, CPU)
    for record in records:
        metric.update(record)
    return metric.compute()


def with_codes(f: Tensor) -> ForwardRecord:
    nothing = record_of([[0.0]] * len(f), [[0.0] * f.shape[1]] * len(f), [[0.0]] * f.shape[1])
    return replace(nothing, codes=Codes(f))


def squared_correlation(f: Tensor) -> float:
    """mean_{i != j} r_ij^2 by torch's own corrcoef, over latents that vary."""
    r = torch.corrcoef(f[:, (f != f[0]).any(0)].double().T)
    n = len(r)
    return ((r.square().sum() - n) / (n * (n - 1))).item()


@each_path
def test_by_hand(sparse):
    # Latents 0 and 1: codes (1, 0, 1, 0) and (2, 2, 0, 0) are uncorrelated; latent 2 repeats latent 0, 3 is constant.
    codes = [[1, 2, 3, 1], [0, 2, 0, 1], [1, 0, 3, 1], [0, 0, 0, 1]]
    record = record_of([[0.0]] * 4, codes, [[0.0]] * 4, sparse=sparse)
    numbers = measured(Fisher(form=FisherForm.post, estimator=FisherEstimator.batch), record)
    # Three latents vary, in six ordered pairs; r^2 is 1 for (0, 2) and (2, 0).
    assert numbers["code_correlation"] == pytest.approx(2 / 6)
    assert numbers["code_correlation_excess"] == pytest.approx(2 / 6 - 1 / 3, abs=1e-7)
    # F = (1/4) sum_b 4 f f': sums of products are 01: 2, 02: 6, 03: 2, 12: 6, 13: 4, 23: 6; of squares 2, 8, 18, 4.
    assert numbers["fisher"] == pytest.approx(2 * (2**2 + 6**2 + 2**2 + 6**2 + 4**2 + 6**2))
    assert numbers["fisher_ratio"] == pytest.approx(264 / (2**2 + 8**2 + 18**2 + 4**2))
    assert numbers["fisher_batch"] == 4


@each_architecture
@each_path
@pytest.mark.parametrize("form", list(FisherForm), ids=lambda form: form.name)
@pytest.mark.parametrize("estimator", list(FisherEstimator), ids=lambda estimator: estimator.name)
def test_means_over_full_batches(arch, sparse, form, estimator):
    autoencoder = build(arch, dtype=torch.float32).eval()
    if not Fisher(form=form).fields_read <= autoencoder.settings.provides:
        return
    if ARCHITECTURES[arch].given_codes and form is FisherForm.reconstruction:
        return  # the residual is orthogonal to all rows that are on
    with torch.no_grad():
        records = [autoencoder(x, sparse) for x in samples(35, dtype=torch.float32).split(10)]
    assert len(records[-1].inputs) == 5
    numbers = measured(Fisher(form=form, estimator=estimator), *records)
    with torch.no_grad():
        sums = [fisher_sums(record, form, estimator) for record in records[:-1]]
    off_diagonal = sum(s.off_diagonal.item() for s in sums) / 3
    diagonal = sum(s.diagonal.item() for s in sums) / 3
    # The unbiased estimator's difference is near 0 and in float32 here, so the error is relative to the diagonal.
    assert numbers["fisher"] == pytest.approx(off_diagonal, rel=1e-4, abs=1e-5 * diagonal)
    assert numbers["fisher_ratio"] == pytest.approx(off_diagonal / diagonal, rel=1e-4, abs=1e-5)
    correlations = [squared_correlation(record.codes.dense()) for record in records[:-1]]
    assert numbers["code_correlation"] == pytest.approx(sum(correlations) / 3, rel=1e-4)


def test_a_set_smaller_than_one_batch_is_one_batch():
    f = samples(7)
    numbers = measured(Fisher(form=FisherForm.post, estimator=FisherEstimator.batch), with_codes(f))
    assert numbers["fisher_batch"] == 7
    assert numbers["code_correlation"] == pytest.approx(squared_correlation(f))


@pytest.mark.parametrize("batch", [5, 20, 200])
def test_excess_is_zero_on_average_for_independent_latents(batch):
    # Sparse, skewed codes; their correlation is about 1/(B - 1) at every batch size.
    generator = torch.Generator().manual_seed(batch)
    f = torch.relu(torch.randn(20 * batch, 60, generator=generator)).square()
    numbers = measured(Fisher(), *(with_codes(part) for part in f.split(batch)))
    null = 1 / (batch - 1)
    assert numbers["code_correlation"] == pytest.approx(null, rel=0.1)
    assert abs(numbers["code_correlation_excess"]) < 0.1 * null


def test_excess_sees_dependence_at_any_batch_size():
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(600, 1, generator=generator)
    f = torch.relu(torch.randn(600, 30, generator=generator) + shared)
    small, large = (
        measured(Fisher(), *(with_codes(part) for part in f.split(batch)))["code_correlation_excess"]
        for batch in (20, 200)
    )
    assert large > 0.1
    assert small == pytest.approx(large, rel=0.2)


@pytest.mark.parametrize(
    "codes", [[[1.0, 2.0]] * 4, [[0.0, 0.0]] * 4, [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [5.0, 0.0]]]
)
def test_nothing_correlates_where_fewer_than_two_latents_vary(codes):
    numbers = measured(
        Fisher(form=FisherForm.post, estimator=FisherEstimator.batch), record_of([[0.0]] * 4, codes, [[0.0]] * 2)
    )
    assert numbers["code_correlation"] == 0


@pytest.mark.parametrize("form", list(FisherForm), ids=lambda form: form.name)
def test_large_activations_do_not_overflow(form):
    # In float32 the sums of `pre`, `post` and `reconstruction` overflow (3e38) from about 1e9 on.
    autoencoder = build("standard", d_in=6, d_sae=40, dtype=torch.float32).eval()
    with torch.no_grad():
        numbers = measured(Fisher(form=form), autoencoder(1e9 * samples(16, 6, dtype=torch.float32)))
    assert math.isfinite(numbers["fisher"])
    assert math.isfinite(numbers["fisher_ratio"])


def test_a_single_sample_is_refused():
    with pytest.raises(ValueError, match="single vector"):
        measured(Fisher(), with_codes(torch.ones(1, 3)))

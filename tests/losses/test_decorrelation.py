"""The codes' covariance against its definition, by full matrices."""

import pytest
import torch
from torch import Tensor

from fsae.losses.decorrelation import Decorrelation
from fsae.losses.fisher import FisherEstimator
from fsae.losses.term import Moment
from fsae.sparse.codes import Codes
from tests.architectures import build, each_architecture, gradients, relative_error, samples
from tests.losses.test_fisher import definition, sparse_of

NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))
each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])


@pytest.mark.parametrize("estimator", list(FisherEstimator), ids=lambda estimator: estimator.name)
@pytest.mark.parametrize("batch", [5, 17])
@each_architecture
@each_path
def test_value_and_gradients_are_the_definition(arch: str, estimator: FisherEstimator, batch: int, sparse: bool):
    autoencoder, other, x = build(arch), build(arch), samples(batch)
    codes = other(x).codes.dense()
    wanted, diagonal = definition(codes - codes.mean(0), estimator)
    value = Decorrelation(estimator=estimator).measure(autoencoder(x, sparse), NO_DEAD).value
    whole = float((wanted.abs() + diagonal.abs()).detach())
    torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12 * whole)
    found = gradients(value, autoencoder)
    for name, grad in gradients(wanted, other).items():
        assert relative_error(found[name], grad) < 1e-9, name


@each_path
def test_by_hand(sparse: bool):
    # Codes [1 0], [1 2], [0 3] around means 2/3 and 5/3: the covariance is
    # (1/3) [1/3 * -5/3 + 1/3 * 1/3 - 2/3 * 4/3] = (1/27) [-5 + 1 - 8] = -12/27. Twice its square.
    codes = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)
    autoencoder = build("standard", 2, 2)
    record = autoencoder(samples(3, 2))
    record = type(record)(**{**vars(record), "codes": sparse_of(codes) if sparse else Codes(codes)})
    found = Decorrelation(estimator=FisherEstimator.batch).measure(record, NO_DEAD).value
    torch.testing.assert_close(found, torch.tensor(2 * (12 / 27) ** 2, dtype=torch.float64))


def test_it_ends_where_codes_are_uncorrelated():
    # Four samples in which two latents are on in all combinations.
    codes = torch.tensor([[0.0, 0.0], [0.0, 3.0], [2.0, 0.0], [2.0, 3.0]], dtype=torch.float64)
    leaf: Tensor = codes.requires_grad_()
    record = build("standard", 2, 2)(samples(4, 2))
    record = type(record)(**{**vars(record), "codes": Codes(leaf)})
    value = Decorrelation(estimator=FisherEstimator.batch).measure(record, NO_DEAD).value
    (grad,) = torch.autograd.grad(value, leaf)
    assert float(value.detach()) == pytest.approx(0)
    torch.testing.assert_close(grad, torch.zeros_like(grad))

"""The decoder's closed form against autograd, least squares by brute force, and the published formula."""

import copy
from itertools import product

import pytest
import torch
from torch import Tensor

from fsae.sparse.codes import Codes
from fsae.sparse.gram import SAMPLES_AT_ONCE
from fsae.sparse.pattern import Pattern
from fsae.training.least_squares import LeastSquares
from tests.training.runs import differences

N_CODES, D_IN, SAMPLES = 7, 4, 40


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sparse(dense: Tensor) -> Codes:
    pattern = Pattern.of_mask(dense != 0)
    return Codes(dense[pattern.rows, pattern.columns], pattern)


def problem(samples: int = SAMPLES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return codes, about a third of which are on, and their targets; neither has mean 0."""
    z, x = drawn(samples, N_CODES, seed=seed), drawn(samples, D_IN, seed=seed + 1)
    return (z + 0.5).where(z > 0.4, 0.0), x + 2.0


def seen(z: Tensor, x: Tensor, by: int = SAMPLES, at_once: int = SAMPLES_AT_ONCE) -> LeastSquares:
    statistics = LeastSquares(at_once)
    for some_z, some_x in zip(z.split(by), x.split(by), strict=True):
        statistics.add(sparse(some_z), some_x)
    return statistics


COSTS = [0.0, 1e-6, 0.3, 50.0]


@pytest.mark.parametrize(("alpha", "beta", "mu", "nu"), list(product([1e-6, 0.3], COSTS, COSTS, COSTS)))
def test_the_solution_has_no_gradient(alpha: float, beta: float, mu: float, nu: float):
    z, x = problem()
    W_t, b_t = drawn(N_CODES, D_IN, seed=5), drawn(D_IN, seed=6)
    W, b, *_ = seen(z, x).solve(W_t, b_t, alpha=alpha, beta=beta, mu=mu, nu=nu)
    W.requires_grad_()
    b.requires_grad_()
    parts = [
        (x - z @ W - b).square().sum(1).mean(),
        alpha * W.square().sum(),
        beta * b.square().sum(),
        mu * (W - W_t).square().sum(),
        nu * (b - b_t).square().sum(),
    ]
    # Relative to the parts' own gradients, which cancel.
    own = [torch.autograd.grad(each, (W, b), retain_graph=True, materialize_grads=True) for each in parts]
    size = max(float(gradient.abs().max()) for pair in own for gradient in pair)
    gradient = torch.autograd.grad(torch.stack(parts).sum(), (W, b))
    # The first part's gradient is itself a difference of terms as large as x.
    assert max(float(each.abs().max()) for each in gradient) < 1e-12 * max(size, float(x.abs().max()))


def test_solution_without_costs_is_ordinary_least_squares():
    z, x = problem()
    W, b, *_ = seen(z, x).solve(torch.zeros(N_CODES, D_IN), torch.zeros(D_IN))
    with_one = torch.cat([z, torch.ones(SAMPLES, 1, dtype=torch.float64)], dim=1)
    wanted = torch.linalg.lstsq(with_one, x).solution
    torch.testing.assert_close(torch.cat([W, b.unsqueeze(0)]), wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("N", "alpha", "beta", "mu", "nu"), [(40, 0.1, 0.2, 0.3, 0.4), (4000, 7.0, 0.0, 0.0, 50.0)])
def test_solution_is_the_published_one_with_weights_over_the_samples(N, alpha, beta, mu, nu):
    """Samples as columns and W as (d_in, d_sae), as published; a batch of B stands for N."""
    z, x = problem()
    W_t, b_t = drawn(N_CODES, D_IN, seed=5), drawn(D_IN, seed=6)
    B, Z, X = SAMPLES, z.T, x.T
    S, z_mean, x_mean = beta + nu + N, Z.mean(1), X.mean(1)
    A = (alpha + mu) * torch.eye(N_CODES).double() + N / B * Z @ Z.T - N**2 / S * torch.outer(z_mean, z_mean)
    C = mu * W_t.T + N / B * X @ Z.T - N / S * torch.outer(N * x_mean + nu * b_t, z_mean)
    W = C @ A.inverse()
    b = nu / S * b_t + N / S * (x_mean - W @ z_mean)
    found = seen(z, x).solve(W_t, b_t, alpha=alpha / N, beta=beta / N, mu=mu / N, nu=nu / N)
    torch.testing.assert_close(found.W_dec, W.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.b_dec, b, rtol=1e-10, atol=1e-10)


def solved(statistics: LeastSquares) -> Tensor:
    W, b, *_ = statistics.solve(drawn(N_CODES, D_IN, seed=5), drawn(D_IN, seed=6), alpha=0.1, nu=0.2)
    return torch.cat([W, b.unsqueeze(0)])


@pytest.mark.parametrize("by", [1, 7, SAMPLES])
@pytest.mark.parametrize("at_once", [1, 16])
def test_solution_does_not_depend_on_the_batches_of_samples(by: int, at_once: int):
    z, x = problem()
    whole = LeastSquares()
    whole.add(Codes(z), x)
    torch.testing.assert_close(solved(seen(z, x, by, at_once)), solved(whole), rtol=1e-12, atol=1e-12)


def test_dense_and_sparse_codes_may_alternate():
    z, x = problem()
    mixed = LeastSquares()
    for number, (some_z, some_x) in enumerate(zip(z.split(9), x.split(9), strict=True)):
        mixed.add(Codes(some_z) if number % 2 else sparse(some_z), some_x)
    torch.testing.assert_close(solved(mixed), solved(seen(z, x)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_a_factor_lowers_the_weight_of_earlier_samples(factor: float):
    (old_z, old_x), (z, x) = problem(), problem(seed=11)
    statistics = seen(old_z, old_x)
    statistics.decay(factor)
    statistics.add(sparse(z), x)
    assert statistics.samples == SAMPLES * (1 + factor)
    # The same as a sample of that weight, whose code, target and constant are by its root.
    root, both = factor**0.5, LeastSquares()
    both.add(Codes(torch.cat([old_z * root, z])), torch.cat([old_x * root, x]))
    W, b, *_ = statistics.solve(torch.zeros(N_CODES, D_IN), torch.zeros(D_IN))
    constant = torch.cat([torch.full((SAMPLES, 1), root), torch.ones(SAMPLES, 1)]).double()
    wanted = torch.linalg.lstsq(
        torch.cat([torch.cat([old_z * root, z]), constant], 1), torch.cat([old_x * root, x])
    ).solution
    torch.testing.assert_close(torch.cat([W, b.unsqueeze(0)]), wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("mu", [0.0, 0.4])
def test_latents_that_never_fired_stay_as_they_were(mu: float):
    z, x = problem()
    z[:, 2] = 0
    W_t = drawn(N_CODES, D_IN, seed=5)
    W, *_ = seen(z, x).solve(W_t, torch.zeros(D_IN), alpha=0.1, mu=mu)
    assert torch.equal(W[2], W_t[2])


def test_equations_without_a_single_solution_name_the_setting_to_raise():
    z, x = problem()
    z[:, 2] = 0
    with pytest.raises(ValueError, match=r"1 latents that never fired.*raise trainer\.alpha or trainer\.mu"):
        seen(z, x).solve(torch.zeros(N_CODES, D_IN), torch.zeros(D_IN))


def test_codes_that_are_not_finite_are_reported():
    z, x = problem()
    z[3, 2] = torch.inf
    with pytest.raises(ValueError, match=r"codes became infinite or NaN; lower trainer\.lr"):
        seen(z, x).solve(torch.zeros(N_CODES, D_IN), torch.zeros(D_IN), alpha=1.0)


def test_the_condition_number_is_that_of_the_equations():
    z, x = problem()
    found = seen(z, x).solve(torch.zeros(N_CODES, D_IN), torch.zeros(D_IN), alpha=0.01).condition()
    A = z.T @ z / SAMPLES - torch.outer(z.mean(0), z.mean(0)) + 0.01 * torch.eye(N_CODES)
    # An estimate from below that is hardly ever off by more than a factor.
    assert 0.3 < found / float(torch.linalg.cond(A, 1)) < 1.001


@pytest.mark.parametrize("samples", [0, 5, SAMPLES])
def test_continues_from_a_state_bit_for_bit(samples: int):
    z, x = problem()
    one, other = LeastSquares(samples_at_once=12), LeastSquares(samples_at_once=12)
    for some_z, some_x in zip(z[:samples].split(5), x[:samples].split(5), strict=True):
        if samples:
            one.add(sparse(some_z), some_x)
    other.load_state_dict(copy.deepcopy(one.state_dict()), torch.device("cpu"))
    assert not differences(one.state_dict(), other.state_dict())
    for statistics in (one, other):
        statistics.add(sparse(z[:7]), x[:7])
        statistics.decay(0.5)
        statistics.add(sparse(z[7:]), x[7:])
    assert torch.equal(solved(one), solved(other))


def test_statistics_do_not_grow_with_the_samples():
    statistics, sizes = LeastSquares(samples_at_once=12), []
    z, x = problem()
    for _ in range(30):
        statistics.add(sparse(z[:4]), x[:4])
        state = statistics.state_dict()
        waiting = [tensor for codes in state["zz"]["waiting"] for tensor in codes.values()]
        sizes.append(sum(each.numel() for each in (state["zz"]["total"], *state["others"], *waiting)))
    assert max(sizes[3:]) == max(sizes[:3])


def float32_problem(samples: int) -> tuple[Tensor, Tensor]:
    """256 latents, the 15 largest of each sample by magnitude on, and five that fire in one sample and no other."""
    z, x = drawn(samples, 256).float(), drawn(samples, D_IN, seed=1).float() + 2
    z = z.where(z.abs() >= z.abs().topk(15).values[:, -1:], 0.0)
    z[:, 250:255] = 0.0
    z[3, 250:255] = torch.tensor([0.3, -1.7, 2.2, 0.9, 1.1])
    return z, x


@pytest.mark.parametrize("samples", [90, 180, 9000])
@pytest.mark.parametrize("is_sparse", [True, False])
def test_of_float32_codes_the_equations_are_those_of_float64(samples: int, is_sparse: bool):
    """More latents than samples, some of which fire only together, and the ridge of splines/pam_mnist."""
    z, x = float32_problem(samples)
    alpha, statistics = 1.7e-11, LeastSquares()
    for some_z, some_x in zip(z.split(90), x.split(90), strict=True):
        statistics.add(sparse(some_z) if is_sparse else Codes(some_z), some_x)
    W, b, U, _ = statistics.solve(torch.zeros(256, D_IN), torch.zeros(D_IN), alpha=alpha)
    # Along directions in which no samples differ, only the ridge is left.
    assert float(torch.linalg.eigvalsh(U.T @ U)[0]) == pytest.approx(alpha, rel=0.01)
    z, x = z.double(), x.double()
    mean_z, mean_x = z.mean(0), x.mean(0)
    # By QR, of equations whose condition number is the root of these.
    ridge = torch.cat([(z - mean_z) / samples**0.5, alpha**0.5 * torch.eye(256).double()])
    targets = torch.cat([(x - mean_x) / samples**0.5, torch.zeros(256, D_IN).double()])
    wanted = torch.linalg.lstsq(ridge, targets).solution
    torch.testing.assert_close(W, wanted, rtol=1e-3, atol=1e-3)
    residual = x - z @ W - b
    sizes = z.abs().T @ (x.abs() + z.abs() @ W.abs() + b.abs()) / samples
    gradient = alpha * W - z.T @ residual / samples
    assert float(gradient.abs().max()) < 1e-12 * float(sizes.max())
    assert float(residual.mean(0).abs().max()) < 1e-12 * float((x.abs() + z.abs() @ W.abs()).max())


def test_float32_codes_are_summed_in_float64():
    z, x = (each.float() for each in problem(4000))
    statistics = LeastSquares()
    for some_z, some_x in zip(z.split(50), x.split(50), strict=True):
        statistics.add(sparse(some_z), some_x)
    torch.testing.assert_close(solved(statistics), solved(seen(z.double(), x.double(), 4000)), rtol=1e-12, atol=1e-13)

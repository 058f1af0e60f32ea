"""The Jacobian term of a pair against torch.func's Jacobian of the composed function."""

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.selection import KSettings
from fsae.couplings.jacobian import JacobianCoupling, JacobianSparsity, check_pair
from fsae.language_models.mlp import MLP, Affine
from tests.architectures import build, samples, settings_of, with_weights

D_IN, D_MLP, K = 5, 7, 3
INPUT_SCALE, TARGET_SCALE = 0.8, 2.5

each_mlp = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
each_arch = pytest.mark.parametrize("arch", ["topk", "abs_topk", "group_topk", "groupmax"])


def small_mlp(gated: bool) -> MLP:
    W_in, W_out, W_gate, biases = (samples(*shape, seed=seed) for seed, shape in enumerate(
        [(D_IN, D_MLP), (D_MLP, D_IN), (D_IN, D_MLP), (3, D_MLP)], 5
    ))  # fmt: skip
    into, out, gate = Affine(W_in, biases[0]), Affine(W_out, biases[1, :D_IN]), Affine(W_gate, biases[2])
    return MLP(into=into, out=out, activation=torch.nn.functional.silu, gate=gate if gated else None)


def pair(arch: str) -> list[SparseAutoencoder]:
    return [build(arch, seed=seed) for seed in (0, 1)]


def measured(
    autoencoders: list[SparseAutoencoder], x: Tensor, mlp: MLP, sparse: bool = True, at_once: int = 10**6, **settings
) -> tuple[JacobianCoupling, float]:
    """Return the coupling after one backward pass of weight 0.7 on raw inputs, and the term's value."""
    scales = INPUT_SCALE, TARGET_SCALE
    coupling = JacobianCoupling(JacobianSparsity(weight=0.7, **settings), mlp, *scales, entries_at_once=at_once)
    both = (x * INPUT_SCALE, mlp(x) * TARGET_SCALE)
    records = [each(vectors, sparse=sparse) for each, vectors in zip(autoencoders, both, strict=True)]
    coupling.backward(autoencoders, records, 0, 1.0)
    return coupling, coupling.read_interval()["jacobian"]


def defined(autoencoders: list[SparseAutoencoder], x: Tensor, mlp: MLP) -> Tensor:
    """The mean over samples and pairs of active latents of |d code_j / d code_i|, at the true input."""
    first, second = autoencoders
    total = x.new_zeros(())
    for sample in x:
        codes = first(sample[None] * INPUT_SCALE).codes.dense()[0].detach()
        on = second(mlp(sample[None]) * TARGET_SCALE).codes.dense()[0] != 0

        def composed(found: Tensor, sample: Tensor = sample, codes: Tensor = codes, on: Tensor = on) -> Tensor:
            moved = sample + (found - codes) @ first.W_dec / INPUT_SCALE
            # Where a code is on, it is its pre-activation.
            pre = (mlp(moved) * TARGET_SCALE - second.b_dec) @ second.W_enc + second.get_parameter("b_enc")
            return pre * on

        jacobian = torch.func.jacrev(composed)(codes)
        assert isinstance(jacobian, Tensor)
        total = total + jacobian[:, codes != 0].abs().sum()
    assert isinstance(first.settings, KSettings)
    return total / (len(x) * first.settings.k**2)


@each_mlp
@each_arch
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_value_and_gradient_are_those_of_the_composed_function(arch: str, gated: bool, sparse: bool):
    autoencoders, x, mlp = pair(arch), samples(6), small_mlp(gated)
    _, value = measured(autoencoders, x, mlp, sparse)
    wanted = defined(autoencoders, x, mlp)
    assert value == pytest.approx(wanted.item(), rel=1e-10)
    assert value > 0.01
    first, second = autoencoders
    W_dec, W_enc = torch.autograd.grad(0.7 * wanted, [first.W_dec, second.W_enc])
    torch.testing.assert_close(first.W_dec.grad, W_dec, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(second.W_enc.grad, W_enc, rtol=1e-10, atol=1e-12)
    # The term pulls on nothing else.
    for each, own in ((first, "W_dec"), (second, "W_enc")):
        assert all(weight.grad is None for name, weight in each.named_parameters() if name != own)


def test_value_by_hand():
    # Pre-activations (1, -1) of the MLP: only its first unit passes a change. 0.6 * 1 * 2 + 0.8 * 0 * 3 = 1.2.
    unchanged = Affine(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    mlp = MLP(into=unchanged, out=unchanged, activation=torch.relu)
    first = with_weights("topk", {"W_enc": [[1.0], [0.0]], "W_dec": [[0.6, 0.8]]}, k=1)
    second = with_weights("topk", {"W_enc": [[2.0], [3.0]], "W_dec": [[1.0, 0.0]]}, k=1)
    x = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    coupling = JacobianCoupling(JacobianSparsity(weight=1.0), mlp, 1.0, 1.0)
    coupling.backward([first, second], [first(x, sparse=True), second(mlp(x), sparse=True)], 0, 1.0)
    assert coupling.read_interval() == {"jacobian": pytest.approx(1.2), "jacobian_weighted": pytest.approx(1.2)}


@each_mlp
def test_samples_taken_some_at_a_time_give_the_same_gradient(gated: bool):
    # Six samples of three latents name more rows than the thirteen of the dictionary, two samples fewer.
    x, mlp = samples(6), small_mlp(gated)
    whole, parts = pair("topk"), pair("topk")
    assert measured(whole, x, mlp)[1] == pytest.approx(measured(parts, x, mlp, at_once=2 * K * D_MLP)[1])
    torch.testing.assert_close(parts[0].W_dec.grad, whole[0].W_dec.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parts[1].W_enc.grad, whole[1].W_enc.grad, rtol=1e-12, atol=1e-14)


def test_some_samples_of_the_batch_are_measured():
    x, mlp = samples(6), small_mlp(gated=True)
    few, alone = pair("topk"), pair("topk")
    assert measured(few, x, mlp, samples=2)[1] == pytest.approx(measured(alone, x[:2], mlp)[1])
    torch.testing.assert_close(few[0].W_dec.grad, alone[0].W_dec.grad)


def test_weight_rises_and_nothing_is_measured_without_it():
    autoencoders, x, mlp = pair("topk"), samples(4), small_mlp(gated=False)
    coupling = JacobianCoupling(JacobianSparsity(weight=0.7, warm_up=0.5), mlp, 1.0, 1.0)
    records = [autoencoders[0](x, sparse=True), autoencoders[1](mlp(x), sparse=True)]
    coupling.backward(autoencoders, records, 0, 0.0)
    assert coupling.read_interval() == {}
    coupling.backward(autoencoders, records, 1, 0.25)
    resumed = JacobianCoupling(JacobianSparsity(weight=0.7, warm_up=0.5), mlp, 1.0, 1.0)
    resumed.load_state_dict(coupling.state_dict())
    found = resumed.read_interval()
    assert found["jacobian_weighted"] == pytest.approx(0.35 * found["jacobian"])


@pytest.mark.parametrize("arch", ["gated", "batch_topk", "lista", "matching_pursuit"])
def test_architectures_without_a_block_are_refused(arch: str):
    with pytest.raises(ValueError, match=r"choose one that has both, as in arch=topk"):
        check_pair(settings_of(arch))

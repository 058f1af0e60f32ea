"""Auxiliary terms reach what they are for and nothing else."""

import pytest
import torch

from fsae.losses.auxiliary import AuxK, GateReconstruction
from fsae.losses.term import Moment
from tests.architectures import (
    build,
    each_with,
    each_with_pre_activations,
    gradients,
    samples,
    with_weights,
)

each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))
DEAD = torch.tensor([1, 4, 8, 12])


@each_path
def test_gate_reconstruction_by_hand(sparse: bool):
    weights = {"W_enc": [[1.0, 0.0], [0.0, 1.0]], "W_dec": [[1.0, 1.0], [0.0, 2.0]], "b_dec": [1.0, 0.0]}
    weights |= {"b_gate": [1.0, -5.0], "b_mag": [9.0, 9.0]}
    record = with_weights("gated", weights)(torch.tensor([[2.0, 3.0]]).double(), sparse=sparse)
    # Gates relu([1 + 1, 3 - 5]) = [2 0]; through them 2 [1 1] + [1 0] = [3 2]; |[2 3] - [3 2]|^2 = 2.
    assert float(GateReconstruction().measure(record, NO_DEAD).value.detach()) == pytest.approx(2)


@each_path
def test_gate_reconstruction_trains_the_decoder_if_set(sparse: bool):
    autoencoder, x = build("gated"), samples(7)
    record = autoencoder(x, sparse=sparse)
    value = GateReconstruction(detach_decoder=False).measure(record, NO_DEAD).value
    W_dec, b_dec = torch.autograd.grad(value, [autoencoder.W_dec, autoencoder.b_dec])
    gate = torch.relu((x - autoencoder.b_dec) @ autoencoder.W_enc + autoencoder.get_parameter("b_gate"))
    error = gate @ autoencoder.W_dec + autoencoder.b_dec - x
    torch.testing.assert_close(W_dec, 2 / 7 * gate.T @ error)
    # As the decoder's bias, and as what the encoder subtracts.
    back = ((error @ autoencoder.W_dec.T) * (gate > 0)) @ autoencoder.W_enc.T
    torch.testing.assert_close(b_dec, 2 / 7 * (error - back).sum(0))


@each_path
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_gate_reconstruction_cannot_pull_the_decoder(sparse: bool, apply_b_dec_to_input: bool):
    """Other libraries' bug: an undetached path, by which the auxiliary reconstruction trains the decoder."""
    autoencoder = build("gated", apply_b_dec_to_input=apply_b_dec_to_input)
    x = samples(7)
    value = GateReconstruction().measure(autoencoder(x, sparse=sparse), NO_DEAD).value
    names = ("W_dec", "b_dec", "b_mag", "r_mag", "b_gate", "W_enc")
    parameters = [autoencoder.get_parameter(name) for name in names]
    W_dec, b_dec, b_mag, r_mag, b_gate, W_enc = torch.autograd.grad(value, parameters, allow_unused=True)
    # Not even in the graph: exactly nothing reaches the decoder or the magnitude path.
    assert W_dec is None
    assert b_mag is None
    assert r_mag is None
    assert b_gate.any()
    assert W_enc.any()
    if not apply_b_dec_to_input:
        assert b_dec is None
        return
    # As what the encoder subtracts, b_dec is part of the gate's input, and this is all the gradient that it gets:
    # minus the sum over the batch of the gradient in the encoder's input.
    inputs = (x - autoencoder.b_dec).detach().requires_grad_()
    gate = torch.relu(inputs @ autoencoder.W_enc + autoencoder.get_parameter("b_gate"))
    through = gate @ autoencoder.W_dec + autoencoder.b_dec
    (wanted,) = torch.autograd.grad((x - through).square().sum(1).mean(), inputs)
    torch.testing.assert_close(b_dec, -wanted.sum(0), rtol=1e-12, atol=1e-12)


@each_path
def test_aux_k_by_hand(sparse: bool):
    # topk with k=1: pre-activations [3 1 2 -1], latent 0 alone is on. x_hat = 3 [1 0], e = [3 4] - [3 0] = [0 4].
    weights = {
        "W_enc": [[1.0, 0.0, 0.0, 0.0], [0.0, 0.25, 0.5, -0.25]],
        "W_dec": [[1.0, 0.0], [0.0, 1.0], [0.0, 1.5], [1.0, 0.0]],
    }
    record = with_weights("topk", weights, k=1)(torch.tensor([[3.0, 4.0]]).double(), sparse=sparse)

    def value(k: int, dead: list[int]) -> float:
        return float(AuxK(k=k).measure(record, Moment(dead_latents=torch.tensor(dead))).value.detach())

    # The strongest of the dead 1, 2, 3 is 2: |[0 4] - 2 [0 1.5]|^2 = 1.
    assert value(1, [1, 2, 3]) == pytest.approx(1)
    # The strongest two are 2 and 1: [0 4] - [0 3] - [0 1] = 0.
    assert value(2, [3, 1, 2]) == pytest.approx(0)
    # One dead where four are wanted: |[0 4] - 1 [0 1]|^2 = 9, times 1/4.
    assert value(4, [1]) == pytest.approx(9 / 4)


@each_with_pre_activations
@each_path
def test_aux_k_without_dead_latents_is_zero(arch: str, sparse: bool):
    autoencoder = build(arch)
    value = AuxK().measure(autoencoder(samples(7), sparse=sparse), NO_DEAD).value
    assert float(value) == 0
    assert not value.requires_grad


@each_with("apply_b_dec_to_input")
@each_path
@pytest.mark.parametrize("k", [None, 2, 4, 100])
def test_aux_k_reaches_dead_latents_only(arch: str, sparse: bool, k: int | None):
    """Other libraries' bug: an AuxK that reaches nothing. If it takes the codes of dead latents, which are zero,
    instead of their pre-activations, no gradient reaches their encoder columns. If it does not detach the residual, it
    moves live latents."""
    autoencoder = build(arch, apply_b_dec_to_input=False)
    value = AuxK(k=k).measure(autoencoder(samples(30), sparse=sparse), Moment(dead_latents=DEAD)).value
    found = gradients(value, autoencoder)
    living = torch.ones(14, dtype=torch.bool)
    living[DEAD] = False
    assert not found["W_dec"][living].any()
    assert not found["W_enc"][:, living].any()
    assert found["W_dec"][DEAD].any(1).all()
    assert found["W_enc"][:, DEAD].any(0).all()
    # The residual is given and has no bias in it.
    assert not found["b_dec"].any()
    for name in found.keys() - {"W_enc", "W_dec", "b_dec"}:
        others = found[name] if autoencoder.latent_axis(name) is None else found[name][living]
        assert not others.any(), name


@each_with_pre_activations
@each_path
def test_aux_k_is_its_definition(arch: str, sparse: bool):
    """Other libraries' bug: a doubled b_dec. If dead latents are decoded like a reconstruction, b_dec, which the
    residual lacks already, is added a second time."""
    autoencoder = build(arch)
    record = autoencoder(samples(7), sparse=sparse)
    assert record.b_dec.any()
    value = AuxK(k=2).measure(record, Moment(dead_latents=DEAD)).value
    assert record.pre_activations is not None
    pre = record.pre_activations.dense()[:, DEAD]
    scores = pre if record.selection_score is None else record.selection_score(pre)
    chosen = scores >= scores.sort(dim=1, descending=True).values[:, 1:2]
    wanted = record.inputs - record.reconstruction - (pre * chosen) @ record.W_dec[DEAD]
    torch.testing.assert_close(value, wanted.square().sum(1).mean(), rtol=1e-10, atol=1e-12)


@each_path
def test_aux_k_reaches_b_dec_as_the_encoder_subtracts_it(sparse: bool):
    autoencoder = build("topk")
    value = AuxK(k=2).measure(autoencoder(samples(7), sparse=sparse), Moment(dead_latents=DEAD)).value
    found = gradients(value, autoencoder)
    # Shifting b_dec by v is shifting b_enc by -v W_enc.
    torch.testing.assert_close(found["b_dec"], -autoencoder.W_enc @ found["b_enc"], rtol=1e-10, atol=1e-12)


def test_aux_k_takes_half_the_width_by_default():
    autoencoder = build("topk", 6, 14)
    record = autoencoder(samples(7, 6))
    moment = Moment(dead_latents=DEAD)
    torch.testing.assert_close(AuxK().measure(record, moment).value, AuxK(k=3).measure(record, moment).value)


def test_aux_k_that_cannot_hold():
    with pytest.raises(ValueError, match=r"loss\.k is 0"):
        AuxK(k=0)


@each_path
@pytest.mark.parametrize("arch", ["topk", "gated"])
def test_aux_k_s_gradients_are_held_as_weights_are(arch: str, sparse: bool):
    autoencoder = build(arch)
    value = AuxK(k=2).measure(autoencoder(samples(7), sparse=sparse), Moment(dead_latents=DEAD)).value
    (grad,) = torch.autograd.grad(value, autoencoder.W_enc)
    assert grad.stride() == autoencoder.W_enc.stride()

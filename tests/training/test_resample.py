"""Resampling of dead latents, and re-initialisation by rates: deviations by hand, weights, moments, counters."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Ends, Layout
from fsae.autoencoders.topk import TopKSettings
from fsae.losses.objective import Objective
from fsae.matching import unit_rows
from fsae.sparse.codes import Codes
from fsae.training.dead_latents import DeadLatents
from fsae.training.gradient_learner import GradientLearner
from fsae.training.resample import Reinitialisation, Scope, reinitialise, resample
from tests.architectures import (
    ARCHITECTURES,
    build,
    each_architecture,
    each_with,
    each_with_pre_activations,
    samples,
    settings_of,
    twin,
)
from tests.streams import D_IN
from tests.training.runs import SCALE, adam, terms

BATCH, D_SAE = 20, 14
DEAD = [2, 5, 11]
ALIVE = [latent for latent in range(D_SAE) if latent not in DEAD]


def test_deviations_by_hand():
    # 10 samples at a target rate of 0.2: never on deviates by all of it, 2 times by nothing, 6 times by twice of it.
    deviations = Reinitialisation().deviations(torch.tensor([0, 2, 6]), 10, 0.2)
    torch.testing.assert_close(deviations, torch.tensor([1.0, 0.0, 8.0]))


@pytest.mark.parametrize(
    ("scope", "counts", "wanted"),
    [
        (Scope.latents, [0, 2, 6], [False, False, True]),
        # (1 + 0 + 8) / 3 = 3 is above 2.5, (1 + 0 + 3.375) / 3 is not.
        (Scope.autoencoder, [0, 2, 6], [True, True, True]),
        (Scope.autoencoder, [0, 2, 5], [False, False, False]),
    ],
)
def test_off_target_names_latents_or_all(scope: Scope, counts: list[int], wanted: list[bool]):
    assert Reinitialisation(scope=scope).off_target(torch.tensor(counts), 10, 0.2).tolist() == wanted


def with_dead(arch: str):
    """Return an autoencoder, an Adam with moments for everything, three dead latents, and the record of a batch."""
    autoencoder = build(arch, d_sae=D_SAE, dtype=torch.float32)
    x = samples(BATCH, dtype=torch.float32)
    optimiser = torch.optim.Adam(autoencoder.parameters(), lr=1e-3)
    for _ in range(3):
        # The pre-activations reach what the codes do not.
        record = autoencoder(x)
        affine = record.pre_activations
        pre = record.codes.dense() if affine is None else affine.dense()
        extra = sum(parameter.sum() for parameter in autoencoder.parameters())
        ((x - record.reconstruction).square().sum() + pre.square().sum() + extra).backward()
        optimiser.step()
        optimiser.zero_grad()
    dead = DeadLatents(D_SAE, after=100)
    dead.samples_since_fired[DEAD] = 100
    return autoencoder, optimiser, dead, autoencoder(x)


def of_latents(name: str, tensor: torch.Tensor, latents: list[int]) -> torch.Tensor:
    return tensor[:, latents] if name == "W_enc" else tensor[latents]


@each_architecture
def test_resample_changes_dead_latents_only(arch: str):
    """Other libraries' bug: resampling into a copy, which changes neither the weights nor the moments in use."""
    autoencoder, optimiser, dead, record = with_dead(arch)
    before = twin(autoencoder)
    moments = {
        name: {key: optimiser.state[parameter][key].clone() for key in ("exp_avg", "exp_avg_sq")}
        for name, parameter in autoencoder.named_parameters()
    }
    generator = torch.Generator().manual_seed(0)
    assert resample(autoencoder, optimiser, dead, record, generator).tolist() == DEAD
    for name, parameter in autoencoder.named_parameters():
        old = before.get_parameter(name)
        if autoencoder.latent_axis(name) is None:
            assert torch.equal(parameter, old)
            continue
        assert torch.equal(of_latents(name, parameter, ALIVE), of_latents(name, old, ALIVE)), name
        assert (of_latents(name, parameter, DEAD) != of_latents(name, old, DEAD)).any(), name
        for key, moment in moments[name].items():
            now = optimiser.state[parameter][key]
            assert torch.equal(of_latents(name, now, ALIVE), of_latents(name, moment, ALIVE)), (name, key)
            assert (of_latents(name, moment, DEAD) != 0).all(), (name, key)
            assert (of_latents(name, now, DEAD) == 0).all(), (name, key)
    assert dead.samples_since_fired[DEAD].tolist() == [0, 0, 0]
    assert dead.indices.numel() == 0


@each_with_pre_activations
def test_a_resampled_latent_points_at_an_input(arch: str):
    autoencoder, optimiser, dead, record = with_dead(arch)
    encoder_norm = autoencoder.W_enc.norm(dim=0)[ALIVE].mean()
    decoder_norm = autoencoder.W_dec.norm(dim=1)[ALIVE].mean()
    resample(autoencoder, optimiser, dead, record, torch.Generator().manual_seed(0))
    inputs = autoencoder.encoder_input(record.inputs)
    inputs = inputs / inputs.norm(dim=1, keepdim=True)
    directions = autoencoder.W_dec[DEAD] / decoder_norm
    cosines = directions @ inputs.T
    assert torch.allclose(cosines.max(dim=1).values, torch.ones(3), atol=1e-5)
    assert torch.allclose(directions.norm(dim=1), torch.ones(3), atol=1e-5)
    share = 1.0 if ARCHITECTURES[arch].competes else 0.2
    assert torch.allclose(autoencoder.W_enc.T[DEAD], share * encoder_norm * directions, atol=1e-5)
    # So it is on for that input, unless other latents win its place.
    pre = autoencoder(record.inputs).pre_activations.dense()
    places = cosines.argmax(dim=1)
    assert (pre[places, torch.tensor(DEAD)] > 0).all()


def test_resample_takes_the_worst_reconstructed_inputs():
    autoencoder, optimiser, dead, record = with_dead("standard")
    record.reconstruction.data.copy_(record.inputs)
    record.reconstruction.data[7] += 10.0
    resample(autoencoder, optimiser, dead, record, torch.Generator().manual_seed(0))
    wanted = autoencoder.encoder_input(record.inputs)[7]
    cosines = torch.cosine_similarity(autoencoder.W_dec[DEAD], wanted.unsqueeze(0))
    assert torch.allclose(cosines, torch.ones(3), atol=1e-5)


@each_architecture
def test_resample_changes_nothing_without_dead_latents(arch: str):
    autoencoder, optimiser, dead, record = with_dead(arch)
    dead.samples_since_fired.zero_()
    before = twin(autoencoder)
    generator = torch.Generator().manual_seed(0)
    draws = generator.get_state()
    assert resample(autoencoder, optimiser, dead, record, generator).tolist() == []
    assert torch.equal(generator.get_state(), draws)
    assert all(torch.equal(a, b) for a, b in zip(autoencoder.parameters(), before.parameters(), strict=True))


def test_resampled_latents_of_either_sign_are_not_on_for_every_sample():
    autoencoder, optimiser, dead, record = with_dead("signed_gated")
    biases = [autoencoder.get_parameter(name) for name in ("b_gate", "b_gate_negative")]
    means = [bias[ALIVE].mean() for bias in biases]
    resample(autoencoder, optimiser, dead, record, torch.Generator().manual_seed(0))
    for bias, mean in zip(biases, means, strict=True):
        torch.testing.assert_close(bias[DEAD], 0.2 * mean.expand(3))
    assert not autoencoder(record.inputs).codes.dense()[:, DEAD].all(0).any()


@each_architecture
def test_resample_handles_all_latents_dead(arch: str):
    autoencoder, optimiser, dead, record = with_dead(arch)
    dead.samples_since_fired.fill_(100)
    assert len(resample(autoencoder, optimiser, dead, record, torch.Generator().manual_seed(0))) == D_SAE
    assert all(parameter.isfinite().all() for parameter in autoencoder.parameters())
    assert torch.allclose(autoencoder.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5)


def trained(arch: str) -> tuple[SparseAutoencoder, torch.optim.Optimizer, DeadLatents]:
    """Return an autoencoder, an optimiser with moments, and latents that have not fired for a while."""
    autoencoder = build(arch, dtype=torch.float32)
    optimiser = torch.optim.Adam(autoencoder.parameters(), lr=0.1)
    (autoencoder(samples(20, dtype=torch.float32)).reconstruction.square().sum()).backward()
    torch.stack([parameter.sum() for parameter in autoencoder.parameters()]).sum().backward()
    optimiser.step()
    dead = DeadLatents(autoencoder.d_sae, after=5)
    dead.samples_since_fired += 7
    dead.refresh()
    return autoencoder, optimiser, dead


@each_architecture
def test_reinitialise_changes_the_named_latents_only(arch: str):
    autoencoder, optimiser, dead = trained(arch)
    before = {name: parameter.detach().clone() for name, parameter in autoencoder.named_parameters()}
    which = torch.zeros(autoencoder.d_sae, dtype=torch.bool)
    which[[2, 5]] = True
    reinitialise(autoencoder, optimiser, dead, which, samples(20, dtype=torch.float32), torch.Generator())
    for name, parameter in autoencoder.named_parameters():
        moments = optimiser.state[parameter]["exp_avg"]
        if autoencoder.latent_axis(name) is None:
            assert torch.equal(parameter, before[name])
            continue
        now, then, moments = (each.T if name == "W_enc" else each for each in (parameter, before[name], moments))
        assert torch.equal(now[~which], then[~which])
        assert not torch.equal(now[which], then[which])
        assert (moments[which] == 0).all()
        assert (moments[~which] != 0).any()
    assert dead.samples_since_fired.tolist() == [0 if each else 7 for each in which.tolist()]
    assert 2 not in dead.indices.tolist()


def test_reinitialised_weights_differ_from_the_first_ones():
    def fresh() -> SparseAutoencoder:
        return settings_of("topk", d_sae=D_SAE).build(D_IN, torch.Generator().manual_seed(8))

    member = GradientLearner(fresh(), Objective(terms("topk")), adam(), SCALE, seed=8)
    record = member.step(samples(20, D_IN, dtype=torch.float32), 0)
    always = Reinitialisation(scope=Scope.autoencoder, target_rate=1e-3)
    assert member.reinitialise(record, 0, always) == D_SAE
    cosines = unit_rows(member.autoencoder.W_dec) @ unit_rows(fresh().W_dec).T
    assert cosines.diagonal().max() < 0.9


def test_rates_are_compared_with_the_k_of_their_steps():
    """Of 14 latents that are on equally often, none is off the target while k falls from 8 to 1."""
    settings = TopKSettings(d_sae=D_SAE, k=1, k_start=8, k_until=0.9)
    autoencoder = settings.build(D_IN, torch.Generator().manual_seed(8))
    learner = GradientLearner(autoencoder, Objective(terms("topk")), adam(batch_size=D_SAE), SCALE, seed=8)
    found = []
    for step in range(learner.settings.steps):
        k = settings.k_at(step / learner.settings.steps)
        # Sample b has the latents b, b + 1, ... b + k - 1.
        codes = torch.stack([torch.eye(D_SAE).roll(shift, 1) for shift in range(k)]).sum(0)
        record = replace(learner.forward(samples(D_SAE, D_IN, dtype=torch.float32), step, None)[0], codes=Codes(codes))
        found.append(learner.reinitialise(record, step, Reinitialisation(scope=Scope.latents, every=2, threshold=1e-6)))
    assert found == [0] * len(found)


@each_architecture
def test_reinitialising_all_latents_resets_the_optimiser(arch: str):
    autoencoder, optimiser, dead = trained(arch)
    before = autoencoder.b_dec.detach().clone()
    which = torch.ones(autoencoder.d_sae, dtype=torch.bool)
    reinitialise(autoencoder, optimiser, dead, which, samples(20, dtype=torch.float32) + 1, torch.Generator())
    assert not torch.equal(autoencoder.b_dec, before)
    assert all((value == 0).all() for state in optimiser.state.values() for value in state.values())
    assert autoencoder.W_enc.stride() == (1, autoencoder.d_in)


def test_rates_are_compared_at_intervals_and_not_near_the_end():
    when = Reinitialisation(scope=Scope.latents, every=3, until=0.5)
    assert [step for step in range(20) if when.looks_after(step, 20)] == [2, 5, 8]
    assert not any(Reinitialisation().looks_after(step, 20) for step in range(20))


@pytest.mark.parametrize(
    ("name", "value"), [("target_rate", 0.0), ("power", 0.0), ("threshold", -1.0), ("every", 0), ("until", 2.0)]
)
def test_refuses_settings_out_of_range(name: str, value: Any):
    with pytest.raises(ValueError, match=rf"population\.reinitialise\.{name} is {value:g}"):
        Reinitialisation(**{name: value})


@each_with("target")
def test_resample_between_layouts_reads_inputs_and_writes_targets(arch: str):
    ends = Ends(input=Layout.of(5, "mlp_in.0"), target=Layout.of(4, "mlp_out.0"), skip=True)
    autoencoder = settings_of(arch, d_sae=14).build(ends, torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(autoencoder.parameters())
    x, y = (samples(20, width, dtype=torch.float32) for width in (5, 4))
    # All inputs point the same way.
    x = x + 30
    record = autoencoder(x, targets=y)
    dead = DeadLatents(14, after=5)
    dead.samples_since_fired[3] = 7
    assert resample(autoencoder, optimiser, dead, record, torch.Generator().manual_seed(0)).tolist() == [3]
    read = torch.cosine_similarity(autoencoder.W_enc.T[[3]], x - x.mean(0))
    written = torch.cosine_similarity(autoencoder.W_dec[[3]], y)
    pre = autoencoder.encode(x).pre_activations
    if pre is not None:
        # A latent that read the inputs themselves would be on for all of them.
        torch.testing.assert_close(pre.dense()[:, 3].mean(), torch.tensor(0.0), rtol=0, atol=1e-3)
    assert read.max().item() == pytest.approx(1, abs=1e-5)
    assert written.argmax() == read.argmax()
    assert written.max().item() == pytest.approx(1)
    which = torch.zeros(14, dtype=torch.bool)
    which[5] = True
    reinitialise(autoencoder, optimiser, dead, which, x, torch.Generator(), y)
    assert dead.samples_since_fired[5] == 0

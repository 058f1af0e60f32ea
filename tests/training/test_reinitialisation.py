"""Deviations from a wanted rate by hand, and what is started over."""

from typing import Any

import pytest
import torch

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.losses.objective import Objective
from fsae.matching import unit_rows
from fsae.training.dead_latents import DeadLatents
from fsae.training.gradient_learner import GradientLearner
from fsae.training.reinitialisation import Reinitialisation, Scope, start_over
from tests.architectures import build, each_architecture, samples, settings_of
from tests.streams import D_IN
from tests.training.runs import D_SAE, SCALE, adam, terms


def test_deviations_by_hand():
    # Of 10 samples, at a wanted rate of 0.2: never on is off by all of it, 2 times is right, 6 times twice too much.
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
def test_who_is_off_target(scope: Scope, counts: list[int], wanted: list[bool]):
    assert Reinitialisation(scope=scope).off_target(torch.tensor(counts), 10, 0.2).tolist() == wanted


def trained(arch: str) -> tuple[SparseAutoencoder, torch.optim.Optimizer, DeadLatents]:
    """With moments in the optimiser, and latents that have not fired for a while."""
    autoencoder = build(arch, dtype=torch.float32)
    optimiser = torch.optim.Adam(autoencoder.parameters(), lr=0.1)
    (autoencoder(samples(20, dtype=torch.float32)).reconstruction.square().sum()).backward()
    torch.stack([parameter.sum() for parameter in autoencoder.parameters()]).sum().backward()
    optimiser.step()
    dead = DeadLatents(autoencoder.d_sae, after=5)
    dead.tokens_since_fired += 7
    dead.refresh()
    return autoencoder, optimiser, dead


@each_architecture
def test_single_latents_start_over_and_others_do_not(arch: str):
    autoencoder, optimiser, dead = trained(arch)
    before = {name: parameter.detach().clone() for name, parameter in autoencoder.named_parameters()}
    which = torch.zeros(autoencoder.d_sae, dtype=torch.bool)
    which[[2, 5]] = True
    start_over(autoencoder, optimiser, dead, which, samples(20, dtype=torch.float32), torch.Generator())
    for name, parameter in autoencoder.named_parameters():
        moments = optimiser.state[parameter]["exp_avg"]
        if name == "b_dec":
            assert torch.equal(parameter, before[name])
            continue
        now, then, moments = (each.T if name == "W_enc" else each for each in (parameter, before[name], moments))
        assert torch.equal(now[~which], then[~which])
        assert not torch.equal(now[which], then[which])
        assert (moments[which] == 0).all()
        assert (moments[~which] != 0).any()
    assert dead.tokens_since_fired.tolist() == [0 if each else 7 for each in which.tolist()]
    assert 2 not in dead.indices.tolist()


def test_what_a_member_starts_over_with_is_not_what_it_began_with():
    def fresh() -> SparseAutoencoder:
        return settings_of("topk", d_sae=D_SAE).build(D_IN, torch.Generator().manual_seed(7))

    member = GradientLearner(fresh(), Objective(terms("topk")), adam(), SCALE, seed=7)
    record = member.step(samples(20, D_IN, dtype=torch.float32), 0)
    always = Reinitialisation(scope=Scope.autoencoder, target_rate=1e-3)
    assert member.start_over(record, 0, always) == D_SAE
    cosines = unit_rows(member.autoencoder.W_dec) @ unit_rows(fresh().W_dec).T
    assert cosines.diagonal().max() < 0.9


@each_architecture
def test_everything_starts_over_with_its_optimiser(arch: str):
    autoencoder, optimiser, dead = trained(arch)
    before = autoencoder.b_dec.detach().clone()
    which = torch.ones(autoencoder.d_sae, dtype=torch.bool)
    start_over(autoencoder, optimiser, dead, which, samples(20, dtype=torch.float32) + 1, torch.Generator())
    assert not torch.equal(autoencoder.b_dec, before)
    assert all((value == 0).all() for state in optimiser.state.values() for value in state.values())
    assert autoencoder.W_enc.stride() == (1, autoencoder.d_in)


def test_rates_are_looked_at_now_and_then_and_not_at_the_end():
    when = Reinitialisation(scope=Scope.latents, every=3, until=0.5)
    assert [step for step in range(20) if when.looks_after(step, 20)] == [2, 5, 8]
    assert not any(Reinitialisation().looks_after(step, 20) for step in range(20))


@pytest.mark.parametrize(
    ("name", "value"), [("target_rate", 0.0), ("power", 0.0), ("threshold", -1.0), ("every", 0), ("until", 2.0)]
)
def test_refuses_settings_out_of_range(name: str, value: Any):
    with pytest.raises(ValueError, match=rf"population\.reinitialise\.{name} is {value:g}"):
        Reinitialisation(**{name: value})

"""The mutual term's gradient against autograd on its definition."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.couplings.mutual import Directions, Mutual, MutualCoupling
from fsae.matching import Matching, mmcs
from tests.architectures import build, each_architecture

each_matching = pytest.mark.parametrize("matching", list(Matching), ids=lambda matching: matching.name)


def members(arch: str = "topk", size: int = 3) -> list[Autoencoder]:
    return [build(arch, seed=seed) for seed in range(size)]


def directions(autoencoder: Autoencoder, which: Directions) -> Tensor:
    return autoencoder.W_dec if which is Directions.decoder else autoencoder.W_enc.T


def defined(A: Tensor, B: Tensor, matching: Matching) -> Tensor:
    """MMCS, differentiable where partners stay who they are."""
    a, b = (each / each.norm(dim=1, keepdim=True) for each in (A, B))
    cosines = a @ b.T
    if matching is Matching.mean_max:
        return cosines.amax(1).mean()
    if matching is Matching.symmetric:
        return (cosines.amax(1).mean() + cosines.amax(0).mean()) / 2
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-cosines.detach().numpy())
    return cosines[rows, columns].mean()


@each_matching
@pytest.mark.parametrize("which", list(Directions), ids=lambda which: which.name)
def test_gradient_and_value_are_the_definition(matching: Matching, which: Directions):
    autoencoders = members()
    coupling = MutualCoupling(Mutual(weight=0.7, matching=matching, directions=which), seed=0)
    coupling.backward(autoencoders, [], 0, 1.0)
    rows = [directions(each, which) for each in autoencoders]
    values = [defined(a, b, matching) for a, b in combinations(rows, 2)]
    value = 1 - torch.stack(values).mean()
    name = "W_dec" if which is Directions.decoder else "W_enc"
    wanted = torch.autograd.grad(0.7 * value, [each.get_parameter(name) for each in autoencoders])
    for autoencoder, gradient in zip(autoencoders, wanted, strict=True):
        weights, other = autoencoder.W_dec, autoencoder.W_enc
        if which is Directions.encoder:
            weights, other = other, weights
        torch.testing.assert_close(weights.grad, gradient, rtol=1e-10, atol=1e-12)
        assert other.grad is None
    assert coupling.read_interval()["mutual"] == pytest.approx(value.item(), abs=1e-12)


@each_architecture
def test_following_the_gradient_makes_members_alike(arch: str):
    autoencoders = members(arch, size=2)
    coupling = MutualCoupling(Mutual(weight=1.0), seed=0)
    before = mmcs(autoencoders[0].W_dec, autoencoders[1].W_dec, Matching.hungarian)
    for step in range(200):
        coupling.backward(autoencoders, [], step, 1.0)
        for each in autoencoders:
            with torch.no_grad():
                each.W_dec.sub_(each.W_dec.grad, alpha=0.5)  # pyright: ignore[reportArgumentType]
            each.W_dec.grad = None
    assert mmcs(autoencoders[0].W_dec, autoencoders[1].W_dec, Matching.hungarian) > max(0.95, before)


def test_weight_zero_matches_no_members_if_nothing_is_measured():
    autoencoders = members()
    coupling = MutualCoupling(Mutual(), seed=0)
    coupling.backward(autoencoders, [], 0, 1.0)
    assert coupling.state_dict()["pairs"] is None


def test_weights_that_are_not_finite_are_reported():
    autoencoders = members(size=2)
    with torch.no_grad():
        autoencoders[0].W_dec[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"became infinite or NaN; lower trainer\.lr"):
        MutualCoupling(Mutual(weight=1.0), seed=0).backward(autoencoders, [], 0, 1.0)


def test_partners_stay_between_matchings():
    autoencoders = members(size=2)
    coupling = MutualCoupling(Mutual(weight=1.0, match_every=3), seed=0)
    coupling.backward(autoencoders, [], 0, 1.0)
    (first,) = [coupling.state_dict()["pairs"]]
    with torch.no_grad():
        autoencoders[1].W_dec.copy_(autoencoders[1].W_dec.flip(0))
    coupling.backward(autoencoders, [], 1, 1.0)
    assert coupling.state_dict()["pairs"] is first
    coupling.backward(autoencoders, [], 3, 1.0)
    assert not torch.equal(coupling.state_dict()["pairs"][1], first[1])


def test_shuffled_partners_are_drawn_once_and_partners_of_one_are_each_others():
    autoencoders, d_sae = members(size=3), len(members(size=3)[0].W_dec)
    own, shuffled = (MutualCoupling(Mutual(weight=1.0, shuffled=each), seed=0) for each in (False, True))
    found = []
    for step in range(2):
        for coupling in (own, shuffled):
            coupling.backward(autoencoders, [], step, 1.0)
        with torch.no_grad():
            autoencoders[1].W_dec.copy_(autoencoders[1].W_dec.flip(0))
        found.append(torch.stack(shuffled.state_dict()["pairs"][:2]))
    assert torch.equal(*found)
    # Of the first two members and back, of the first and the third, of the second and the third.
    to_second, _, to_third, _, between, _ = (
        dict(zip(*each.tolist(), strict=True)) for each in found[0].split(d_sae, 1)
    )
    assert sorted(to_second) == list(range(d_sae))
    assert sorted(to_second.values()) == list(range(d_sae, 2 * d_sae))
    assert [between[to_second[latent]] for latent in range(d_sae)] == [to_third[latent] for latent in range(d_sae)]
    assert any(to_second[latent] != latent + d_sae for latent in range(d_sae))
    assert shuffled.read_interval()["mutual"] > own.read_interval()["mutual"] + 0.1


def test_a_step_without_weight_matches_nothing_and_has_no_value():
    coupling = MutualCoupling(Mutual(weight=1.0, warm_up=0.5), seed=0)
    coupling.backward(members(), [], 0, 0.0)
    assert coupling.read_interval().keys() == {"matching_seconds"}
    coupling.backward(members(), [], 1, 0.25)
    found = coupling.read_interval()
    assert found["mutual_weighted"] == pytest.approx(0.5 * found["mutual"])


def test_continues_from_a_state():
    autoencoders, others = members(), members()
    coupling = MutualCoupling(Mutual(weight=1.0, match_every=5, shuffled=True), seed=0)
    coupling.backward(autoencoders, [], 0, 1.0)
    resumed = MutualCoupling(Mutual(weight=1.0, match_every=5, shuffled=True), seed=0)
    resumed.load_state_dict(coupling.state_dict())
    for each in autoencoders:
        each.W_dec.grad = None
    for step in (1, 5):
        coupling.backward(autoencoders, [], step, 1.0)
        resumed.backward(others, [], step, 1.0)
    for one, other in zip(autoencoders, others, strict=True):
        torch.testing.assert_close(one.W_dec.grad, other.W_dec.grad, rtol=0, atol=0)
    assert coupling.read_interval()["mutual"] == resumed.read_interval()["mutual"]

"""TopK of groups by hand, its special case, GroupMax, and the nuclear norm of groups."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.group_topk import GroupMaxSettings, GroupTopKSettings
from fsae.autoencoders.layout import blocks_per_layer, exclusive_blocks
from fsae.export.folding import fold
from fsae.export.saelens import Provenance, load_saelens, save_saelens
from fsae.losses.nuclear_norm import NuclearNorm
from fsae.losses.objective import check_terms
from fsae.losses.term import Moment
from fsae.training.frozen import Frozen
from tests.architectures import build, samples, settings_of
from tests.autoencoders.test_layout import CROSSCODER
from tests.training.runs import adam, member

each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))


def reading(settings: GroupTopKSettings | GroupMaxSettings) -> SparseAutoencoder:
    """An autoencoder whose pre-activations are its inputs."""
    d_sae = settings.d_sae
    assert d_sae is not None
    autoencoder = settings.build(d_sae, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        autoencoder.W_enc.copy_(torch.eye(d_sae))
    return autoencoder


@each_path
def test_group_topk_by_hand(sparse: bool):
    # Groups (3, -4) and (1, 2) have norms 5 and sqrt(5): the first is kept, signs and all.
    autoencoder = reading(GroupTopKSettings(d_sae=4, k=2, rank=2))
    codes = autoencoder(torch.tensor([[3.0, -4.0, 1.0, 2.0]]).double(), sparse).codes
    assert codes.dense().tolist() == [[3, -4, 0, 0]]


@each_path
def test_groupmax_by_hand(sparse: bool):
    # Of (1, 3, 2) and (0, 5, 4) the maxima, which are rectified.
    autoencoder = reading(GroupMaxSettings(d_sae=6, k=2))
    x = torch.tensor([[1.0, 3.0, 2.0, 0.0, 5.0, 4.0], [-1.0, -3.0, -2.0, 0.0, 5.0, 4.0]]).double()
    assert autoencoder(x, sparse).codes.dense().tolist() == [[0, 3, 0, 0, 5, 0], [0, 0, 0, 0, 5, 0]]


@each_path
def test_groups_of_one_are_abs_topk(sparse: bool):
    x = samples(20)
    grouped, single = build("group_topk", k=3, rank=1)(x, sparse), build("abs_topk")(x, sparse)
    assert torch.equal(grouped.codes.dense(), single.codes.dense())
    assert torch.equal(grouped.reconstruction, single.reconstruction)


@pytest.mark.parametrize(
    "settings", [GroupTopKSettings(d_sae=12, k=6, rank=3), GroupMaxSettings(d_sae=12, k=4)], ids=["topk", "max"]
)
def test_groups_are_folded_and_read_back(settings: GroupTopKSettings | GroupMaxSettings, tmp_path, caplog):
    autoencoder = settings.build(5, torch.Generator().manual_seed(0)).eval()
    x = samples(30, dtype=torch.float32)
    dense, sparse = autoencoder(x), autoencoder(x, sparse=True)
    assert torch.equal(dense.codes.dense(), sparse.codes.dense())
    folded = fold(autoencoder, 0.4)
    torch.testing.assert_close(folded(x / 0.4).reconstruction, dense.reconstruction / 0.4)
    save_saelens(autoencoder, tmp_path / "sae", Provenance())
    assert "SAELens has no architecture group" in caplog.text
    torch.testing.assert_close(load_saelens(tmp_path / "sae")(x).codes.dense(), dense.codes.dense())


def test_columns_and_rows_stay_unit_vectors_in_training():
    trained = member("group_topk", adam(lr=0.1, resample_every=None), d_sae=24, rank=2, k=4)
    for step in range(3):
        trained.step(samples(16, trained.autoencoder.d_in, seed=step, dtype=torch.float32), step)
    for norms in (trained.autoencoder.W_dec.norm(dim=1), trained.autoencoder.W_enc.norm(dim=0)):
        torch.testing.assert_close(norms, torch.ones(24))


@pytest.mark.parametrize("frozen", [Frozen.decoder, Frozen.soft_decoder])
def test_columns_stay_unit_vectors_whatever_is_frozen_of_the_decoder(frozen: Frozen):
    settings = adam(lr=0.1, resample_every=None, frozen=frozen)
    trained = member("group_topk", settings, d_sae=24, rank=2, k=4)
    before = trained.autoencoder.W_enc.detach().clone()
    for step in range(3):
        trained.step(samples(16, trained.autoencoder.d_in, seed=step, dtype=torch.float32), step)
    assert not torch.equal(trained.autoencoder.W_enc, before)
    torch.testing.assert_close(trained.autoencoder.W_enc.norm(dim=0), torch.ones(24))


def test_groups_that_would_lie_in_two_blocks_are_refused():
    # A twentieth of 4608 latents are 230, which are no whole groups of 16; of 4800 they are 240.
    exclusive = replace(CROSSCODER, blocks=exclusive_blocks(2, 0.05))
    with pytest.raises(ValueError, match=r"into blocks of 230, 230, 4148, .*make arch\.d_sae a multiple of 320$"):
        GroupTopKSettings(d_sae=4608, rank=16).check_ends(exclusive)
    GroupTopKSettings(d_sae=15 * 320, rank=16).check_ends(exclusive)
    # 4608 latents are 64 groups of 72.
    with pytest.raises(ValueError, match=r"a group of 72 .*make arch\.k a multiple of 20, and arch\.d_sae a multiple"):
        GroupMaxSettings(d_sae=4608, k=64).check_ends(exclusive)
    GroupMaxSettings(d_sae=4800, k=60).check_ends(exclusive)
    layers = replace(CROSSCODER, blocks=blocks_per_layer(2))
    with pytest.raises(ValueError, match=r"into blocks of 6, 6, and a group of 4 .*arch\.d_sae a multiple of 8$"):
        GroupTopKSettings(d_sae=12, k=4, rank=4).check_ends(layers)
    GroupTopKSettings(d_sae=16, k=4, rank=4).check_ends(layers)
    with pytest.raises(ValueError, match=r"make arch\.k a multiple of 2, and"):
        GroupMaxSettings(d_sae=12, k=3).check_ends(layers)
    for settings in (GroupTopKSettings(d_sae=12, k=4, rank=4), GroupMaxSettings(d_sae=12, k=3)):
        settings.check_ends(CROSSCODER)


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"arch\.k is 5, but latents come in groups of arch\.rank=2"):
        GroupTopKSettings(d_sae=12, k=5, rank=2).check_width(5)
    with pytest.raises(ValueError, match=r"arch\.d_sae is 13, but latents come in groups of arch\.rank=2"):
        GroupTopKSettings(d_sae=13, k=4, rank=2).check_width(5)
    with pytest.raises(ValueError, match=r"arch\.d_sae is 13, but GroupMax divides latents into arch\.k=4 groups"):
        GroupMaxSettings(d_sae=13, k=4).check_width(5)
    with pytest.raises(ValueError, match=r"arch\.k_start is set, but GroupMax has the same k groups"):
        GroupMaxSettings(d_sae=12, k=4, k_start=6).check_width(5)


@pytest.mark.parametrize(
    ("rows", "norm", "rank"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], 2.0, 2.0),
        ([[1.0, 0.0], [1.0, 0.0]], 2**0.5, 1.0),
        ([[1.0, 0.0], [0.6, 0.8]], 1.8974, 1.25),
    ],
)
def test_nuclear_norm_by_hand(rows: list, norm: float, rank: float):
    # Singular values are the roots of 1 +- cosine: 1 and 1; 2 and 0; 1.6 and .4.
    autoencoder = GroupTopKSettings(d_sae=2, k=2, rank=2).build(2, torch.Generator()).double()
    with torch.no_grad():
        autoencoder.W_dec.copy_(torch.tensor(rows))
    measured = NuclearNorm().measure(autoencoder(samples(3, 2)), NO_DEAD)
    assert measured.value.item() == pytest.approx(norm, abs=2e-4)
    assert measured.beside["stable_rank"].item() == pytest.approx(rank)


def test_the_gradient_of_the_nuclear_norm_is_that_of_the_singular_values():
    autoencoder = GroupTopKSettings(d_sae=12, k=3, rank=3).build(5, torch.Generator().manual_seed(0)).double()
    (got,) = torch.autograd.grad(NuclearNorm().measure(autoencoder(samples(3)), NO_DEAD).value, autoencoder.W_dec)
    rows: Tensor = autoencoder.W_dec.detach().clone().requires_grad_()
    torch.linalg.svdvals(rows.view(4, 3, 5)).sum(1).mean().backward()
    torch.testing.assert_close(got, rows.grad, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="needs a forward record with group_rank, which arch TopK does not have"):
        check_terms({"dimension": NuclearNorm()}, settings_of("topk"))

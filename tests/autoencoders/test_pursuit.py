"""Pursuit by hand, by its definition and by its gradients; the rows that it needs."""

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.pursuit import OMP, MatchingPursuit, MatchingPursuitSettings, non_negative_least_squares
from fsae.autoencoders.settings import DecoderNorm, EncoderInit
from fsae.export.folding import fold
from fsae.losses.auxiliary import AuxK
from fsae.losses.fisher import Fisher, FisherForm
from fsae.losses.objective import check_terms
from fsae.losses.reconstruction import SquaredError
from tests.architectures import ARCHITECTURES, build, gradients, relative_error, samples, settings_of
from tests.training.runs import adam, member

each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
each_pursuit = pytest.mark.parametrize("arch", ["matching_pursuit", "omp"])
ROWS = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
X = torch.tensor([[2.0, 2.0]], dtype=torch.float64)


def with_rows(arch: str, rows: Tensor = ROWS, **changes) -> SparseAutoencoder:
    autoencoder = settings_of(arch, d_sae=len(rows), **changes).build(rows.shape[1], torch.Generator()).double()
    with torch.no_grad():
        autoencoder.W_dec.copy_(rows)
    return autoencoder


@each_path
def test_matching_pursuit_by_hand(sparse: bool):
    # Scores (2, 2.8): f = (0, 2.8), r = (2, 2) - 2.8 (.6, .8) = (.32, -.24). Scores (.32, 0): f = (.32, 2.8) and
    # r = (0, -.24). No score is positive: it stops. |r|^2 = .0576.
    record = with_rows("matching_pursuit", k=2)(X, sparse)
    torch.testing.assert_close(record.codes.dense(), torch.tensor([[0.32, 2.8]], dtype=torch.float64))
    assert record.error.square().sum().item() == pytest.approx(0.0576)
    again = with_rows("matching_pursuit", rows=torch.cat([ROWS, -ROWS[:1]]), k=3)(X, sparse)
    torch.testing.assert_close(again.codes.dense(), torch.tensor([[0.32, 2.8, 0.0]], dtype=torch.float64))


@each_path
def test_omp_by_hand(sparse: bool):
    # The same two latents; on both (2, 2) = .5 (1, 0) + 2.5 (.6, .8), and nothing remains.
    record = with_rows("omp", k=2)(X, sparse)
    torch.testing.assert_close(record.codes.dense(), torch.tensor([[0.5, 2.5]], dtype=torch.float64))
    assert record.error.abs().max().item() < 1e-15


def test_the_same_rows_as_a_tied_topk_leave_much_more():
    tied = with_rows("topk", k=2, encoder_init=EncoderInit.tied)
    torch.testing.assert_close(tied(X).codes.dense(), torch.tensor([[2.0, 2.8]], dtype=torch.float64))
    assert tied(X).error.square().sum().item() == pytest.approx(2.88)


@each_pursuit
@each_path
@pytest.mark.parametrize("gram_entries", [0, 2**20])
def test_codes_are_the_definition(arch: str, sparse: bool, gram_entries: int):
    autoencoder, x = build(arch, 6, 20, k=5, residual_threshold=0.8), samples(30, 6)
    autoencoder.normalise_decoder()
    assert isinstance(autoencoder, MatchingPursuit | OMP)
    autoencoder.gram_entries = gram_entries
    codes = ARCHITECTURES[arch].codes
    assert codes is not None
    record, wanted = autoencoder(x, sparse), codes(x, autoencoder)
    torch.testing.assert_close(record.codes.dense(), wanted, rtol=1e-10, atol=1e-12)
    # Some samples end early, by the threshold.
    counts = record.codes.dense().count_nonzero(1)
    assert counts.min() < counts.max() == 5
    # The chain of steps has the gradient that autograd finds for the definition.
    weights = samples(30, 6, seed=9)
    got = gradients((record.reconstruction * weights).sum(), autoencoder)
    of_definition = wanted @ autoencoder.W_dec + autoencoder.b_dec
    for name, grad in gradients((of_definition * weights).sum(), autoencoder).items():
        assert relative_error(got[name], grad) < 1e-10, name


@each_path
def test_a_latent_that_is_taken_again_has_one_code(sparse: bool):
    # Products (1, 1.08): r = (1, 2.1) - 1.08 (-.6, .8) = (1.648, 1.236). Then 1.648 of the first: r = (0, 1.236). Then
    # .9888 of the second again: f = (1.648, 2.0688), r = (.59328, .44496). This took no new latent.
    rows, x = torch.tensor([[1.0, 0.0], [-0.6, 0.8]]).double(), torch.tensor([[1.0, 2.1]]).double()
    for steps, stops, wanted in ((4, True, [1.648, 2.0688]), (4, False, [2.24128, 2.0688])):
        # The opposite of each row is never taken.
        changes: dict = {"k": steps, "stop_on_duplicate_support": stops}
        codes = with_rows("matching_pursuit", torch.cat([rows, -rows]), **changes)(x, sparse).codes
        torch.testing.assert_close(codes.dense(), torch.tensor([[*wanted, 0, 0]], dtype=torch.float64))
        assert codes.firing_counts.tolist() == [1, 1, 0, 0]
        assert codes.of_latents(torch.tensor([1])).item() == pytest.approx(wanted[1])


def test_rows_that_are_not_unit_leave_a_part_of_what_they_explain():
    # SAELens does not normalise them in training. A step along w with |w|^2 = 1.44 leaves r . w times 1 - 1.44.
    longer = with_rows("matching_pursuit", 1.2 * ROWS[:1], k=1)
    left = (longer(X).error @ longer.W_dec[0]).item()
    assert left == pytest.approx((1 - 1.44) * (X @ longer.W_dec[0]).item())
    # Here rows are unit after every step of training, so that nothing of them is left.
    trained = member("matching_pursuit", adam(lr=0.1, resample_every=None))
    for step in range(3):
        trained.step(samples(16, trained.autoencoder.d_in, seed=step, dtype=torch.float32), step)
    norms = trained.autoencoder.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    with pytest.raises(ValueError, match=r"arch\.decoder_norm is free, but arch MatchingPursuit .* leave .* at unit"):
        settings_of("matching_pursuit", decoder_norm=DecoderNorm.free)


@each_pursuit
@pytest.mark.parametrize("change", [{"encoder_init": EncoderInit.random}, {"apply_b_dec_to_input": False}])
def test_other_encoders_are_refused(arch: str, change: dict):
    with pytest.raises(ValueError, match=r"arch\.\w+ is (random|false), but arch \w+ explains x - b_dec"):
        settings_of(arch, **change)


def test_the_threshold_has_the_unit_of_the_input():
    folded = fold(build("matching_pursuit", residual_threshold=0.8), 0.4)
    settings = folded.settings
    assert isinstance(settings, MatchingPursuitSettings)
    assert settings.residual_threshold == pytest.approx(2.0)


@each_pursuit
def test_terms_of_pre_activations_are_refused(arch: str):
    settings = settings_of(arch)
    check_terms({"reconstruction": SquaredError(), "penalty": Fisher(weight=0.0 if arch == "omp" else 1.0)}, settings)
    for term in (AuxK(), Fisher(form=FisherForm.pre)):
        with pytest.raises(ValueError, match=r"loss\.it .* needs a forward record with pre_activations, which arch"):
            check_terms({"it": term}, settings)


@pytest.mark.parametrize("waits", [True, False])
def test_non_negative_least_squares_are_scipy_s(waits: bool):
    rows = samples(60 * 5, 7).view(60, 5, 7) + 0.5
    u = samples(60, 7, seed=4)
    found = non_negative_least_squares(rows @ rows.mT, (rows @ u.unsqueeze(2)).squeeze(2), waits)
    wanted = torch.stack([torch.from_numpy(nnls(A.T.numpy(), b.numpy())[0]) for A, b in zip(rows, u, strict=True)])
    assert (wanted == 0).any()
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_second_copy_of_a_row_is_not_taken():
    record = with_rows("omp", torch.cat([ROWS, ROWS]), k=4)(X)
    assert record.codes.dense().count_nonzero() == 2
    assert record.error.abs().max().item() < 1e-14

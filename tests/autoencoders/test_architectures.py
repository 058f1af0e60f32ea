"""Each architecture's forward pass by hand, and dense and sparse codes that agree on every input."""

import math

import pytest
import torch
from torch import Tensor

from fsae.autoencoders import batch_topk as batch_topk_module
from fsae.autoencoders import topk as topk_module
from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.batch_topk import BatchTopK
from fsae.autoencoders.jumprelu import JumpReLU
from fsae.autoencoders.record import ForwardRecord
from fsae.losses.auxiliary import GateReconstruction
from fsae.losses.fisher import Fisher, FisherForm
from fsae.losses.reconstruction import SquaredError
from fsae.losses.sparsity import L1, StepL0, TanhL0
from fsae.losses.term import LossTerm, Moment
from tests.architectures import (
    ARCHITECTURES,
    build,
    each_architecture,
    each_with,
    each_with_equal_paths,
    entries,
    gradients,
    relative_error,
    samples,
    twin,
    with_weights,
)

NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))
each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])

# x - b_dec is [1 2] and [-1 -0.5]; times W_enc that is [1 2 3] and [-1 -0.5 -1.5].
X = torch.tensor([[2.0, 1.0], [0.0, -1.5]], dtype=torch.float64)
WEIGHTS = {
    "W_enc": [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]],
    "b_enc": [0.0, 0.5, -1.0],  # pre-activations [1 2.5 2] and [-1 0 -2.5]
    "W_dec": [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]],
    "b_dec": [1.0, -1.0],
}


def check(autoencoder: SparseAutoencoder, sparse: bool, codes: list, reconstruction: list) -> ForwardRecord:
    record = autoencoder(X, sparse=sparse)
    torch.testing.assert_close(record.codes.dense(), torch.tensor(codes, dtype=torch.float64))
    torch.testing.assert_close(record.reconstruction, torch.tensor(reconstruction, dtype=torch.float64))
    return record


@each_path
def test_standard_by_hand(sparse: bool):
    # 1 [1 0] + 2.5 [0 2] + 2 [1 1] + [1 -1] = [4 6]; the second sample has nothing on (its 0 included): b_dec.
    check(with_weights("standard", WEIGHTS), sparse, [[1, 2.5, 2], [0, 0, 0]], [[4, 6], [1, -1]])


@each_path
def test_standard_by_hand_without_b_dec_in_the_input(sparse: bool):
    # [2 1] W_enc + b_enc = [2 1.5 2];  [0 -1.5] W_enc + b_enc = [0 -1 -2.5].
    # 2 [1 0] + 1.5 [0 2] + 2 [1 1] + [1 -1] = [5 4].
    autoencoder = with_weights("standard", WEIGHTS, apply_b_dec_to_input=False)
    check(autoencoder, sparse, [[2, 1.5, 2], [0, 0, 0]], [[5, 4], [1, -1]])


@each_path
def test_gated_by_hand(sparse: bool):
    biases = {"b_gate": [-2.0, 0.5, -1.0], "b_mag": [0.0, -1.0, -4.0], "r_mag": [0.0, math.log(2), 0.0]}
    autoencoder = with_weights("gated", WEIGHTS | biases)
    # Gates [-1 2.5 2] and [-3 0 -2.5]: the one at exactly 0 is off. Magnitudes of the first sample
    # [1, 2*2 - 1, 3 - 4] = [1 3 -1]: latent 2 has an open gate and nothing to say. 3 [0 2] + [1 -1] = [1 5].
    record = check(autoencoder, sparse, [[0, 3, 0], [0, 0, 0]], [[1, 5], [1, -1]])
    assert record.gate is not None
    torch.testing.assert_close(record.gate.dense(), torch.tensor([[0, 2.5, 2], [0, 0, 0]], dtype=torch.float64))
    assert record.pre_activations is not None
    magnitudes = torch.tensor([[1, 3, -1], [-1, -2, -5.5]], dtype=torch.float64)
    torch.testing.assert_close(record.pre_activations.dense(), magnitudes)


@each_path
def test_signed_gated_by_hand(sparse: bool):
    # Products (.5 -.5 .1) and thresholds of .2 on either side: the third is between them.
    weights = {"W_enc": [[0.5, -0.5, 0.1]], "W_dec": [[1.0], [2.0], [4.0]]}
    weights |= {"b_gate": [-0.2] * 3, "b_gate_negative": [-0.2] * 3}
    autoencoder = with_weights("signed_gated", weights)
    record = autoencoder(torch.ones(1, 1, dtype=torch.float64), sparse=sparse)
    torch.testing.assert_close(record.codes.dense(), torch.tensor([[0.5, -0.5, 0]], dtype=torch.float64))
    assert record.gate is not None
    torch.testing.assert_close(record.gate.dense(), torch.tensor([[0.3, -0.3, 0]], dtype=torch.float64))
    # The other sign changes both, at thresholds of its own.
    with torch.no_grad():
        autoencoder.get_parameter("b_gate_negative").fill_(-0.6)
    record = autoencoder(-torch.ones(1, 1, dtype=torch.float64), sparse=sparse)
    torch.testing.assert_close(record.codes.dense(), torch.tensor([[0, 0.5, 0]], dtype=torch.float64))


@each_path
def test_jumprelu_by_hand(sparse: bool):
    autoencoder = with_weights("jumprelu", WEIGHTS | {"log_threshold": [0.0, math.log(0.5), 0.0]})
    # Thresholds [1 .5 1] against [1 2.5 2]: latent 0 equals its threshold and is off.
    # 2.5 [0 2] + 2 [1 1] + [1 -1] = [3 6].
    record = check(autoencoder, sparse, [[0, 2.5, 2], [0, 0, 0]], [[3, 6], [1, -1]])
    assert record.active is not None
    assert record.active.dense().tolist() == [[0, 1, 1], [0, 0, 0]]


@each_path
def test_topk_by_hand(sparse: bool):
    # The two largest of [1 2.5 2], as in the case above; those of [-1 0 -2.5] are not positive, so rectified to 0.
    check(with_weights("topk", WEIGHTS, k=2), sparse, [[0, 2.5, 2], [0, 0, 0]], [[3, 6], [1, -1]])


@each_path
def test_abs_topk_by_hand(sparse: bool):
    # Of [-1 0 -2.5] the two of largest magnitude, signs kept: -1 [1 0] - 2.5 [1 1] + [1 -1] = [-2.5 -3.5].
    check(with_weights("abs_topk", WEIGHTS, k=2), sparse, [[0, 2.5, 2], [-1, 0, -2.5]], [[3, 6], [-2.5, -3.5]])


@each_path
def test_batch_topk_by_hand(sparse: bool):
    autoencoder = with_weights("batch_topk", WEIGHTS, k=1)
    # k x batch = 2 of all six: 2.5 and 2, both in the first sample.
    check(autoencoder, sparse, [[0, 2.5, 2], [0, 0, 0]], [[3, 6], [1, -1]])
    assert autoencoder.get_buffer("threshold") == 2
    # Inference: above 2, so the 2 itself is off. 2.5 [0 2] + [1 -1] = [1 4].
    check(autoencoder.eval(), sparse, [[0, 2.5, 0], [0, 0, 0]], [[1, 4], [1, -1]])


def pair(
    autoencoder: SparseAutoencoder, x: Tensor
) -> tuple[ForwardRecord, ForwardRecord, SparseAutoencoder, SparseAutoencoder]:
    dense, sparse = autoencoder, twin(autoencoder)
    return dense(x), sparse(x, sparse=True), dense, sparse


def silence(autoencoder: SparseAutoencoder, by: float) -> None:
    """Lower the biases that decide which latents are on."""
    name = "b_gate" if isinstance(getattr(autoencoder, "b_gate", None), Tensor) else "b_enc"
    with torch.no_grad():
        autoencoder.get_parameter(name).sub_(by)


def centred(autoencoder: SparseAutoencoder) -> None:
    """Zero all biases, so that an input equal to b_dec has pre-activations of exactly 0."""
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            if name in ("b_enc", "b_gate", "b_mag"):
                parameter.zero_()


def odd_batch(case: str, autoencoder: SparseAutoencoder) -> Tensor:
    x = samples(7)
    match case:
        case "one sample":
            return x[:1]
        case "empty rows":
            centred(autoencoder)
            x[[0, 3, 6]] = autoencoder.b_dec.detach()
        case "empty batch":
            centred(autoencoder)
            silence(autoencoder, 100.0)
        case "repeated samples":
            return x[[0, 0, 0, 1, 1, 2]]
        case "twin latents":
            with torch.no_grad():
                for name, parameter in autoencoder.named_parameters():
                    if name == "W_enc":
                        parameter[:, 1::2] = parameter[:, 0:-1:2]
                    elif name != "b_dec":
                        parameter[1::2] = parameter[0:-1:2]
        case "evaluation":
            autoencoder(samples(50, seed=2))
            autoencoder.eval()
    return x


CASES = ["ordinary", "one sample", "empty rows", "empty batch", "repeated samples", "twin latents", "evaluation"]


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@each_with("apply_b_dec_to_input")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_sparse_forward_is_the_dense_one(arch: str, case: str, apply_b_dec_to_input: bool):
    autoencoder = build(arch, apply_b_dec_to_input=apply_b_dec_to_input)
    x = odd_batch(case, autoencoder)
    dense, sparse, with_dense, with_sparse = pair(autoencoder, x)
    assert dense.codes.pattern is None
    assert sparse.codes.pattern is not None
    assert sparse.codes.shape == dense.codes.shape == (len(x), 14)
    # The codes come from the same product: equal to the last bit, so both paths choose alike at ties.
    if not ARCHITECTURES[arch].rounds:
        assert torch.equal(sparse.codes.dense(), dense.codes.dense())
    torch.testing.assert_close(sparse.codes.dense(), dense.codes.dense(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sparse.reconstruction, dense.reconstruction, rtol=1e-12, atol=1e-12)
    for optional in ("gate", "active"):
        one, other = getattr(sparse, optional), getattr(dense, optional)
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one.dense(), other.dense())
    if case == "empty batch" and not ARCHITECTURES[arch].signed:
        assert not dense.codes.dense().any()
        assert torch.equal(sparse.reconstruction, sparse.b_dec.expand_as(x))
    elif case == "empty rows" and apply_b_dec_to_input:
        assert not dense.codes.dense()[[0, 3, 6]].any()
        assert dense.codes.dense()[[1, 2, 4, 5]].any()
    else:
        assert dense.codes.dense().any()
    for one, other in zip(with_sparse.buffers(), with_dense.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12 if ARCHITECTURES[arch].rounds else 0, atol=0)
    # A direction that weighs every output differently.
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=x.dtype)
    got = gradients((sparse.reconstruction * weights).sum(), with_sparse)
    wanted = gradients((dense.reconstruction * weights).sum(), with_dense)
    for name in wanted:
        assert torch.isfinite(got[name]).all(), name
        assert relative_error(got[name], wanted[name]) < 1e-10, name


@each_architecture
def test_gradients_of_ordinary_batches_reach_every_parameter(arch: str):
    # Without it, agreement of the two paths could be agreement about zero.
    autoencoder = build(arch)
    found = gradients(autoencoder(samples(7), sparse=True).reconstruction.square().sum(), autoencoder)
    silent = {name for name, grad in found.items() if not grad.any()}
    assert silent == ARCHITECTURES[arch].silent


@each_with_equal_paths
@pytest.mark.parametrize("seed", range(20))
def test_pattern_covers_every_code(arch: str, seed: int):
    generator = torch.Generator().manual_seed(seed)
    batch, d_in, d_sae = (int(torch.randint(low, 30, (1,), generator=generator)) for low in (1, 2, 4))
    dtype = (torch.float64, torch.float32, torch.bfloat16)[seed % 3]
    # Groups have two latents, or are two.
    d_sae += d_sae % 2
    autoencoder = build(arch, d_in, d_sae, seed=seed, dtype=dtype)
    x = samples(batch, d_in, seed=seed, dtype=dtype)
    dense, sparse, *_ = pair(autoencoder, x)
    held = entries(sparse.codes)
    outside = dense.codes.dense()[~held]
    assert outside.count_nonzero() == 0
    assert torch.equal(sparse.codes.dense(), dense.codes.dense())
    if autoencoder.settings.fixed_k:
        assert (held.sum(1) == ARCHITECTURES[arch].changes["k"]).all()


@pytest.mark.parametrize("seed", range(20))
def test_jumprelu_pattern_covers_the_kernel(seed: int):
    autoencoder = build("jumprelu", 5, 40, seed=seed)
    assert isinstance(autoencoder, JumpReLU)
    x = samples(30, seed=seed)
    record = autoencoder(x, sparse=True)
    within = (record.pre_activations.dense() - autoencoder.threshold).abs() < autoencoder.settings.bandwidth / 2
    assert within.any()
    assert not (within & ~entries(record.codes)).any()


def test_jumprelu_pattern_covers_codes_that_bfloat16_rounds_up():
    # Near 1, bfloat16 steps by 0.008: a sum of product and bias below the threshold may round to above it by far more
    # than this kernel, so the pattern must allow for the rounding of pre-activations.
    autoencoder = build("jumprelu", 4, 4000, dtype=torch.bfloat16, bandwidth=1e-4)
    with torch.no_grad():
        autoencoder.get_parameter("log_threshold").fill_(math.log(1.007))
        autoencoder.get_parameter("b_enc").copy_(torch.linspace(0, 0.5, 4000))
    dense, sparse, *_ = pair(autoencoder, samples(20, 4, dtype=torch.bfloat16))
    assert torch.equal(sparse.codes.dense(), dense.codes.dense())


@each_architecture
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_samples_encoded_some_at_a_time_are_the_dense_ones(arch: str, rows: int):
    autoencoder = build(arch)
    autoencoder.product_entries = rows * autoencoder.d_sae
    dense, sparse, with_dense, with_sparse = pair(autoencoder, samples(10))
    torch.testing.assert_close(sparse.codes.dense(), dense.codes.dense(), rtol=1e-12, atol=1e-12)
    got = gradients(sparse.reconstruction.square().sum(), with_sparse)
    wanted = gradients(dense.reconstruction.square().sum(), with_dense)
    for name in wanted:
        assert relative_error(got[name], wanted[name]) < 1e-10, name
    for one, other in zip(with_sparse.buffers(), with_dense.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@each_with_equal_paths
def test_sparse_is_dense_in_float32(arch: str):
    autoencoder = build(arch, 16, 64, dtype=torch.float32)
    x = samples(50, 16, dtype=torch.float32)
    dense, sparse, with_dense, with_sparse = pair(autoencoder, x)
    assert torch.equal(sparse.codes.dense(), dense.codes.dense())
    assert relative_error(sparse.reconstruction, dense.reconstruction) < 1e-5
    got = gradients((sparse.reconstruction - x).square().sum(1).mean(), with_sparse)
    wanted = gradients((dense.reconstruction - x).square().sum(1).mean(), with_dense)
    for name in wanted:
        assert relative_error(got[name], wanted[name]) < 1e-5, name


@each_architecture
@each_path
def test_forward_and_backward_under_autocast(arch: str, sparse: bool):
    # The encoder's product in bfloat16, weights and their gradients in float32.
    autoencoder = build(arch, 16, 64, dtype=torch.float32)
    exact = twin(autoencoder)
    x = samples(50, 16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        record = autoencoder(x, sparse=sparse)
    assert record.codes.values.dtype == record.reconstruction.dtype == torch.float32
    found = gradients(SquaredError().measure(record, NO_DEAD).value, autoencoder)
    wanted = gradients(SquaredError().measure(exact(x), NO_DEAD).value, exact)
    for name, grad in found.items():
        assert grad.dtype == torch.float32, name
    # bfloat16 keeps 8 bits and a few latents flip at their thresholds; the direction remains.
    for name in found.keys() & {"W_enc", "W_dec", "b_dec"}:
        cosine = torch.cosine_similarity(found[name].flatten(), wanted[name].flatten(), dim=0)
        assert float(cosine) > 0.97, name


@each_with("encoder_init")
@each_path
def test_encoder_gradient_has_the_layout_of_its_parameter(arch: str, sparse: bool):
    autoencoder = build(arch)
    record = autoencoder(samples(7), sparse=sparse)
    (grad,) = torch.autograd.grad(record.reconstruction.square().sum(), autoencoder.W_enc)
    assert grad.stride() == autoencoder.W_enc.stride() == (1, 5)


def parts(term: LossTerm, arch: str, **changes) -> dict[str, Tensor]:
    autoencoder = build(arch, **changes)
    return gradients(term.measure(autoencoder(samples(9)), NO_DEAD).value, autoencoder)


@pytest.mark.parametrize("term", [SquaredError(), *(Fisher(form=form) for form in FisherForm)], ids=repr)
@pytest.mark.parametrize("arch", ["gated", "signed_gated"])
def test_gate_gets_no_gradient_through_the_codes(arch: str, term: LossTerm):
    found = parts(term, arch)
    assert not found["b_gate"].any()
    assert found["b_mag"].any()
    assert found["r_mag"].any()
    assert found["W_enc"].any()


@pytest.mark.parametrize("term", [L1(), TanhL0(), GateReconstruction()], ids=repr)
@pytest.mark.parametrize("arch", ["gated", "signed_gated"])
def test_gate_learns_by_sparsity_and_auxiliary_alone(arch: str, term: LossTerm):
    """Other libraries' bug: a detached path, from which the gate and the encoder learn nothing."""
    found = parts(term, arch)
    assert found["b_gate"].any()
    assert found["W_enc"].any()
    assert not found["b_mag"].any()
    assert not found["r_mag"].any()
    assert not found["W_dec"].any()


@each_path
def test_thresholds_of_jumprelu_by_hand(sparse: bool):
    # Pre-activations [1 2.5 2] and [-1 0 -2.5]; thresholds [.9 2.6 .3], kernel 0.4: the first two entries of the first
    # sample are inside it (distances .1), nothing else is.
    thresholds = torch.tensor([0.9, 2.6, 0.3], dtype=torch.float64)
    autoencoder = with_weights("jumprelu", WEIGHTS | {"log_threshold": thresholds.log().tolist()})
    record = autoencoder(X, sparse=sparse)
    # Codes: latent 1 is below its threshold. 1 [1 0] + 2 [1 1] + [1 -1] = [4 1]
    torch.testing.assert_close(record.reconstruction[0], torch.tensor([4.0, 1.0], dtype=torch.float64))
    found = gradients(SquaredError().measure(record, NO_DEAD).value, autoencoder)["log_threshold"]
    # d/dcode of the mean over two samples of |x - x_hat|^2: 2/2 (x_hat - x) . W_dec_i, x_hat - x = [2 0]:
    # latent 0: 2; latent 1: 0. Times -threshold / bandwidth, and times threshold for the log:
    # latent 0: 2 * -(.9 / .4) * .9 = -4.05; latent 1: 0.
    torch.testing.assert_close(found, torch.tensor([-4.05, 0, 0], dtype=torch.float64))
    found = gradients(StepL0().measure(autoencoder(X, sparse=sparse), NO_DEAD).value, autoencoder)
    # -1 / bandwidth / batch * threshold = -1.25 * [.9 2.6], latent 1 included although it is off.
    torch.testing.assert_close(found["log_threshold"], torch.tensor([-1.125, -3.25, 0], dtype=torch.float64))
    # The count itself is a step: nothing reaches the encoder.
    assert not found["W_enc"].any()
    assert not found["b_enc"].any()


@each_path
def test_thresholds_stay_in_float32_and_move_in_a_bfloat16_model(sparse: bool):
    autoencoder = build("jumprelu", dtype=torch.float32)
    assert isinstance(autoencoder, JumpReLU)
    exact = autoencoder.log_threshold.detach().clone()
    for cast in (lambda: autoencoder.bfloat16(), lambda: autoencoder.to(torch.bfloat16), lambda: autoencoder.half()):
        cast()
        # Not rounded on the way either.
        assert torch.equal(autoencoder.log_threshold, exact)
        assert autoencoder.log_threshold.dtype == torch.float32
        assert autoencoder.W_enc.dtype == autoencoder.b_enc.dtype != torch.float32
    autoencoder.bfloat16()
    optimiser = torch.optim.Adam(autoencoder.parameters(), lr=1e-5)
    record = autoencoder(samples(50, dtype=torch.bfloat16), sparse=sparse)
    (SquaredError().measure(record, NO_DEAD).value + StepL0().measure(record, NO_DEAD).value).backward()
    grad = autoencoder.log_threshold.grad
    assert grad is not None
    assert grad.dtype == torch.float32
    optimiser.step()
    # Adam's first step is lr times the sign: 1e-5, less than a rounding of bfloat16 at 1.2 (0.008).
    torch.testing.assert_close(autoencoder.log_threshold, exact - 1e-5 * grad.sign(), rtol=0, atol=5e-7)
    assert grad.any()


@each_architecture
def test_dtype_moves_keep_the_parameters_an_optimiser_holds(arch: str):
    autoencoder = build(arch, dtype=torch.float32)
    before = list(autoencoder.parameters())
    autoencoder.bfloat16()
    assert all(one is other for one, other in zip(autoencoder.parameters(), before, strict=True))
    assert autoencoder.double().W_enc.dtype == torch.float64


def batch_topk(**changes) -> BatchTopK:
    autoencoder = build("batch_topk", 16, 64, **changes)
    assert isinstance(autoencoder, BatchTopK)
    return autoencoder


@each_path
@pytest.mark.parametrize("batch", [1, 10])
def test_batch_topk_keeps_k_a_sample_on_average(sparse: bool, batch: int):
    codes = batch_topk(k=5)(samples(batch, 16), sparse=sparse).codes.dense()
    assert (codes > 0).sum() == 5 * batch
    assert batch == 1 or (codes > 0).sum(1).unique().numel() > 1  # not the same number in each


def test_batch_topk_keeps_only_positive_values():
    autoencoder = batch_topk(k=50)
    record = autoencoder(samples(10, 16))
    pre = record.pre_activations.dense()
    assert (pre > 0).sum() < 500
    torch.testing.assert_close(record.codes.dense(), pre.clamp_min(0))
    assert autoencoder.threshold == 0


@pytest.mark.parametrize("smallest", [None, 0.0, 1.0, 1e9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batch_topk_finds_the_same_from_any_floor(smallest: float | None, dtype: torch.dtype):
    # 0.9 is too low to leave anything out, 9e8 leaves everything out and has it looked for again.
    wanted, autoencoder = batch_topk(k=5).to(dtype), batch_topk(k=5).to(dtype)
    autoencoder._smallest = {} if smallest is None else {0: torch.tensor(smallest)}
    x = samples(10, 16, dtype=dtype)
    assert torch.equal(autoencoder(x, sparse=True).codes.dense(), wanted(x).codes.dense())
    assert torch.equal(autoencoder.threshold, wanted.threshold)


def test_batch_topk_begins_the_next_search_a_little_below_the_last_threshold(monkeypatch: pytest.MonkeyPatch):
    autoencoder, floors = batch_topk(k=5), []
    search = batch_topk_module._Search
    monkeypatch.setattr(
        batch_topk_module, "_Search", lambda b_enc, k, floor: (floors.append(floor), search(b_enc, k, floor))[1]
    )
    codes = autoencoder(samples(10, 16), sparse=True).codes.dense()
    autoencoder(samples(10, 16), sparse=True)
    assert floors[0] is None
    assert [float(floor) for floor in floors[1:]] == pytest.approx([0.9 * codes[codes > 0].min().item()])


@each_path
def test_batch_topk_counts_no_batch_that_is_only_encoded(sparse: bool):
    autoencoder = batch_topk(k=5)
    autoencoder(samples(10, 16), sparse=sparse)
    threshold = autoencoder.threshold.clone()
    autoencoder.encode(samples(10, 16, seed=3), sparse=sparse)
    assert torch.equal(autoencoder.threshold, threshold)
    autoencoder(samples(10, 16, seed=3), sparse=sparse)
    assert not torch.equal(autoencoder.threshold, threshold)


@each_path
def test_batch_topk_lets_ties_in(sparse: bool):
    x = samples(4, 16)
    once = batch_topk(k=5)(x, sparse=sparse).codes.dense()
    # The same four samples and a copy of the first: k * 5 = 25 entries, but what ties with the 25th largest is in.
    repeated = batch_topk(k=5)(x[[0, 1, 2, 3, 0]], sparse=sparse).codes.dense()
    assert torch.equal(repeated[0], repeated[4])
    assert (repeated > 0).sum() >= 25
    assert (once > 0).sum() == 20


def test_batch_topk_threshold_is_a_moving_average():
    autoencoder = batch_topk(k=5, threshold_decay=0.9)
    assert autoencoder.threshold == -1
    smallest = []
    for seed in range(3):
        codes = autoencoder(samples(10, 16, seed=seed)).codes.dense()
        smallest.append(float(codes[codes > 0].detach().min()))
    # The first batch sets it, each later one counts a tenth.
    wanted = 0.9 * (0.9 * smallest[0] + 0.1 * smallest[1]) + 0.1 * smallest[2]
    assert float(autoencoder.threshold) == pytest.approx(wanted, rel=1e-12)
    assert not autoencoder.threshold.requires_grad
    assert "threshold" in autoencoder.state_dict()


@each_path
def test_batch_topk_in_inference_uses_the_threshold_and_leaves_it(sparse: bool):
    autoencoder = batch_topk(k=5)
    for seed in range(3):
        autoencoder(samples(10, 16, seed=seed))
    before = float(autoencoder.threshold)
    autoencoder.eval()
    x = samples(7, 16, seed=9)
    record = autoencoder(x, sparse=sparse)
    pre = record.pre_activations.dense()
    torch.testing.assert_close(record.codes.dense(), pre * (pre > before))
    assert float(autoencoder.threshold) == before
    # One sample's codes do not depend on the others'.
    torch.testing.assert_close(autoencoder(x[:1], sparse=sparse).codes.dense(), record.codes.dense()[:1])


def test_batch_topk_before_any_batch_is_a_relu():
    autoencoder = batch_topk().eval()
    record = autoencoder(samples(7, 16))
    torch.testing.assert_close(record.codes.dense(), record.pre_activations.dense().clamp_min(0))


def test_batch_topk_in_inference_is_as_sparse_as_in_training():
    autoencoder = batch_topk(k=5, threshold_decay=0.95)
    for seed in range(60):
        autoencoder(samples(64, 16, seed=seed))
    l0 = (autoencoder.eval()(samples(2000, 16, seed=999)).codes.dense() > 0).sum(1).double().mean()
    # The mean of the batches' smallest codes is not the population's quantile, but close at 64 x 5 entries.
    assert float(l0) == pytest.approx(5, rel=0.03)


def test_batch_topk_threshold_stays_in_float32():
    autoencoder = batch_topk(k=5, dtype=torch.float32, threshold_decay=0.99)
    autoencoder(samples(10, 16, dtype=torch.float32))
    exact = float(autoencoder.threshold)
    autoencoder.bfloat16()
    assert autoencoder.threshold.dtype == torch.float32
    assert float(autoencoder.threshold) == exact
    codes = autoencoder(samples(10, 16, seed=5, dtype=torch.bfloat16)).codes.dense()
    smallest = float(codes[codes > 0].detach().min())
    # A hundredth of a small difference, which bfloat16 would lose.
    assert float(autoencoder.threshold) == pytest.approx(0.99 * exact + 0.01 * smallest, rel=1e-6)
    assert float(autoencoder.threshold) != exact


@pytest.mark.parametrize("arch", ["topk", "abs_topk"])
@each_path
def test_topk_keeps_exactly_k_at_ties(arch: str, sparse: bool):
    weights = {"W_enc": [[1.0] * 6, [0.0] * 6], "W_dec": [[1.0, 0.0]] * 6}
    # All six pre-activations are 3 (and -3): whichever are chosen, they are 2 and their values are equal.
    record = with_weights(arch, weights, k=2)(torch.tensor([[3.0, 0.0], [-3.0, 1.0]]).double(), sparse=sparse)
    assert record.codes.dense()[0].sort().values.tolist() == [0, 0, 0, 0, 3, 3]
    signed = [-3.0, -3.0, 0, 0, 0, 0] if arch == "abs_topk" else [0.0] * 6
    assert record.codes.dense()[1].sort().values.tolist() == signed
    assert record.reconstruction[0].tolist() == [6, 0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("width", "k"), [(160, 5), (160, 6), (161, 5), (16, 16)])
def test_the_largest_by_groups_are_the_largest(width: int, k: int, dtype: torch.dtype):
    # 160 are ten groups of 16, enough for 5 and too few for 6; 161 are no whole groups. bfloat16 has many ties.
    scores = samples(50, width, dtype=dtype)
    scores[0] = 1.0
    scores[1, ::16] = 9.0
    scores[2, :7] = torch.tensor([0.0, -0.0, math.inf, -math.inf, 0.0, -0.0, math.inf])
    indices = topk_module.largest(scores, k)
    assert all(len(row.unique()) == k for row in indices)
    assert torch.equal(scores.gather(1, indices).sort(1).values, scores.topk(k, dim=1).values.flip(1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [160, 161])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_is_among_the_largest_values(width: int, sign: float, dtype: torch.dtype):
    scores = samples(20, width, dtype=dtype)
    scores[:, 40] = math.inf
    scores[:, 77] = torch.tensor(math.nan, dtype=dtype).copysign(torch.tensor(sign, dtype=dtype))
    chosen = topk_module.largest(scores, 2)
    assert chosen.sort(1).values.tolist() == [[40, 77]] * 20


@pytest.mark.parametrize(
    "arch",
    [arch for arch, row in ARCHITECTURES.items() if not row.thresholds and not row.given_codes],
)
@each_path
def test_gradcheck_of_the_reconstruction(arch: str, sparse: bool):
    # JumpReLU's thresholds have a gradient that is no derivative.
    autoencoder, x = build(arch), samples(6)
    names = [name for name, _ in autoencoder.named_parameters()]

    def reconstruction(*parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(autoencoder, given, (x,), {"sparse": sparse}).reconstruction

    assert torch.autograd.gradcheck(reconstruction, tuple(autoencoder.parameters()))

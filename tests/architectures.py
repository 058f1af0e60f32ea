"""One small autoencoder of every architecture, with weights at which every path through it carries gradient."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from fsae.autoencoders.abs_topk import AbsTopKSettings
from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder
from fsae.autoencoders.batch_topk import BatchTopKSettings
from fsae.autoencoders.fitted import FittedAutoencoder, FittedSettings
from fsae.autoencoders.gated import GatedSettings
from fsae.autoencoders.group_topk import GroupMaxSettings, GroupTopKSettings
from fsae.autoencoders.jumprelu import JumpReLUSettings
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.lista import ListaSettings
from fsae.autoencoders.local_pca import KMeansSettings, LocalPCASettings
from fsae.autoencoders.mlp_encoder import MLPEncoderSettings
from fsae.autoencoders.pca import PCASettings
from fsae.autoencoders.pursuit import MatchingPursuitSettings, OMPSettings, PursuitSettings
from fsae.autoencoders.record import Encoding
from fsae.autoencoders.settings import SparseAutoencoderSettings
from fsae.autoencoders.signed_gated import SignedGatedSettings
from fsae.autoencoders.standard import Standard, StandardSettings
from fsae.autoencoders.top_afa import TopAFASettings
from fsae.autoencoders.topk import KSettings, TopKSettings
from fsae.losses.auxiliary import AuxK, GateReconstruction
from fsae.losses.code_norm import CodeNorm
from fsae.losses.sparsity import L1, StepL0
from fsae.losses.term import LossTerm
from fsae.sparse.codes import Codes


def _rectified(h: Tensor, chosen: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
    return torch.relu(h) * chosen


def _k_largest(score: Tensor, k: int) -> Tensor:
    """(batch, d_sae) bool: the k largest of each row."""
    return score >= score.sort(dim=1, descending=True).values[:, k - 1 : k]


def _k_of(autoencoder: SparseAutoencoder) -> int:
    assert isinstance(autoencoder.settings, KSettings)
    return autoencoder.settings.k


def _jumped(h: Tensor, chosen: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
    """Rectified, with the straight-through gradient of the thresholds."""
    assert isinstance(autoencoder.settings, JumpReLUSettings)
    width, threshold = autoencoder.settings.bandwidth, autoencoder.get_parameter("log_threshold").exp()
    fixed = threshold.detach()
    kernel = ((h.detach() - fixed).abs() < width / 2).to(h.dtype)
    # Worth 0, with derivative -(threshold / width) in the threshold where the kernel is on.
    return h * chosen - fixed / width * kernel * (threshold - fixed)


def _matched(x: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
    """Codes of matching pursuit, step by step and sample by sample."""
    settings, W = autoencoder.settings, autoencoder.W_dec
    assert isinstance(settings, MatchingPursuitSettings)
    codes = []
    for residual in x - autoencoder.b_dec:
        found = torch.zeros(len(W), dtype=x.dtype)
        for _ in range(settings.k):
            j = int((W @ residual).argmax())
            value = torch.relu(W[j] @ residual)
            known = bool(found[j] != 0)
            found = found + value * torch.nn.functional.one_hot(torch.tensor(j), len(W))
            residual = residual - value * W[j]
            if value == 0 or (known and settings.stop_on_duplicate_support):
                break
            if residual.norm() < settings.residual_threshold:
                break
        codes.append(found)
    return torch.stack(codes)


def _orthogonally_matched(x: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
    """Codes of orthogonal matching pursuit, by SciPy's non-negative least squares."""
    settings, W = autoencoder.settings, autoencoder.W_dec.detach()
    assert isinstance(settings, PursuitSettings)
    codes = torch.zeros(len(x), len(W), dtype=x.dtype)
    for sample, u in enumerate((x - autoencoder.b_dec).detach()):
        taken, residual = list[int](), u
        for _ in range(settings.k):
            scores = W @ residual
            scores[taken] = -torch.inf
            if float(scores.max()) <= 1e-12 or (taken and residual.norm() < settings.residual_threshold):
                break
            taken.append(int(scores.argmax()))
            codes[sample, taken] = torch.from_numpy(nnls(W[taken].T.numpy(), u.numpy())[0])
            residual = u - codes[sample] @ W
    # The gradient of codes is zero, which autograd asks for.
    return codes + 0 * autoencoder.W_dec.sum()


def _refined_by_the_error(x: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
    """The input that the last selection of LISTA's one refinement reads."""
    assert isinstance(autoencoder.settings, ListaSettings)
    u = x - autoencoder.b_dec if autoencoder.settings.apply_b_dec_to_input else x
    h = u @ autoencoder.W_enc + autoencoder.get_parameter("b_enc")
    chosen = _k_largest(h.detach().view(1, -1), _k_of(autoencoder) * len(h)).view_as(h)
    return x + autoencoder.settings.eta * (u - (torch.relu(h) * chosen) @ autoencoder.W_dec)


def _refined_by_a_layer(x: Tensor, autoencoder: SparseAutoencoder) -> Tensor:
    W_hidden, b_hidden, W_back = (autoencoder.get_parameter(name) for name in ("W_hidden", "b_hidden", "W_back"))
    u = x - autoencoder.b_dec if autoencoder.settings.apply_b_dec_to_input else x
    return x + torch.relu(u @ W_hidden + b_hidden) @ W_back


def _k_largest_of_batch(h: Tensor, gate: Tensor, autoencoder: SparseAutoencoder, x: Tensor) -> Tensor:
    return _k_largest(h.view(1, -1), _k_of(autoencoder) * len(h)).view_as(h)


def _groups_of_largest_norm(h: Tensor, gate: Tensor, autoencoder: SparseAutoencoder, x: Tensor) -> Tensor:
    settings = autoencoder.settings
    assert isinstance(settings, GroupTopKSettings)
    norms = h.unflatten(1, (-1, settings.rank)).square().sum(2)
    return _k_largest(norms, settings.k // settings.rank).repeat_interleave(settings.rank, dim=1)


def _largest_of_each_group(h: Tensor, gate: Tensor, autoencoder: SparseAutoencoder, x: Tensor) -> Tensor:
    groups = h.unflatten(1, (_k_of(autoencoder), -1))
    return (groups == groups.amax(2, keepdim=True)).flatten(1)


def _longest_up_to_the_norm(h: Tensor, gate: Tensor, autoencoder: SparseAutoencoder, x: Tensor) -> Tensor:
    """As many of the longest latents as come nearest to the norm of x - b_dec, sample by sample."""
    lengths, chosen = torch.relu(h) * autoencoder.W_dec.detach().norm(dim=1), torch.zeros_like(h, dtype=torch.bool)
    for sample, wanted in enumerate((x - autoencoder.b_dec).detach().norm(dim=1)):
        order = lengths[sample].argsort(descending=True)
        distances = [(lengths[sample, order[:k]].norm() - wanted).abs() for k in range(1, len(order) + 1)]
        chosen[sample, order[: 1 + distances.index(min(distances))]] = True
    return chosen


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All that the tests know of an architecture that gradients train: one row of the table.

    Its codes are defined from the parameters, without anything of the package's forward pass.

    Attributes:
        settings: their class.
        changes: to the defaults of the settings.
        loss: its own terms, besides the reconstruction.
        saelens: its name in SAELens' format, and its tensors of shape (d_sae,) there.
        pre_activations: of (x - b_dec) W_enc and the parameters; if there is a gate, of the magnitude path.
        gate: the gate path, of the same arguments; None for the pre-activations.
        selected: (batch, d_sae) bool, of pre-activations, gate, autoencoder and x: which latents may be on, before
            rectifying. No gradient goes through it.
        activation: codes of pre-activations, the selected ones and the autoencoder.
        competes: whether latents compete for places.
        signed: whether codes may be negative.
        bias: the bias that decides which latents are on.
        silent: parameters that no gradient of the codes reaches.
        thresholds: parameters whose gradient is an estimate, no derivative.
        refined: what the encoder makes of x before the product with W_enc, of x and the autoencoder.
        codes: of x and the autoencoder, if there are no pre-activations; then `selected` and `activation` have no
            meaning.
        fixed: settings that can have one value only; decoder_init if it cannot be zeros, W_dec if codes depend on it,
            b_dec if they depend on it whatever the encoder reads,
            target if it must be the input, encoder_norm if training fixes the norms of W_enc's columns.
        given_codes: whether codes have no gradient.
        through_decoder: whether codes have a gradient in W_dec.
        rounds: whether dense and sparse products round the codes differently.
        encoder_factor: of the encoder's weights in these tests, so that more than a few latents are on.
        shapes: of further tensors in SAELens' format, for d_in 5.
    """

    settings: type[SparseAutoencoderSettings]
    changes: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, LossTerm]
    saelens: tuple[str, tuple[str, ...]]
    pre_activations: Callable[[Tensor, dict[str, Tensor]], Tensor] = lambda products, p: products + p["b_enc"]
    gate: Callable[[Tensor, dict[str, Tensor]], Tensor] | None = None
    selected: Callable[[Tensor, Tensor, SparseAutoencoder, Tensor], Tensor] = lambda h, gate, _, x: h != 0
    activation: Callable[[Tensor, Tensor, SparseAutoencoder], Tensor] = _rectified
    competes: bool = False
    signed: bool = False
    bias: str = "b_enc"
    silent: frozenset[str] = frozenset()
    thresholds: frozenset[str] = frozenset()
    refined: Callable[[Tensor, SparseAutoencoder], Tensor] = lambda x, _: x
    codes: Callable[[Tensor, SparseAutoencoder], Tensor] | None = None
    fixed: frozenset[str] = frozenset()
    given_codes: bool = False
    through_decoder: bool = False
    rounds: bool = False
    encoder_factor: float = 1.0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


# What is explained is x - b_dec, by unit rows that are the encoder, too.
_OF_PURSUIT = frozenset({"W_dec", "target", "apply_b_dec_to_input", "decoder_norm", "encoder_init"})

ARCHITECTURES: dict[str, Architecture] = {
    "standard": Architecture(
        settings=StandardSettings,
        loss={"sparsity": L1(weight=0.3, warm_up=0.5)},
        saelens=("standard", ("b_enc",)),
        selected=lambda h, gate, _, x: torch.ones_like(h, dtype=torch.bool),
    ),
    "gated": Architecture(
        settings=GatedSettings,
        loss={"sparsity": L1(weight=0.3, warm_up=0.5), "auxiliary": GateReconstruction()},
        saelens=("gated", ("b_gate", "b_mag", "r_mag")),
        pre_activations=lambda products, p: products * p["r_mag"].exp() + p["b_mag"],
        gate=lambda products, p: products + p["b_gate"],
        selected=lambda h, gate, _, x: gate > 0,
        bias="b_gate",
        silent=frozenset({"b_gate"}),
    ),
    "signed_gated": Architecture(
        settings=SignedGatedSettings,
        changes={"init_threshold": 0.9},
        loss={"sparsity": L1(weight=0.3, warm_up=0.5), "auxiliary": GateReconstruction()},
        saelens=("signed_gated", ("b_gate", "b_gate_negative", "b_mag", "r_mag")),
        pre_activations=lambda products, p: products * p["r_mag"].exp() + p["b_mag"],
        gate=lambda products, p: torch.relu(products + p["b_gate"]) - torch.relu(p["b_gate_negative"] - products),
        selected=lambda h, gate, _, x: gate != 0,
        activation=lambda h, chosen, _: h * chosen,
        signed=True,
        bias="b_gate",
        silent=frozenset({"b_gate", "b_gate_negative"}),
    ),
    # A wide kernel, so that a few dozen entries suffice for some to fall into it.
    "jumprelu": Architecture(
        settings=JumpReLUSettings,
        changes={"init_threshold": 0.3, "bandwidth": 0.4},
        loss={"sparsity": StepL0(weight=0.1, warm_up=0.5)},
        saelens=("jumprelu", ("b_enc", "threshold")),
        selected=lambda h, gate, autoencoder, x: h > autoencoder.get_parameter("log_threshold").detach().exp(),
        activation=_jumped,
        thresholds=frozenset({"log_threshold"}),
    ),
    "topk": Architecture(
        settings=TopKSettings,
        changes={"k": 3},
        loss={"auxiliary": AuxK(k=2)},
        saelens=("topk", ("b_enc",)),
        selected=lambda h, gate, autoencoder, x: _k_largest(h, _k_of(autoencoder)),
        competes=True,
    ),
    "batch_topk": Architecture(
        settings=BatchTopKSettings,
        changes={"k": 3},
        loss={"auxiliary": AuxK(k=2)},
        saelens=("jumprelu", ("b_enc", "threshold")),
        selected=_k_largest_of_batch,
        competes=True,
    ),
    "abs_topk": Architecture(
        settings=AbsTopKSettings,
        changes={"k": 3},
        loss={"auxiliary": AuxK(k=2)},
        saelens=("abstopk", ("b_enc",)),
        selected=lambda h, gate, autoencoder, x: _k_largest(h.abs(), _k_of(autoencoder)),
        activation=lambda h, chosen, _: h * chosen,
        competes=True,
        signed=True,
    ),
    "group_topk": Architecture(
        settings=GroupTopKSettings,
        changes={"k": 4, "rank": 2},
        loss={"auxiliary": AuxK(k=2)},
        saelens=("group_topk", ("b_enc",)),
        selected=_groups_of_largest_norm,
        activation=lambda h, chosen, _: h * chosen,
        competes=True,
        signed=True,
        fixed=frozenset({"encoder_norm"}),
    ),
    "groupmax": Architecture(
        settings=GroupMaxSettings,
        changes={"k": 2},
        loss={"auxiliary": AuxK(k=2)},
        saelens=("groupmax", ("b_enc",)),
        selected=_largest_of_each_group,
        competes=True,
    ),
    "top_afa": Architecture(
        settings=TopAFASettings,
        loss={"auxiliary": AuxK(k=2), "norm": CodeNorm(weight=0.5)},
        saelens=("top_afa", ("b_enc",)),
        selected=_longest_up_to_the_norm,
        encoder_factor=0.5,
        fixed=frozenset({"W_dec", "b_dec", "target", "decoder_init"}),
        competes=True,
    ),
    "lista": Architecture(
        settings=ListaSettings,
        changes={"k": 3},
        loss={"auxiliary": AuxK(k=2)},
        saelens=("lista", ("b_enc", "threshold")),
        refined=_refined_by_the_error,
        selected=_k_largest_of_batch,
        fixed=frozenset({"W_dec", "target"}),
        through_decoder=True,
        competes=True,
        rounds=True,
        shapes={"early_thresholds": (1,)},
    ),
    "mlp_encoder": Architecture(
        settings=MLPEncoderSettings,
        changes={"k": 3, "hidden_expansion": 1.4},
        loss={"auxiliary": AuxK(k=2)},
        saelens=("mlp_encoder", ("b_enc", "threshold")),
        refined=_refined_by_a_layer,
        selected=_k_largest_of_batch,
        competes=True,
        shapes={"W_hidden": (5, 7), "b_hidden": (7,), "W_back": (7, 5)},
    ),
    "matching_pursuit": Architecture(
        settings=MatchingPursuitSettings,
        changes={"k": 3},
        loss={},
        saelens=("matching_pursuit", ()),
        codes=_matched,
        fixed=_OF_PURSUIT,
        through_decoder=True,
        competes=True,
    ),
    "omp": Architecture(
        settings=OMPSettings,
        changes={"k": 3},
        loss={},
        saelens=("omp", ()),
        codes=_orthogonally_matched,
        given_codes=True,
        fixed=_OF_PURSUIT,
        competes=True,
    ),
}


class Squared(Standard):
    """An architecture that nothing knows but this file: a subclass of another, with codes of its own."""

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        known = super().encode(x, sparse)
        return Encoding(known.codes.map(torch.square), known.pre_activations)


class SquaredSettings(StandardSettings):
    def build(self, ends: Ends | int, generator: torch.Generator) -> Squared:
        return Squared(ends, self, generator)


# Those that are fitted without gradients.
FITTED: dict[str, FittedSettings] = {
    "kmeans": KMeansSettings(d_sae=6),
    "local_pca": LocalPCASettings(d_sae=12, rank=2),
    "pca": PCASettings(d_sae=3),
}

each_architecture = pytest.mark.parametrize("arch", list(ARCHITECTURES))
# Those that have the optional field of the record.
each_with_pre_activations = pytest.mark.parametrize(
    "arch", [arch for arch, row in ARCHITECTURES.items() if "pre_activations" in row.settings.provides]
)

each_with_gradients_of_codes = pytest.mark.parametrize(
    "arch", [arch for arch, row in ARCHITECTURES.items() if not row.given_codes]
)

each_with_equal_paths = pytest.mark.parametrize("arch", [arch for arch, row in ARCHITECTURES.items() if not row.rounds])


def each_with(*settings: str) -> pytest.MarkDecorator:
    """Return the architectures in which all of these settings may have any value."""
    return pytest.mark.parametrize("arch", [arch for arch, row in ARCHITECTURES.items() if not row.fixed & {*settings}])


def settings_of(arch: str, **changes: Any) -> SparseAutoencoderSettings:
    """Settings of an architecture, with `changes` to the defaults of these tests."""
    row = ARCHITECTURES[arch]
    return row.settings(**{**row.changes, **changes})


def build(
    arch: str, d_in: int | Ends = 5, d_sae: int = 14, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any
) -> SparseAutoencoder:
    """An autoencoder whose every parameter was moved away from its special starting value."""
    generator = torch.Generator().manual_seed(seed)
    autoencoder = settings_of(arch, d_sae=d_sae, **changes).build(d_in, generator).to(dtype)
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
        if ARCHITECTURES[arch].encoder_factor != 1:
            autoencoder.W_enc.mul_(ARCHITECTURES[arch].encoder_factor)
    return autoencoder


def fitted(arch: str, d_in: int = 5, dtype: torch.dtype = torch.float32) -> FittedAutoencoder:
    """One with centres and means that are drawn and components that are orthonormal."""
    autoencoder = FITTED[arch].build(d_in, torch.Generator()).to(dtype).eval()
    cells, rank = autoencoder.cells, autoencoder.rank
    bases = torch.linalg.qr(samples(cells * d_in, d_in, seed=2).view(cells, d_in, d_in)).Q
    centres, means = (samples(cells, d_in, seed=seed).to(dtype) for seed in (3, 4))
    autoencoder.set_weights(centres, bases[:, :rank].to(dtype), means)
    return autoencoder


def with_weights(arch: str, weights: Mapping[str, Any], **changes: Any) -> SparseAutoencoder:
    """An autoencoder with exactly the given parameters (nested lists), in float64; those not given are zero."""
    d_in, d_sae = torch.tensor(weights["W_enc"]).shape
    autoencoder = settings_of(arch, d_sae=d_sae, **changes).build(d_in, torch.Generator()).double()
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(torch.tensor(weights.get(name, 0.0), dtype=torch.float64))
    return autoencoder


def samples(batch: int, d_in: int = 5, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """(batch, d_in) draws from a standard normal."""
    return torch.randn(batch, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def twin(autoencoder: SparseAutoencoder) -> SparseAutoencoder:
    """An independent copy; a forward pass in training may change an autoencoder's state."""
    return copy.deepcopy(autoencoder)


def gradients(value: Tensor, autoencoder: Autoencoder) -> dict[str, Tensor]:
    """Gradient of a scalar in every parameter by name, zeros where it does not depend on it."""
    names, parameters = zip(*autoencoder.named_parameters(), strict=True)
    if not value.requires_grad:
        return {name: torch.zeros_like(parameter) for name, parameter in zip(names, parameters, strict=True)}
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True, retain_graph=True)
    return dict(zip(names, found, strict=True))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest wanted entry (over 1e-3 where all are smaller, so that 0 compares with 0)."""
    return float((got - wanted).detach().abs().max() / wanted.detach().abs().max().clamp_min(1e-3))


def entries(codes: Codes) -> Tensor:
    """(batch, d_sae) bool: the entries that the codes hold, zero or not."""
    return Codes(torch.ones_like(codes.values), codes.pattern).dense() != 0


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """One thread: on tensors this small several only wait for each other, for minutes where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

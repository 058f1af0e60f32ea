"""`splice`: the loss of the language model if reconstructions replace its activations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.finiteness import check_finite
from fsae.evaluation.subject import Subject
from fsae.evaluation.vectors import VectorEvaluation
from fsae.language_models.sites import Site
from fsae.outputs.results import Better, Meaning, Shown
from fsae.progress import working
from fsae.ranges import COUNT
from fsae.sources.massive import within

# Entries of log-softmax in memory at a time, in float32: all logits of a batch may be several gigabytes.
ENTRIES_AT_ONCE = 2**25

Replacement = Callable[[Float[Tensor, "row position d_in"]], Tensor]


class SpliceableModel(Protocol):
    """The language model that the splice needs."""

    def logits(
        self, tokens: Int[Tensor, "row position"], *replacements: tuple[Site, Replacement]
    ) -> Float[Tensor, "row position vocabulary"]:
        """Return the logits of one forward pass, with the activations at sites replaced by a function of them."""
        ...


@torch.no_grad()
def evaluate_splice(
    model: SpliceableModel,
    site: Site,
    autoencoders: Sequence[Autoencoder],
    tokens: Int[Tensor, "row position"],
    keep: Bool[Tensor, "row position"],
    mean_activation: Float[Tensor, " d_in"],
    rows_at_once: int,
    heartbeat: Callable[[], None] = lambda: None,
    norm_limit: float | None = None,
    entries_at_once: int = ENTRIES_AT_ONCE,
) -> list[dict[str, float]]:
    """Return each autoencoder's cross-entropy and divergence with replaced activations, in nats per token.

    Only kept positions are replaced and counted: in every variant the model keeps its own activations elsewhere.
    sae_lens ablates at all positions, which is the same if every position is kept. Every sum runs over all tokens.

    ce_base: mean of -log p(next token) over kept positions that have a next token.
    ce_spliced: the same with the reconstruction at the kept positions.
    ce_zero, ce_mean: the same with zeros, or with the mean activation, at the kept positions.
    ce_recovered_zero: (ce_zero - ce_spliced) / (ce_zero - ce_base), the loss recovered: 1 if nothing is lost;
        sae_lens' ce_loss_score.
    ce_recovered_mean: the same with ce_mean.
    kl: mean over kept positions of KL(p_base || p_spliced).

    Args:
        model: runs one forward pass for each autoencoder, and three more.
        site: the site that the autoencoder was trained at.
        autoencoders: in eval mode and in raw units.
        tokens: held-out rows.
        keep: positions that count for the autoencoder, as in training.
        mean_activation: mean at the site over held-out vectors.
        rows_at_once: rows per forward pass; two sets of their logits are held at a time.
        heartbeat: called before each set of rows; may raise to stop.
        norm_limit: vectors of a greater norm are neither replaced nor counted, as in training.
        entries_at_once: entries of log-softmax in memory at a time.

    Raises:
        ValueError: no kept position has a next token, or activations at the site are not finite.
    """
    if not keep[:, :-1].any():
        raise _nothing_to_predict(tokens)
    assert not any(autoencoder.training for autoencoder in autoencoders)
    device = autoencoders[0].W_dec.device
    keep, tokens = keep.to(device), tokens.to(device)
    shared = {name: torch.zeros((), dtype=torch.float64, device=device) for name in ("base", "zero", "mean")}
    spliced = torch.zeros(len(autoencoders), dtype=torch.float64, device=device)
    divergence = torch.zeros_like(spliced)
    predictions = torch.zeros((), dtype=torch.long, device=device)
    counted = torch.zeros_like(predictions)
    ablations = {"zero": torch.zeros_like, "mean": lambda x: mean_activation.to(x).expand_as(x)}

    for begin in range(0, tokens.shape[0], rows_at_once):
        heartbeat()
        rows = slice(begin, begin + rows_at_once)
        row_tokens, row_keep = tokens[rows], keep[rows]
        if norm_limit is None:
            base = model.logits(row_tokens)
        else:
            base, short = _base_and_short(model, site, row_tokens, norm_limit)
            row_keep = row_keep & short.to(row_keep.device)
        predictions += row_keep[:, :-1].sum()
        counted += row_keep.sum()
        shared["base"] += _cross_entropy(base, row_tokens, row_keep, entries_at_once)
        for i, autoencoder in enumerate(autoencoders):
            logits = model.logits(row_tokens, (site, _at(row_keep, partial(_reconstruct, autoencoder, site))))
            spliced[i] += _cross_entropy(logits, row_tokens, row_keep, entries_at_once)
            divergence[i] += _divergence(base, logits, row_keep, entries_at_once)
            del logits
        del base
        for name, ablation in ablations.items():
            logits = model.logits(row_tokens, (site, _at(row_keep, ablation)))
            shared[name] += _cross_entropy(logits, row_tokens, row_keep, entries_at_once)
            del logits

    if not predictions:
        raise _nothing_to_predict(tokens)
    ce = {name: total / predictions for name, total in {**shared, "spliced": spliced}.items()}
    numbers = {
        "ce_recovered_zero": (ce["zero"] - ce["spliced"]) / (ce["zero"] - ce["base"]),
        "ce_recovered_mean": (ce["mean"] - ce["spliced"]) / (ce["mean"] - ce["base"]),
        "kl": divergence / counted,
        **{f"ce_{name}": value for name, value in ce.items()},
    }
    columns = [value.expand_as(spliced).tolist() for value in numbers.values()]
    return [dict(zip(numbers, row, strict=True)) for row in zip(*columns, strict=True)]


def _nothing_to_predict(tokens: Tensor) -> ValueError:
    return ValueError(
        f"none of the {tokens.numel()} held-out tokens can be predicted from a kept position; "
        "raise eval.splice.tokens or give the dataset more text"
    )


def _base_and_short(
    model: SpliceableModel, site: Site, tokens: Int[Tensor, "row position"], norm_limit: float
) -> tuple[Float[Tensor, "row position vocabulary"], Bool[Tensor, "row position"]]:
    """Return the model's own logits, and the positions whose norm at the site is within the limit."""
    short: list[Tensor] = []

    def look(activations: Tensor) -> Tensor:
        short.append(within(activations.flatten(0, 1), norm_limit).view(activations.shape[:2]))
        return activations

    logits = model.logits(tokens, (site, look))
    return logits, short[0]


def _at(keep: Bool[Tensor, "row position"], function: Callable[[Tensor], Tensor]) -> Replacement:
    """Apply `function` to the vectors at the kept positions and leave the others as they are."""

    def replacement(activations: Tensor) -> Tensor:
        kept = keep.to(activations.device)
        replaced = activations.clone()
        replaced[kept] = function(activations[kept]).to(activations)
        return replaced

    return replacement


def _reconstruct(autoencoder: Autoencoder, site: Site, x: Float[Tensor, "vectors d_in"]) -> Tensor:
    check_finite(x, f"activations at {site} of the rows that the reconstruction is spliced into")
    return autoencoder(x.to(autoencoder.W_dec), sparse=True).reconstruction


def _cross_entropy(logits: Tensor, tokens: Tensor, keep: Tensor, entries_at_once: int) -> Tensor:
    """Return the sum of -log p(next token) over kept positions that have one."""
    flat = logits[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].flatten().to(flat.device)
    total = torch.zeros((), dtype=torch.float64, device=flat.device)
    for places in _portions(keep[:, :-1], flat, entries_at_once):
        # Logits are promoted before the softmax: in bfloat16 they have three digits.
        total += F.cross_entropy(flat[places].float(), targets[places], reduction="none").sum(dtype=torch.float64)
    return total.to(tokens.device)


def _divergence(base: Tensor, spliced: Tensor, keep: Tensor, entries_at_once: int) -> Tensor:
    """Return the sum of KL(p_base || p_spliced) over kept positions."""
    base, spliced = base.flatten(0, 1), spliced.flatten(0, 1)
    total = torch.zeros((), dtype=torch.float64, device=base.device)
    for places in _portions(keep, base, entries_at_once):
        log_p, log_q = base[places].float().log_softmax(1), spliced[places].float().log_softmax(1)
        total += (log_p.exp() * (log_p - log_q)).sum(1).sum(dtype=torch.float64)
    return total.to(keep.device)


def _portions(keep: Tensor, logits: Float[Tensor, "places vocabulary"], entries_at_once: int) -> tuple[Tensor, ...]:
    """Return the kept places in portions whose log-softmax has at most so many entries."""
    places = keep.flatten().nonzero().squeeze(1).to(logits.device)
    return places.split(max(1, entries_at_once // logits.shape[1]))


@dataclass(frozen=True, kw_only=True)
class Splice(Evaluation, group="eval.splice"):
    """Cross-entropy of the language model with the reconstruction at the site.

    Attributes:
        tokens: held-out tokens on which the language model runs.
    """

    tokens: int = field(default=2048, metadata=COUNT)

    needs: ClassVar[frozenset[str]] = frozenset({"language_model", "vectors"})
    meanings: ClassVar[dict[str, Meaning]] = {
        "ce_recovered_zero": Meaning(
            "cross-entropy recovered, against zeros at the site", better=Better.more, shown=Shown.first
        ),
        "ce_recovered_mean": Meaning(
            "cross-entropy recovered, against the mean activation", better=Better.more, shown=Shown.files
        ),
        "kl": Meaning(
            "KL(model || model with reconstruction)", unit="nats per token", better=Better.less, shown=Shown.files
        ),
        "ce_base": Meaning("cross-entropy of the model", unit="nats per token", shown=Shown.files),
        "ce_spliced": Meaning(
            "cross-entropy with the reconstruction",
            unit="nats per token",
            better=Better.less,
            shown=Shown.files,
        ),
        "ce_zero": Meaning("cross-entropy with zeros at the site", unit="nats per token", shown=Shown.files),
        "ce_mean": Meaning("cross-entropy with the mean activation", unit="nats per token", shown=Shown.files),
    }

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's numbers on the first rows of held-out text."""
        text, vectors = subject.source.text, subject.found(VectorEvaluation)
        assert text is not None
        assert vectors is not None
        with working("running the language model with the reconstruction in place of its activations"):
            tokens, keep = text.held_out_rows(self.tokens)
            spliced = evaluate_splice(
                text.model,
                text.site,
                subject.autoencoders,
                tokens,
                keep,
                vectors[0].mean_activation,
                text.rows_at_once,
                subject.heartbeat,
                text.norm_limit,
            )
        return [Measured(own) for own in subject.by_run(spliced)]

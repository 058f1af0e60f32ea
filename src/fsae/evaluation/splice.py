"""`splice`: the loss of the language model if reconstructions replace its activations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.finiteness import check_finite
from fsae.evaluation.parts import meanings_of_parts, of_parts
from fsae.evaluation.subject import Subject
from fsae.evaluation.vectors import VectorEvaluation
from fsae.language_models.sites import Site
from fsae.outputs.results import Better, Meaning, Shown
from fsae.progress import working
from fsae.ranges import COUNT
from fsae.sources.layout import Sites
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
def evaluate_parts(
    model: SpliceableModel,
    sites: Sites,
    autoencoders: Sequence[Autoencoder],
    tokens: Int[Tensor, "row position"],
    keep: Bool[Tensor, "row position"],
    mean_activation: Float[Tensor, " d_out"],
    rows_at_once: int,
    heartbeat: Callable[[], None] = lambda: None,
    norm_limits: Sequence[float] | None = None,
    entries_at_once: int = ENTRIES_AT_ONCE,
    model_at: Callable[[Site], SpliceableModel] | None = None,
) -> list[list[dict[str, float]]]:
    """Return each autoencoder's numbers with activations replaced at each site that it writes, in nats per token.

    Activations are encoded where the autoencoder reads and replaced where it writes; if it writes at several sites, at
    one of them at a time, each in its own model. Only kept positions are replaced and counted: in every variant a model
    keeps its own activations elsewhere. sae_lens ablates at all positions, which is the same if every position is kept.
    Every sum runs over all tokens.

    ce_base: mean of -log p(next token) over kept positions that have a next token.
    ce_spliced: the same with the reconstruction at the kept positions.
    ce_zero, ce_mean: the same with zeros, or with the mean activation, at the kept positions.
    ce_recovered_zero: (ce_zero - ce_spliced) / (ce_zero - ce_base), the loss recovered: 1 if nothing is lost;
        sae_lens' ce_loss_score.
    ce_recovered_mean: the same with ce_mean.
    kl: mean over kept positions of KL(p_base || p_spliced).

    Args:
        model: runs, for each part of the target, one forward pass for each autoencoder and two more, and one pass.
        sites: the sites that the autoencoders read and write.
        autoencoders: in eval mode and in raw units, with one layout.
        tokens: held-out rows.
        keep: positions that count for the autoencoder, as in training.
        mean_activation: mean of the target over held-out vectors.
        rows_at_once: rows per forward pass; their logits are held once for each model and once more.
        heartbeat: called before each set of rows; may raise to stop.
        norm_limits: of each site; positions with a vector of a greater norm are neither replaced nor counted, as in
            training.
        entries_at_once: entries of log-softmax in memory at a time.
        model_at: returns the model that a site is of, if there are several; None for `model`.

    Raises:
        ValueError: no kept position has a next token, or activations at a site are not finite.
    """
    if not keep[:, :-1].any():
        raise _nothing_to_predict(tokens)
    assert not any(autoencoder.training for autoencoder in autoencoders)
    device = autoencoders[0].W_dec.device
    keep, tokens = keep.to(device), tokens.to(device)
    models = [model if model_at is None else model_at(site) for site in sites.all]
    # Of each site, the number of the first site that is of the same model.
    number_of = {
        site: next(i for i, each in enumerate(models) if each is own)
        for site, own in zip(sites.all, models, strict=True)
    }
    layout = autoencoders[0].ends.target
    means = layout.split(mean_activation)
    # For each part: zeros, the mean, and every autoencoder.
    ablated = {name: torch.zeros(len(means), 1, dtype=torch.float64, device=device) for name in ("zero", "mean")}
    base_sums = ablated["zero"].new_zeros(len(models))
    spliced = base_sums.new_zeros(len(means), len(autoencoders))
    divergence = torch.zeros_like(spliced)
    predictions = torch.zeros((), dtype=torch.long, device=device)
    counted = torch.zeros_like(predictions)

    for begin in range(0, tokens.shape[0], rows_at_once):
        heartbeat()
        rows = slice(begin, begin + rows_at_once)
        row_tokens, row_keep = tokens[rows], keep[rows]
        bases, read = dict[int, Tensor](), dict[Site, Tensor]()
        for number in dict.fromkeys(number_of.values()):
            own = [site for site in sites.all if number_of[site] == number]
            bases[number], found = _base_and_activations(models[number], own, row_tokens)
            read |= found
        if norm_limits is not None:
            for site, limit in zip(sites.all, norm_limits, strict=True):
                row_keep = row_keep & within(read[site].flatten(0, 1), limit).view(row_keep.shape).to(device)
        predictions += row_keep[:, :-1].sum()
        counted += row_keep.sum()
        for number in bases:
            base_sums[number] += _cross_entropy(bases[number], row_tokens, row_keep, entries_at_once)
        x = torch.cat([_kept(read[site], row_keep, site) for site in sites.input], dim=1)
        for i, autoencoder in enumerate(autoencoders):
            written = autoencoder(x.to(autoencoder.W_dec), sparse=True).reconstruction
            for part, (site, vectors) in enumerate(zip(sites.target, layout.split(written), strict=True)):
                number = number_of[site]
                logits = models[number].logits(row_tokens, (site.within, _with(row_keep, vectors)))
                spliced[part, i] += _cross_entropy(logits, row_tokens, row_keep, entries_at_once)
                divergence[part, i] += _divergence(bases[number], logits, row_keep, entries_at_once)
                del logits
        bases.clear()
        for part, (site, mean) in enumerate(zip(sites.target, means, strict=True)):
            for name, vector in (("zero", torch.zeros_like(mean)), ("mean", mean)):
                logits = models[number_of[site]].logits(row_tokens, (site.within, _with(row_keep, vector)))
                ablated[name][part] += _cross_entropy(logits, row_tokens, row_keep, entries_at_once)
                del logits

    if not predictions:
        raise _nothing_to_predict(tokens)
    base_sum = base_sums[[number_of[site] for site in sites.target]].unsqueeze(1)
    ce = {name: total / predictions for name, total in {"base": base_sum, **ablated, "spliced": spliced}.items()}
    numbers = {
        "ce_recovered_zero": (ce["zero"] - ce["spliced"]) / (ce["zero"] - ce["base"]),
        "ce_recovered_mean": (ce["mean"] - ce["spliced"]) / (ce["mean"] - ce["base"]),
        "kl": divergence / counted,
        **{f"ce_{name}": value for name, value in ce.items()},
    }
    tables = {name: value.expand_as(spliced).tolist() for name, value in numbers.items()}
    return [
        [{name: table[part][i] for name, table in tables.items()} for part in range(len(means))]
        for i in range(len(autoencoders))
    ]


def evaluate_splice(
    model: SpliceableModel,
    sites: Sites,
    autoencoders: Sequence[Autoencoder],
    tokens: Int[Tensor, "row position"],
    keep: Bool[Tensor, "row position"],
    mean_activation: Float[Tensor, " d_out"],
    rows_at_once: int,
    **more: Any,
) -> list[dict[str, float]]:
    """Return each autoencoder's numbers, as means over the sites that it writes; see `evaluate_parts`."""
    found = evaluate_parts(model, sites, autoencoders, tokens, keep, mean_activation, rows_at_once, **more)
    return [mean_of(parts) for parts in found]


def mean_of(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each number over parts."""
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def _nothing_to_predict(tokens: Tensor) -> ValueError:
    return ValueError(
        f"none of the {tokens.numel()} held-out tokens can be predicted from a kept position; "
        "raise eval.splice.tokens or give the dataset more text"
    )


def _base_and_activations(
    model: SpliceableModel, sites: Sequence[Site], tokens: Int[Tensor, "row position"]
) -> tuple[Float[Tensor, "row position vocabulary"], dict[Site, Float[Tensor, "row position d"]]]:
    """Return the model's own logits, and the activations at some sites in the same pass."""
    read: dict[Site, Tensor] = {}

    def look(activations: Tensor, site: Site) -> Tensor:
        read[site] = activations
        return activations

    logits = model.logits(tokens, *((site.within, partial(look, site=site)) for site in sites))
    return logits, read


def _kept(activations: Float[Tensor, "row position d"], keep: Bool[Tensor, "row position"], site: Site) -> Tensor:
    # The clone leaves inference mode.
    kept = activations[keep.to(activations.device)].clone()
    check_finite(kept, f"activations at {site} of the rows that the reconstruction is spliced into")
    return kept


def _with(keep: Bool[Tensor, "row position"], vectors: Float[Tensor, "*kept d"]) -> Replacement:
    """Put vectors, or one for all, into the kept positions and leave the others as they are."""

    def replacement(activations: Tensor) -> Tensor:
        replaced = activations.clone()
        replaced[keep.to(activations.device)] = vectors.to(activations)
        return replaced

    return replacement


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
    """Cross-entropy of the language model with the reconstruction where the dictionary writes.

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
            spliced = evaluate_parts(
                text.model,
                text.sites,
                subject.autoencoders,
                tokens,
                keep,
                vectors[0].mean_activation,
                text.rows_at_once,
                subject.heartbeat,
                text.norm_limits,
                model_at=text.model_at,
            )
        measured = []
        name, sites = "ce_recovered_zero", text.sites.target
        for own in subject.by_run(spliced):
            numbers = [mean_of(parts) for parts in own]
            if len(sites) == 1:
                measured.append(Measured(numbers))
                continue
            named = [dict(zip(map(str, sites), parts, strict=True)) for parts in own]
            measured.append(
                Measured(
                    [mean | of_parts(name, parts) for mean, parts in zip(numbers, named, strict=True)],
                    content={"spliced_parts": named},
                    meanings=meanings_of_parts(name, self.meanings[name], map(str, sites)),
                )
            )
        return measured

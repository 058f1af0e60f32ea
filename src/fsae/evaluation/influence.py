"""`influence`: whether latents that are active also change what the model says, and how well gradients predict it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.evaluation.causal.passes import Reader
from fsae.evaluation.causal.placed import Placed, State
from fsae.evaluation.causal.prompts import Predictions
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.kept import keeper
from fsae.evaluation.noise import mean_and_noise
from fsae.evaluation.subject import Subject
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.progress import Progress
from fsae.ranges import COUNT, SEED, SOME_SHARE, between
from fsae.seeds import generator_for
from fsae.sources.massive import within
from fsae.sources.source import HeldOutText

# Tokens of a pass, and codes that it makes, which are dense.
_TOKENS_AT_ONCE = 2048
_CODES_AT_ONCE = 2**25
# The orders in which latents are masked, and what the names of their numbers end with.
_ORDERS = {"influential": "", "active": "_active", "random": "_random", "least": "_least"}
_CONTROLS = {
    "active": "the most active latents",
    "random": "random active latents",
    "least": "the least influential latents",
}


class _Read(NamedTuple):
    """Prompts as the language model reads them, once for all dictionaries.

    Attributes:
        prompts: with the token that the model finds most probable after each.
        counted: positions whose latents count.
        x: activations at the site.
        gradient: of the probability of that token, with respect to them.
        probability: of that token.
    """

    prompts: Predictions
    counted: Bool[Tensor, "row position"]
    x: Float[Tensor, "row position d_in"]
    gradient: Float[Tensor, "row position d_in"]
    probability: Float[Tensor, " row"]


@dataclass(frozen=True, kw_only=True)
class Influence(Evaluation, group="eval.influence"):
    """Influential latents against merely active ones (GradSAE, arXiv 2505.08080), and attribution against ablation.

    The outcome is p, the probability of the token that the model finds most probable after a piece of held-out text.
    The influence of a latent is the sum over positions of code * dp/dcode, the first-order estimate of what p loses
    without it. Of each text's active latents a share is masked (set to zero at every position), the error is kept, and
    the share of p that is lost is measured: for the most influential latents, and as controls for the most active ones
    (code times the norm of the decoder's row), for random active ones and for those of least absolute influence.

    Attribution (code * gradient) and integrated gradients (over the midpoints of the path from the text's codes to
    zeros, Sundararajan et al. 2017) estimate the loss of p by one latent's ablation. `latents` random active latents
    are ablated exactly, one by one, and Spearman's rank correlation compares.

    Attributes:
        prompts: pieces of text per seed.
        length: tokens of each piece.
        shares: of the active latents that are masked; the numbers are means over them.
        latents: that are ablated one by one, per seed.
        ablations: texts in which a latent is ablated, at most: those in which it is most active.
        steps: of integrated gradients.
        seeds: repetitions with other texts and latents; the numbers are means over them.
        seed: of the first.
    """

    prompts: int = field(default=6, metadata=between(least=2, most=100_000))
    length: int = field(default=24, metadata=between(least=2, most=100_000))
    shares: list[float] = field(default_factory=lambda: [0.02, 0.05, 0.1, 0.3], metadata=SOME_SHARE)
    latents: int = field(default=40, metadata=between(least=3, most=100_000))
    ablations: int = field(default=2, metadata=COUNT)
    steps: int = field(default=16, metadata=COUNT)
    seeds: int = field(default=3, metadata=between(least=1, most=100))
    seed: int = field(default=0, metadata=SEED)

    in_sweeps: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"language_model", "one_site"})
    meanings: ClassVar[dict[str, Meaning]] = {
        **accompanied("influence_drop", Meaning("probability lost by masking influential latents"), _CONTROLS),
        **accompanied("attribution_rank", Meaning("rank correlation of attribution and ablation", better=Better.more)),
        **accompanied(
            "ig_rank",
            Meaning("rank correlation of integrated gradients and ablation", better=Better.more, shown=Shown.files),
        ),
        "ig_incompleteness": Meaning("error of the sum of integrated gradients", better=Better.less, shown=Shown.files),
    }

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's numbers, and its masking curves as content."""
        text = subject.source.text
        assert text is not None
        with text.model.in_float32():
            tokens, keep = self._rows(text)
            count = min(self.prompts, len(tokens) // self.seeds)
            ablated = self.latents * self.ablations
            of_one = count * (self.steps + 1 + len(_ORDERS) * len(self.shares)) + ablated
            total = self.seeds * (2 * count + len(subject.autoencoders) * of_one)
            progress = Progress("masking latents", total, "prompts")
            widest = max(each.d_sae for each in subject.autoencoders)
            rows_at_once = max(1, min(_TOKENS_AT_ONCE, _CODES_AT_ONCE // widest) // self.length)
            reader = Reader(text.model, rows_at_once, subject.heartbeat, progress.advance, keeper(text))
            read = self._read(text, reader, tokens, keep, count)
            found = [self._of_one(Placed(text.site, each), reader, read) for each in subject.autoencoders]
            progress.close()
        return [
            Measured([numbers for numbers, _ in own], content={"masking": [curves for _, curves in own]})
            for own in subject.by_run(found)
        ]

    def _rows(self, text: HeldOutText) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        """Return the beginnings of held-out rows, and a mask of the positions that count.

        Raises:
            ValueError: there is too little held-out text.
        """
        context = text.held_out_rows(1)[0].shape[1]
        tokens, keep = text.held_out_rows(self.seeds * self.prompts * context)
        if len(tokens) < 2 * self.seeds or context < 2:
            raise ValueError(
                f"the held-out text has {len(tokens)} rows of {context} tokens, and eval.influence needs "
                f"{2 * self.seeds} rows of at least 2; give the dataset more text, or lower eval.influence.seeds"
            )
        return tokens[:, : self.length], keep[:, : self.length]

    def _read(
        self,
        text: HeldOutText,
        reader: Reader,
        tokens: Int[Tensor, "row position"],
        keep: Bool[Tensor, "row position"],
        count: int,
    ) -> list[_Read]:
        found = []
        for seed in range(self.seed, self.seed + self.seeds):
            order = torch.randperm(len(tokens), generator=generator_for(self.seed, "influence"))
            rows = order[(seed - self.seed) * count :][:count]
            own, counted = tokens[rows], keep[rows]
            likeliest = reader.likeliest(own)
            prompts = Predictions(own, likeliest)
            at, gradients = reader.gradients(prompts, [text.site])
            x = at[text.site]
            counted = counted.to(x.device)
            if text.norm_limit is not None:
                counted = counted & within(x.flatten(0, 1), text.norm_limit).view(counted.shape)
            found.append(_Read(prompts, counted, x, gradients[text.site], reader.outcomes(prompts)))
        return found

    @torch.no_grad()
    def _of_one(
        self, placed: Placed, reader: Reader, read: Sequence[_Read]
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Return a dictionary's numbers, and the share of p lost by the share of latents masked, for each order."""
        repeated: list[dict[str, float]] = []
        curves: list[dict[str, list[float]]] = []
        for seed, each in enumerate(read, self.seed):
            codes = placed.state(each.x).codes * each.counted[:, :, None]
            lost = self._masked(placed, reader, each, codes, seed)
            curves.append(lost)
            drops = {f"influence_drop{_ORDERS[order]}": sum(own) / len(own) for order, own in lost.items()}
            repeated.append(drops | self._ranks(placed, reader, each, codes, seed))
        numbers = {
            name: value
            for each in repeated[0]
            for name, value in mean_and_noise(each, [own[each] for own in repeated]).items()
            if name in self.meanings
        }
        mean = {
            order: [sum(own[order][i] for own in curves) / len(curves) for i in range(len(self.shares))]
            for order in _ORDERS
        }
        return numbers, {"shares": list(self.shares)} | mean

    def _masked(
        self, placed: Placed, reader: Reader, read: _Read, codes: Float[Tensor, "row position d_sae"], seed: int
    ) -> dict[str, list[float]]:
        """Return the share of p that is lost for each order of masking, by the share of latents."""
        influence = _attribution(placed, read.gradient, codes).sum(1)
        strength = codes.abs().sum(1) * placed.autoencoder.W_dec.norm(dim=1)
        drawn = torch.rand(influence.shape, generator=generator_for(seed, "masked at random")).to(influence)
        scores = {"influential": influence, "active": strength, "random": drawn, "least": -influence.abs()}
        masks = [_highest(scores[order], (codes != 0).any(1), share) for order in _ORDERS for share in self.shares]
        left = self._without(placed, reader, read, codes, masks)
        lost = 1 - left.double().sum(1) / read.probability.double().sum()
        return {order: own.tolist() for order, own in zip(_ORDERS, lost.split(len(self.shares)), strict=True)}

    def _ranks(
        self, placed: Placed, reader: Reader, read: _Read, codes: Float[Tensor, "row position d_sae"], seed: int
    ) -> dict[str, float]:
        """Return how well estimates rank latents, against exact ablation."""
        begin = read.x - placed.vectors(State(codes, torch.zeros_like(read.x).to(codes))).to(read.x)
        mean_gradient = reader.integrated_gradient(read.prompts, placed.site, begin, read.x, self.steps)
        integrated = _attribution(placed, mean_gradient, codes).sum(1)
        at_begin = reader.outcomes(read.prompts, lambda rows: {placed.site: lambda x: begin[rows].to(x)})
        difference = read.probability - at_begin
        error = (integrated.sum(1) - difference).abs().sum() / difference.abs().sum().clamp_min(1e-12)
        active = (codes != 0).any(1).any(0).nonzero().squeeze(1)
        chosen = active[torch.randperm(len(active), generator=generator_for(seed, "ablated"))[: self.latents]]
        if not len(chosen):
            return dict.fromkeys(("attribution_rank", "ig_rank", "ig_incompleteness"), float("nan"))
        rows, latents = self._ablations(codes, chosen)
        exact = self._ablated(placed, reader, read, codes, rows, latents)
        attributed = _attribution(placed, read.gradient, codes).sum(1)
        effects = {"attribution_rank": attributed[rows, latents], "ig_rank": integrated[rows, latents]}
        ranks = {name: _spearman(_mean_by(latents, each), _mean_by(latents, exact)) for name, each in effects.items()}
        return ranks | {"ig_incompleteness": error.item()}

    def _ablations(
        self, codes: Float[Tensor, "row position d_sae"], chosen: Int[Tensor, " latents"]
    ) -> tuple[Int[Tensor, " ablations"], Int[Tensor, " ablations"]]:
        """Return the texts and the latents of the ablations: those texts in which a latent is most active."""
        strength = codes[:, :, chosen].abs().sum(1)
        best = strength.topk(min(self.ablations, len(strength)), dim=0)
        places = (best.values > 0).nonzero()
        return best.indices[places[:, 0], places[:, 1]], chosen[places[:, 1]]

    def _ablated(
        self,
        placed: Placed,
        reader: Reader,
        read: _Read,
        codes: Float[Tensor, "row position d_sae"],
        rows: Int[Tensor, " ablations"],
        latents: Int[Tensor, " ablations"],
    ) -> Float[Tensor, " ablations"]:
        """Return what p loses by each ablation."""
        removed = codes[rows, :, latents][:, :, None] * placed.autoencoder.W_dec[latents][:, None]

        def replaced(some: slice) -> Mapping:
            return {placed.site: lambda x: x - removed[some].to(x)}

        left = reader.outcomes(read.prompts.of(rows.cpu()), replaced)
        return read.probability[rows.to(read.probability.device)] - left

    def _without(
        self,
        placed: Placed,
        reader: Reader,
        read: _Read,
        codes: Float[Tensor, "row position d_sae"],
        masks: Sequence[Bool[Tensor, "row d_sae"]],
    ) -> Float[Tensor, "mask row"]:
        """Return p with some latents of each text masked, for several choices of them."""
        count = len(read.prompts)
        masked = torch.cat(list(masks))

        def replaced(some: slice) -> Mapping:
            own = torch.arange(count).repeat(len(masks))[some]

            def replacement(x: Tensor) -> Tensor:
                return x - ((codes[own] * masked[some][:, None]) @ placed.autoencoder.W_dec).to(x)

            return {placed.site: replacement}

        repeated = read.prompts.of(torch.arange(count).repeat(len(masks)))
        return reader.outcomes(repeated, replaced).view(len(masks), count)


def _attribution(
    placed: Placed, gradient: Float[Tensor, "row position d_in"], codes: Float[Tensor, "row position d_sae"]
) -> Float[Tensor, "row position d_sae"]:
    return placed.effects(gradient, State(codes, torch.zeros_like(gradient).to(codes)))[..., :-1]


def _highest(
    scores: Float[Tensor, "row d_sae"], active: Bool[Tensor, "row d_sae"], share: float
) -> Bool[Tensor, "row d_sae"]:
    """Return a mask of the share of each row's active latents that have the highest scores; at least one of them."""
    counts = (share * active.sum(1)).round().clamp_min(1)
    ranks = scores.masked_fill(~active, -torch.inf).argsort(1, descending=True).argsort(1)
    return active & (ranks < counts[:, None])


def _mean_by(latents: Int[Tensor, " ablations"], effects: Float[Tensor, " ablations"]) -> Float[Tensor, " latents"]:
    """Return the mean effect of each latent."""
    names, places = latents.unique(return_inverse=True)
    sums = torch.zeros(len(names), dtype=torch.float64, device=effects.device)
    sums.index_add_(0, places.to(effects.device), effects.double())
    return sums / torch.bincount(places.to(effects.device), minlength=len(names))


def _spearman(estimate: Float[Tensor, " latents"], exact: Float[Tensor, " latents"]) -> float:
    """Return Spearman's rank correlation; NaN for fewer than three latents, or if all have one effect."""
    from scipy.stats import spearmanr

    if len(exact) < 3 or len(exact.unique()) == 1 or len(estimate.unique()) == 1:
        return float("nan")
    return float(np.asarray(spearmanr(estimate.cpu().numpy(), exact.cpu().numpy()))[0])

"""Selection: the latents that win a limited number of places, by a score, among all latents or those of a block."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar, Self, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Ends, Factor
from fsae.autoencoders.settings import SparseAutoencoderSettings, count_in
from fsae.ranges import COUNT, SOME_SHARE


class Score(Enum):
    """The numbers by which latents compete; codes keep their pre-activations as values.

    plain: pre-activations.
    weighted: pre-activations times the weights that codes have in sparsity terms: the norms of decoder rows, and of
        rows of several parts those that `layout.part_norm` names. Under `decoder_norm: unit` rows of one part, and
        joint norms, are all 1.
    """

    plain = "plain"
    weighted = "weighted"


class CompetitionScope(Enum):
    """The latents that compete with each other.

    all: all latents of the dictionary.
    block: those of one block, for instance of one layer of `layout=per_layer_transcoder`. Each block has the share of
        the places that it has of the latents. Without blocks it is the same as `all`.
    """

    all = "all"
    block = "block"


@dataclass(frozen=True, kw_only=True)
class KSettings(SparseAutoencoderSettings):
    """Settings of the architectures with a fixed number of active latents.

    Attributes:
        k: active latents per sample.
        k_start: active latents per sample in the first step of training, from which their number goes to `k` in a
            straight line; null for `k` from the start.
        k_until: share of training after which it is `k`.
    """

    k: int = field(default=64, metadata=COUNT)
    k_start: int | None = field(default=None, metadata=COUNT)
    k_until: float = field(default=0.1, metadata=SOME_SHARE)

    fixed_k: ClassVar[bool] = True
    has_k: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.k_start is None and self.k_until != type(self).k_until:
            raise ValueError(
                f"arch.k_until is {self.k_until:g}, but without arch.k_start all of training has arch.k active "
                "latents; set arch.k_start, or leave arch.k_until out"
            )

    def competitors(self, ends: Ends, d_sae: int) -> list[tuple[slice, float]]:
        """Return latents that compete with each other alone, and their share of the places."""
        return [(slice(0, d_sae), 1.0)]

    def check_width(self, d_in: int) -> None:
        for name, k in (("k", self.k), ("k_start", self.k_start or self.k)):
            if k > self.width(d_in):
                raise ValueError(
                    f"arch.{name} is {k}, more than the {self.width(d_in)} latents of the autoencoder; lower "
                    f"arch.{name}, or raise arch.d_sae (or arch.expansion)"
                )

    def density(self, d_in: int, progress: float) -> float:
        return self.k_at(progress) / self.width(d_in)

    def k_at(self, progress: float) -> int:
        """Return the active latents per sample after a share `progress` (0 to 1) of the training."""
        if self.k_start is None:
            return self.k
        return round(self.k_start + (self.k - self.k_start) * min(1.0, progress / self.k_until))

    def k_of(self, autoencoder: SparseAutoencoder) -> int:
        """Return the active latents per sample of an autoencoder now: `k`, unless it is in training."""
        return self.k_at(autoencoder.progress) if autoencoder.training else self.k

    @classmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        # Before sae_lens 6 k stood among the arguments of the activation function.
        of_function = (config.get("activation_fn_kwargs") or {}).get("k")
        k = config.get("k", of_function)
        if of_function not in (None, k):
            raise ValueError(f"k is {k!r}, but in activation_fn_kwargs {of_function!r}")
        if (k := count_in({"k": k}, "k")) > d_sae:
            raise ValueError(f"k is {k}, more than the {d_sae} latents of the autoencoder")
        return replace(super().from_saelens(architecture, config, d_sae), k=k)


@dataclass(frozen=True, kw_only=True)
class SelectionSettings(KSettings):
    """Settings of the architectures in which the latents with the largest scores are on.

    Attributes:
        score: the numbers by which latents compete.
        scope: the latents that compete with each other.
    """

    score: Score = Score.plain
    scope: CompetitionScope = CompetitionScope.all

    @property
    def weighs_scores(self) -> bool:
        return self.score is Score.weighted

    @property
    def reads_decoder(self) -> bool:
        return self.weighs_scores

    def competitors(self, ends: Ends, d_sae: int) -> list[tuple[slice, float]]:
        if self.scope is CompetitionScope.all or not ends.blocks:
            return super().competitors(ends, d_sae)
        return [(latents, block.share) for latents, block in zip(ends.latents(d_sae), ends.blocks, strict=True)]

    def check_ends(self, ends: Ends) -> None:
        super().check_ends(ends)
        shares = [self.k * share for _, share in self.competitors(ends, self.width(ends.input.width))]
        if any(abs(places - max(1, round(places))) > 1e-6 for places in shares):
            raise ValueError(
                f"arch.k is {self.k}, and arch.scope=block divides it among {len(shares)} blocks of latents, as "
                f"{', '.join(f'{places:.4g}' for places in shares)}; choose an arch.k that gives whole numbers, for "
                f"blocks of one size a multiple of {len(shares)}"
            )

    def _check_zeros(self) -> None:
        super()._check_zeros()
        if self.weighs_scores:
            raise ValueError(
                "arch.decoder_init is zeros, and arch.score=weighted multiplies by the norms of the decoder's rows, so "
                "that no latent would win a place; set arch.score=plain"
            )

    @classmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        scope = config.get("scope", CompetitionScope.all.value)
        # A damaged file may have a list here, which is no key.
        if scope not in list(CompetitionScope.__members__):
            raise ValueError(f"scope is {scope!r}; it must be {' or '.join(CompetitionScope.__members__)}")
        return replace(super().from_saelens(architecture, config, d_sae), scope=CompetitionScope[scope])


@dataclass(frozen=True, eq=False)
class Competition:
    """The latents that compete with each other, their places, and their scores.

    Attributes:
        groups: latents that compete with each other alone, and their places per sample; all latents in their order.
        weights: (d_sae,) of pre-activations in the scores; None for 1.
    """

    groups: list[tuple[slice, int]]
    weights: Float[Tensor, " d_sae"] | None

    def scores(
        self, pre: Float[Tensor, "*batch latents"], latents: Int[Tensor, " latents"] | None = None
    ) -> Float[Tensor, "*batch latents"]:
        """Return the scores of pre-activations, of all latents or of the named ones."""
        if self.weights is None:
            return pre
        weights = self.weights if latents is None else self.weights.index_select(0, latents)
        return pre * weights.to(pre.dtype)

    def smallest(
        self, scores: Tensor, latents: Int[Tensor, " entries"] | None, samples: int
    ) -> Float[Tensor, " groups"] | Float[Tensor, ""]:
        """Return the smallest score that wins a place in each group, a number if there is one group; 0 if there are
        more places than scores.

        Args:
            scores: of a batch, (batch, d_sae), or of some of its entries.
            latents: of these entries; None for all scores.
            samples: in the batch.
        """
        found = []
        for own, places in self.groups:
            if len(self.groups) == 1:
                competing = scores
            elif latents is None:
                competing = scores[:, own]
            else:
                competing = scores[(latents >= own.start) & (latents < own.stop)]
            found.append(smallest_of_largest(competing.flatten(), places * samples))
        return found[0] if len(found) == 1 else torch.stack(found)

    def per_latent(self, numbers: Tensor) -> Tensor:
        """Return a number of each group as one of each latent; a single number stays."""
        if numbers.dim() == 0:
            return numbers
        sizes = [latents.stop - latents.start for latents, _ in self.groups]
        return torch.cat([number.expand(size) for number, size in zip(numbers.unbind(), sizes, strict=True)])

    def limits(self, numbers: Tensor, latents: Int[Tensor, " entries"] | None) -> Tensor:
        """Return a number of each group as limits of scores: of all latents, or of entries."""
        per_latent = self.per_latent(numbers)
        return per_latent if latents is None or per_latent.dim() == 0 else per_latent.index_select(0, latents)


class Competing(SparseAutoencoder):
    """An autoencoder whose latents compete for a limited number of places."""

    def __init__(self, ends: Ends | int, settings: KSettings, generator: torch.Generator):
        super().__init__(ends, settings, generator)
        self._competitors = settings.competitors(self.ends, self.d_sae)

    @property
    def competition(self) -> Competition:
        """The latents that compete now."""
        settings = cast(KSettings, self.settings)
        k = settings.k_of(self)
        groups = [(latents, max(1, round(k * share))) for latents, share in self._competitors]
        weights = self.code_weights if settings.weighs_scores else None
        return Competition(groups, None if weights is None else weights.detach())

    def score(self, pre: Tensor) -> Tensor:
        """Return the scores of pre-activations, without weights."""
        return pre

    def scores(self, pre: Tensor, latents: Int[Tensor, " latents"] | None = None) -> Tensor:
        """Return the scores by which latents compete, of pre-activations of all latents or the named ones."""
        return self.competition.scores(self.score(pre), latents)

    def saelens_tensors(self, *names: str) -> dict[str, Tensor]:
        assert not cast(KSettings, self.settings).weighs_scores, "folding makes codes of scores"
        return super().saelens_tensors(*names)

    @torch.no_grad()
    def change_unit(self, scale: Factor, target_scale: Factor) -> None:
        """See `Autoencoder.change_unit`. Codes become their scores, so that latents compete by value afterwards.

        In the new unit of the targets the norms of rows have other proportions, which would select other latents.
        """
        self.untie()
        weights = self.competition.weights
        if weights is not None:
            self.W_enc.mul_(weights)
            self.get_parameter("b_enc").mul_(weights)
            # A row of zeros stays one, and its latent is never on.
            self.W_dec.div_(torch.where(weights > 0, weights, 1.0)[:, None])
        if isinstance(self.settings, SelectionSettings):
            self.settings = replace(self.settings, score=Score.plain)
        super().change_unit(scale, target_scale)


def smallest_of_largest(entries: Float[Tensor, " entries"], total: int) -> Float[Tensor, ""]:
    """Return the smallest of the `total` largest entries; 0 if there are fewer."""
    if entries.numel() < total:
        return entries.new_zeros(())
    if entries.is_cuda:
        # On a GPU, kthvalue would leave a whole batch to a single block of threads.
        return entries.topk(total, sorted=False).values.min()
    return entries.kthvalue(entries.numel() - total + 1).values

"""TopK by groups of latents: whole groups by their norm (SASA, arXiv 2606.06333), and one latent of each (GroupMax)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import Encoding, SAELensForm
from fsae.autoencoders.selection import KSettings
from fsae.autoencoders.settings import count_in
from fsae.autoencoders.topk import TopK, largest
from fsae.ranges import COUNT


@dataclass(frozen=True, kw_only=True)
class GroupTopKSettings(KSettings):
    """Settings of the autoencoder of subspaces: the groups of largest norm of each sample are on.

    Attributes:
        k: active latents per sample; a multiple of `rank`.
        rank: latents of a group, which lie side by side.
    """

    k: int = field(default=160, metadata=COUNT)
    rank: int = field(default=16, metadata=COUNT)

    provides: ClassVar[frozenset[str]] = frozenset({"pre_activations", "group_rank"})
    saelens_names: ClassVar[tuple[str, ...]] = ("group_topk",)

    def __post_init__(self):
        super().__post_init__()
        if self.decoder_init.from_data and not (self.frees_decoder_norms or self.tied):
            raise ValueError(
                f"arch.decoder_init is {self.decoder_init.name}, whose rows are alike; with arch.decoder_norm=unit "
                "the encoder's columns are unit vectors, too, so that all codes together are far too long; set "
                "arch.decoder_norm=free, or arch.decoder_init=random"
            )

    def check_width(self, d_in: int) -> None:
        super().check_width(d_in)
        for name, count in (("k", self.k), ("k_start", self.k_start or self.k), ("d_sae", self.width(d_in))):
            if count % self.rank:
                raise ValueError(
                    f"arch.{name} is {count}, but latents come in groups of arch.rank={self.rank}; make it a multiple"
                )

    def check_ends(self, ends: Ends) -> None:
        super().check_ends(ends)
        advice = f"make arch.d_sae a multiple of {self.rank * ends.whole_shares}"
        _check_blocks(ends, self.width(ends.input.width), self.rank, advice)

    def build(self, ends: Ends | int, generator: torch.Generator) -> "GroupTopK":
        return GroupTopK(ends, self, generator)

    @classmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        return replace(super().from_saelens(architecture, config, d_sae), rank=count_in(config, "rank"))


class GroupTopK(TopK):
    """An autoencoder with codes = pre in the groups in which |pre| over the group is largest, else 0.

    pre = (x - b_dec) W_enc + b_enc; codes keep their sign, so that a group reaches all of its subspace. Under
    `decoder_norm: unit` encoder columns are unit vectors, too: groups compete by what they read alone.
    """

    latents_compete = True

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        encoding = super().encode(x, sparse)
        rank = cast(GroupTopKSettings, self.settings).rank
        return replace(encoding, extra=encoding.extra | {"group_rank": rank})

    def score(self, pre: Tensor) -> Tensor:
        """Return the scores by which single latents are chosen among dead ones."""
        return pre.abs()

    def activation(self, pre: Tensor) -> Tensor:
        return pre

    def indices(self, pre: Tensor) -> Tensor:
        rank = cast(GroupTopKSettings, self.settings).rank
        norms = torch.linalg.vector_norm(pre.unflatten(1, (-1, rank)), dim=2)
        groups = largest(norms, max(1, self.settings.k_of(self) // rank))
        return (groups.unsqueeze(2) * rank + torch.arange(rank, device=pre.device)).flatten(1)

    def deciding_map(self) -> None:
        """Return None: norms of groups are no affine functions of the input."""

    @property
    def has_unit_columns(self) -> bool:
        return not (self.settings.tied or self.settings.frees_decoder_norms)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        super().normalise_decoder()
        if self.has_unit_columns and self.W_enc.requires_grad:
            self.W_enc.div_(self.W_enc.norm(dim=0).clamp_min(1e-8))

    def to_saelens(self) -> SAELensForm:
        settings = cast(GroupTopKSettings, self.settings)
        config = {"k": settings.k, "rank": settings.rank}
        return SAELensForm("group_topk", self.saelens_tensors("b_enc"), config, known=False)


@dataclass(frozen=True, kw_only=True)
class GroupMaxSettings(KSettings):
    """Settings of GroupMax: the latents are divided into k groups of neighbours, of which one latent each is on.

    Attributes:
        k: groups, and active latents per sample; d_sae is a multiple.
    """

    saelens_names: ClassVar[tuple[str, ...]] = ("groupmax",)

    def check_width(self, d_in: int) -> None:
        super().check_width(d_in)
        if self.k_start is not None:
            raise ValueError("arch.k_start is set, but GroupMax has the same k groups in all of training; leave it out")
        if self.width(d_in) % self.k:
            raise ValueError(
                f"arch.d_sae is {self.width(d_in)}, but GroupMax divides latents into arch.k={self.k} groups; make it "
                "a multiple"
            )

    def check_ends(self, ends: Ends) -> None:
        super().check_ends(ends)
        d_sae = self.width(ends.input.width)
        advice = f"make arch.k a multiple of {ends.whole_shares}, and arch.d_sae a multiple of arch.k"
        _check_blocks(ends, d_sae, d_sae // self.k, advice)

    def build(self, ends: Ends | int, generator: torch.Generator) -> "GroupMax":
        return GroupMax(ends, self, generator)


class GroupMax(TopK):
    """An autoencoder with codes = relu(pre) at the largest entry of each group of pre-activations, else 0.

    EleutherAI's sparsify has it; it needs no search over all latents.
    """

    latents_compete = True

    def indices(self, pre: Tensor) -> Tensor:
        groups = pre.unflatten(1, (self.settings.k, -1))
        begins = torch.arange(0, pre.shape[1], groups.shape[2], device=pre.device)
        return groups.argmax(2) + begins

    def deciding_map(self) -> None:
        """Return None: latents compete in their groups alone."""

    def to_saelens(self) -> SAELensForm:
        return SAELensForm("groupmax", self.saelens_tensors("b_enc"), {"k": self.settings.k}, known=False)


def _check_blocks(ends: Ends, d_sae: int, group: int, advice: str) -> None:
    """Raise ValueError if a group of this many latents lies in two blocks."""
    sizes = [latents.stop - latents.start for latents in ends.latents(d_sae)]
    if any(size % group for size in sizes):
        raise ValueError(
            f"the layout divides {d_sae} latents into blocks of {', '.join(map(str, sizes))}, and a group of {group} "
            f"would lie in two of them; {advice}"
        )

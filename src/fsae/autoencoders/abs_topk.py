"""The AbsTopK autoencoder (arXiv 2510.00404)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import DecidingMap, SAELensForm
from fsae.autoencoders.selection import SelectionSettings
from fsae.autoencoders.topk import TopK


@dataclass(frozen=True, kw_only=True)
class AbsTopKSettings(SelectionSettings):
    """Settings of the AbsTopK autoencoder: the k pre-activations of largest magnitude of each sample are on."""

    saelens_names: ClassVar[tuple[str, ...]] = ("abstopk",)

    def build(self, ends: Ends | int, generator: torch.Generator) -> "AbsTopK":
        return AbsTopK(ends, self, generator)


class AbsTopK(TopK):
    """An autoencoder with codes = pre at the k entries of largest |pre|, else 0; codes keep their sign."""

    latents_compete = True

    def score(self, pre: Tensor) -> Tensor:
        return pre.abs()

    def activation(self, pre: Tensor) -> Tensor:
        return pre

    def deciding_map(self) -> DecidingMap | None:
        found = super().deciding_map()
        return None if found is None else replace(found, rectified=False, signed=True)

    def to_saelens(self) -> SAELensForm:
        return replace(super().to_saelens(), architecture="abstopk")

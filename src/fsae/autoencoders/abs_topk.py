"""The AbsTopK autoencoder (arXiv 2510.00404)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fsae.autoencoders.topk import KSettings, TopK


@dataclass(frozen=True, kw_only=True)
class AbsTopKSettings(KSettings):
    """The k pre-activations of largest magnitude of each sample, with their sign."""

    def build(self, d_in: int, generator: torch.Generator) -> "AbsTopK":
        return AbsTopK(d_in, self, generator)


class AbsTopK(TopK):
    """codes = pre at the k entries of largest |pre|, else 0."""

    def score(self, pre: Tensor) -> Tensor:
        return pre.abs()

    def activation(self, pre: Tensor) -> Tensor:
        return pre

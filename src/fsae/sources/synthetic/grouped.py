"""MFR's data: each sample takes its features from one group."""

import math
from dataclasses import dataclass, field

import torch

from fsae.ranges import COUNT, SOME_SHARE, between
from fsae.seeds import generator_for
from fsae.sources.synthetic.source import FeatureModel, SyntheticSettings
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern


@dataclass(frozen=True, kw_only=True)
class GroupedFeaturesSettings(SyntheticSettings):
    """Settings of MFR's data (Marks et al. 2024, arXiv 2411.01220, and its code).

    Each sample takes its features from one group.

    Attributes:
        groups: how many groups there are, each of features // groups features; the remaining features are never on.
        active: features per sample, drawn without replacement.
        decay: the i-th feature of a group is drawn with probability proportional to decay^i. Coefficients are uniform
            in [0, 1], features standard normal.
    """

    d_in: int = field(default=256, metadata=between(least=1, most=2**20))
    features: int = field(default=512, metadata=between(least=1, most=2**28))
    groups: int = field(default=12, metadata=COUNT)
    active: int = field(default=32, metadata=COUNT)
    decay: float = field(default=0.99, metadata=SOME_SHARE)

    def __post_init__(self):
        super().__post_init__()
        if self.groups > self.features:
            raise ValueError(f"source.groups is {self.groups}; it must be from 1 to source.features={self.features}")
        if self.active > self.features // self.groups:
            raise ValueError(
                f"source.active is {self.active}, more than the {self.features // self.groups} features of a group"
            )

    def model(self) -> FeatureModel:
        return _GroupedFeatures(self)


class _GroupedFeatures(FeatureModel):
    def __init__(self, settings: GroupedFeaturesSettings):
        self._settings = settings
        generator = generator_for(settings.seed, "features")
        self.features = torch.randn(settings.features, settings.d_in, generator=generator)

    def draw(self, count: int, generator: torch.Generator) -> Codes:
        settings = self._settings
        size = settings.features // settings.groups
        group = torch.randint(settings.groups, (count, 1), generator=generator)
        # The features with the largest log-probability plus Gumbel noise are a draw without replacement.
        uniform = torch.rand(count, size, generator=generator).clamp_min(1e-20)
        scores = torch.arange(size) * math.log(settings.decay) - (-uniform.log()).log()
        chosen = scores.topk(settings.active, dim=1, sorted=False).indices + group * size
        coefficients = torch.rand(count, settings.active, generator=generator)
        return Codes(coefficients.flatten(), Pattern.of_indices(chosen, settings.features))

"""The toy of the amortisation gap: more sources than dimensions."""

from dataclasses import dataclass, field

import torch

from fsae.ranges import COUNT, between
from fsae.sources.synthetic.source import FeatureModel, SyntheticSettings, unit_vectors
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern


@dataclass(frozen=True, kw_only=True)
class SparseSourcesSettings(SyntheticSettings):
    """Settings of the toy of the amortisation gap (O'Neill et al. 2025, arXiv 2411.13117).

    It has more sources than dimensions.

    Attributes:
        active: sources per sample. Coefficients are |N(0, 1)|, features are unit vectors.
        zipf: the i-th source is drawn with probability proportional to i^-zipf; 0 for equal probabilities.
    """

    d_in: int = field(default=8, metadata=between(least=1, most=2**20))
    features: int = field(default=16, metadata=between(least=1, most=2**28))
    active: int = field(default=3, metadata=COUNT)
    zipf: float = field(default=0.0, metadata=between(least=0, most=100))

    def __post_init__(self):
        super().__post_init__()
        if self.active > self.features:
            raise ValueError(f"source.active is {self.active}; it must be from 1 to source.features={self.features}")

    def model(self) -> FeatureModel:
        return _SparseSources(self)


class _SparseSources(FeatureModel):
    def __init__(self, settings: SparseSourcesSettings):
        self._settings = settings
        self.features = unit_vectors(settings)

    def draw(self, count: int, generator: torch.Generator) -> Codes:
        settings = self._settings
        uniform = torch.rand(count, settings.features, generator=generator).clamp_min(1e-20)
        ranks = torch.arange(1, settings.features + 1)
        scores = -settings.zipf * ranks.log() - (-uniform.log()).log()
        chosen = scores.topk(settings.active, dim=1, sorted=False).indices
        coefficients = torch.randn(count, settings.active, generator=generator).abs()
        return Codes(coefficients.flatten(), Pattern.of_indices(chosen, settings.features))

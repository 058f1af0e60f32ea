"""Many features with a hierarchy and correlations, after SynthSAEBench-16k."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fsae.matching import unit_rows
from fsae.ranges import COUNT, INNER_SHARE, between
from fsae.seeds import generator_for
from fsae.sources.synthetic.source import FeatureModel, SyntheticSettings, spread_out, unit_vectors
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern


@dataclass(frozen=True, kw_only=True)
class HierarchicalFeaturesSettings(SyntheticSettings):
    """Settings of many features with a hierarchy and correlations, after SynthSAEBench-16k (arXiv 2602.14687).

    The roots come first, then their children, then the next level, and so on; the remaining features are in no tree.
    Base rates fall from p_max to p_min with the feature's number, as its power -zipf. A feature is on if three
    conditions hold: its Gaussian variable, which shares `rank` common factors with the other variables, is above a
    threshold; its parent is on; and chance picks it among the siblings that would be on at the same time. Thresholds
    are set so that each feature fires at its base rate if the parent's rate permits; for most features of the trees
    the realised rate is below half the base rate. Coefficients are rectified normals with means that fall from 5 to 4
    and standard deviations |N(0.5, 0.5^2)|; a child's coefficient is multiplied by the ratio of its parent's
    coefficient to the parent's mean. Features are unit vectors.

    Attributes:
        roots, branching, depth: shape of the hierarchy: the number of trees, the children per feature above the lowest
            level, and the number of levels below the roots.
        zipf, p_min, p_max: shape and ends of the base rates.
        rank: common factors of the Gaussian variables.
        factor: standard deviation of a variable's loading on each factor; its own part has standard deviation 1.
        spread: make the features as orthogonal as possible: their squared cosines get the least possible sum. The
            benchmark takes 100 gradient steps towards that minimum.
        constant: length of a vector of random direction that is added to every sample.
    """

    d_in: int = field(default=768, metadata=between(least=1, most=2**20))
    features: int = field(default=16_384, metadata=between(least=1, most=2**28))
    roots: int = field(default=128, metadata=COUNT)
    branching: int = field(default=4, metadata=COUNT)
    depth: int = field(default=3, metadata=between(least=0, most=60))
    zipf: float = field(default=0.5, metadata=between(least=0, most=100))
    p_min: float = field(default=5e-4, metadata=INNER_SHARE)
    p_max: float = field(default=0.4, metadata=INNER_SHARE)
    rank: int = field(default=25, metadata=between(least=0, most=10**6))
    factor: float = field(default=0.1, metadata=between(least=0, most=10**6))
    spread: bool = False
    constant: float = field(default=0.0, metadata=between(least=0, most=10**6))

    def __post_init__(self):
        super().__post_init__()
        size = self.roots * sum(self.branching**level for level in range(self.depth + 1))
        if size > self.features:
            raise ValueError(
                f"source.roots={self.roots}, branching={self.branching} and depth={self.depth} make {size} features in "
                f"trees, more than source.features={self.features}"
            )
        if self.p_min > self.p_max:
            raise ValueError(f"source.p_min is {self.p_min}, more than source.p_max={self.p_max}; lower it")

    def model(self) -> FeatureModel:
        return _HierarchicalFeatures(self)


class _HierarchicalFeatures(FeatureModel):
    def __init__(self, settings: HierarchicalFeaturesSettings):
        self._settings = settings
        self.features = spread_out(unit_vectors(settings)) if settings.spread else unit_vectors(settings)
        if settings.constant > 0:
            direction = torch.randn(1, settings.d_in, generator=generator_for(settings.seed, "constant"))
            self.constant = settings.constant * unit_rows(direction)[0]
        count = settings.features
        generator = generator_for(settings.seed, "hierarchy")
        self._loadings = settings.factor * torch.randn(count, settings.rank, generator=generator)
        self._means = torch.linspace(5, 4, count)
        self._deviations = (0.5 + 0.5 * torch.randn(count, generator=generator)).abs()
        self._levels = self._hierarchy()
        rates = self._own_rates(self._base_rates())
        deviation = (1 + self._loadings.double().square().sum(1)).sqrt()
        self._thresholds = (torch.special.ndtri(1 - rates) * deviation).float()

    def _base_rates(self) -> Tensor:
        settings = self._settings
        powers = torch.arange(1, settings.features + 1).double() ** -settings.zipf
        spread = (powers[0] - powers[-1]).clamp_min(1e-12)
        return settings.p_min + (settings.p_max - settings.p_min) * (powers - powers[-1]) / spread

    def _hierarchy(self) -> list[tuple[slice, Tensor]]:
        """Return the features of each level below the roots, siblings side by side, and their parents."""
        settings, levels = self._settings, []
        begin, end = 0, settings.roots
        for _ in range(settings.depth):
            parents = torch.arange(begin, end).repeat_interleave(settings.branching)
            begin, end = end, end + len(parents)
            levels.append((slice(begin, end), parents))
        return levels

    def _own_rates(self, rates: Tensor) -> Tensor:
        """Return the rates at which the features' own variables are above their thresholds.

        For a child, given that its parent is on, this is its base rate over the parent's, raised to make up for the
        times when a sibling is picked.
        """
        own = rates.clone()
        for features, parents in self._levels:
            given = (rates[features] / rates[parents]).view(-1, self._settings.branching)
            others = given.sum(1, keepdim=True) - given
            own[features] = (given * (1 + others)).clamp_max(0.99).flatten()
        return own

    def draw(self, count: int, generator: torch.Generator) -> Codes:
        settings = self._settings
        variables = torch.randn(count, settings.features, generator=generator)
        common = torch.randn(count, settings.rank, generator=generator)
        on = variables.addmm_(common, self._loadings.T) > self._thresholds
        for features, parents in self._levels:
            children = (on[:, features] & on[:, parents]).view(count, -1, settings.branching)
            # Among siblings that are on, the sibling with the largest random number stays on.
            luck = torch.rand(children.shape, generator=generator) * children
            picked = children & (luck == luck.amax(2, keepdim=True))
            on[:, features] = picked.view(count, -1)
        pattern = Pattern.of_mask(on)
        normal = torch.randn(len(pattern.columns), generator=generator)
        coefficients = (self._means[pattern.columns] + self._deviations[pattern.columns] * normal).relu()
        codes = Codes(coefficients, pattern)
        if not self._levels:
            return codes
        scaled = codes.dense()
        for features, parents in self._levels:
            scaled[:, features] *= scaled[:, parents] / self._means[parents]
        return codes.with_values(scaled[pattern.rows, pattern.columns])

"""Vectors made of known features: x = sum_i c_i f_i, of which an autoencoder sees x alone.

Nothing is stored. Each batch is drawn from (seed, part, number of the batch), so that a position is one counter and a
run that is resumed sees the batches that it would have seen.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.codes import Codes
from fsae.autoencoders.pattern import Pattern
from fsae.draws import generator_for
from fsae.ranges import COUNT, INNER_SHARE, SEED, SOME_SHARE, Ranged, between
from fsae.sources.source import Batch, in_batches

# Vectors that scale and biases are measured on.
_FIRST = 8192
# A draw's size is part of what is drawn, and batches of the evaluation are not to be.
_HELD_OUT_AT_ONCE = 2048


class FeatureModel(ABC):
    """Features, and how they come together.

    Attributes:
        features: (features, d_in) directions.
    """

    features: Float[Tensor, "features d_in"]

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Codes:
        """Coefficients of `count` samples: (count, features), of which few are there."""


@dataclass(frozen=True, kw_only=True)
class SyntheticSettings(Ranged, ABC, group="source"):
    """What every synthetic source lets one choose.

    Attributes:
        d_in: width of the vectors.
        features: how many there are.
        seed: of the features and of all samples. Runs that share it see the same batches.
    """

    d_in: int = field(metadata=between(least=1, most=2**20))
    features: int = field(metadata=between(least=1, most=2**28))
    seed: int = field(default=0, metadata=SEED)

    @abstractmethod
    def model(self) -> FeatureModel:
        """The features, drawn."""

    def open(self, device: torch.device) -> "SyntheticSource":
        """Samples of them; batches are wanted on `device`."""
        return SyntheticSource(self, device)


@dataclass(frozen=True, kw_only=True)
class GroupedFeaturesSettings(SyntheticSettings):
    """MFR's data (Marks et al. 2024, arXiv 2411.01220, and its code): each sample takes its features from one group.

    Attributes:
        groups: of features // groups features each; what is left over is never there.
        active: features of a sample, drawn without replacement.
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
        # The largest of log-probabilities with Gumbel noise are a draw without replacement.
        uniform = torch.rand(count, size, generator=generator).clamp_min(1e-20)
        scores = torch.arange(size) * math.log(settings.decay) - (-uniform.log()).log()
        chosen = scores.topk(settings.active, dim=1, sorted=False).indices + group * size
        coefficients = torch.rand(count, settings.active, generator=generator)
        return Codes(coefficients.flatten(), Pattern.of_indices(chosen, settings.features))


@dataclass(frozen=True, kw_only=True)
class SparseSourcesSettings(SyntheticSettings):
    """The toy of the amortisation gap (O'Neill et al. 2025, arXiv 2411.13117): more sources than dimensions.

    Attributes:
        active: sources of a sample. Coefficients are |N(0, 1)|, features unit vectors.
        zipf: the i-th source is drawn with probability proportional to i^-zipf; 0 for all alike.
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
        self.features = _unit_vectors(settings)

    def draw(self, count: int, generator: torch.Generator) -> Codes:
        settings = self._settings
        uniform = torch.rand(count, settings.features, generator=generator).clamp_min(1e-20)
        ranks = torch.arange(1, settings.features + 1)
        scores = -settings.zipf * ranks.log() - (-uniform.log()).log()
        chosen = scores.topk(settings.active, dim=1, sorted=False).indices
        coefficients = torch.randn(count, settings.active, generator=generator).abs()
        return Codes(coefficients.flatten(), Pattern.of_indices(chosen, settings.features))


@dataclass(frozen=True, kw_only=True)
class HierarchicalFeaturesSettings(SyntheticSettings):
    """Many features with a hierarchy and correlations, after SynthSAEBench-16k (arXiv 2602.14687).

    The first features are the roots, followed by their children, theirs and so on; what is left stands alone. Base
    rates fall from p_max to p_min with the feature's number, as its power -zipf. A feature is on where a Gaussian
    variable of its own, which shares `rank` common factors with the others', is above a threshold, where its parent is
    on, and, of siblings that would be on at once, where chance picks it; thresholds are such that it is on at its base
    rate all the same, as far as its parent's allows, which for most features of the trees is less than half of it.
    Coefficients are normal, rectified, with means that fall from 5 to 4 and standard deviations |N(0.5, 0.5^2)|; a
    child's is multiplied by its parent's over the parent's mean. Features are unit vectors. The benchmark
    also makes them more orthogonal than chance, and adds a constant; this does not.

    Attributes:
        roots, branching, depth: of the hierarchy: so many trees, each feature above the lowest level with so many
            children.
        zipf, p_min, p_max: of the base rates.
        rank: common factors of the Gaussian variables.
        factor: standard deviation of a variable's loading on each, beside 1 of its own.
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
        self.features = _unit_vectors(settings)
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
        """For each level below the roots: its features, siblings side by side, and their parents."""
        settings, levels = self._settings, []
        begin, end = 0, settings.roots
        for _ in range(settings.depth):
            parents = torch.arange(begin, end).repeat_interleave(settings.branching)
            begin, end = end, end + len(parents)
            levels.append((slice(begin, end), parents))
        return levels

    def _own_rates(self, rates: Tensor) -> Tensor:
        """At which a child's own variable is to be above its threshold, given that its parent is on: its base rate
        over the parent's, and more for the times when a sibling is picked."""
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
            # Of siblings that are on, the one with the largest of random numbers.
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


class SyntheticSource:
    """Samples of known features as a stream.

    Args:
        settings: which features.
        device: where batches are wanted.

    Attributes:
        features: (features, d_in) the truth.
    """

    unit = "samples"

    def __init__(self, settings: SyntheticSettings, device: torch.device):
        self.d_in, self.device = settings.d_in, device
        self._model, self._seed = settings.model(), settings.seed
        self._first: Tensor | None = None
        self._batch = 0

    @property
    def features(self) -> Float[Tensor, "features d_in"]:
        return self._model.features

    def first_vectors(self) -> Float[Tensor, "vectors d_in"]:
        if self._first is None:
            self._first = self.vectors(self._draw("first", 0, _FIRST))
        return self._first

    def batches(self, batch_size: int) -> Iterator[Batch]:
        while True:
            vectors = self.vectors(self._draw("train", self._batch, batch_size))
            self._batch += 1
            yield Batch(vectors, vectors)

    def held_out(self, count: int, batch_size: int) -> Iterator[Batch]:
        for vectors in in_batches(map(self.vectors, self.held_out_codes(count)), batch_size):
            yield Batch(vectors, vectors)

    def held_out_codes(self, count: int) -> Iterator[Codes]:
        """The coefficients, (some, features), of the samples of `held_out`."""
        for number, begin in enumerate(range(0, count, _HELD_OUT_AT_ONCE)):
            yield self._draw("held out", number, min(_HELD_OUT_AT_ONCE, count - begin))

    def distinct(self, taken: int) -> int:
        return taken

    def _draw(self, part: str, number: int, count: int) -> Codes:
        return self._model.draw(count, generator_for(self._seed, part, number))

    def vectors(self, codes: Codes) -> Float[Tensor, "batch d_in"]:
        """The samples that these coefficients make."""
        return codes.decode(self._model.features).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return {"batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._batch = state["batch"]


def _unit_vectors(settings: SyntheticSettings) -> Tensor:
    generator = generator_for(settings.seed, "features")
    vectors = torch.randn(settings.features, settings.d_in, generator=generator)
    return vectors / vectors.norm(dim=1, keepdim=True)

"""Vectors made of known features: x = sum_i c_i f_i, of which an autoencoder sees x alone.

Nothing is stored. Each batch is drawn from (seed, part, number of the batch), so that a position is one counter and a
run that is resumed sees the batches that it would have seen.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fsae.autoencoders.codes import Codes, Pattern
from fsae.draws import generator_for
from fsae.sources.source import Batch

# Vectors that scale and biases are measured on.
_FIRST = 8192


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
class SyntheticSettings(ABC):
    """What every synthetic source lets one choose.

    Attributes:
        d_in: width of the vectors.
        features: how many there are.
        seed: of the features and of all samples. Runs that share it see the same batches.
    """

    d_in: int
    features: int
    seed: int = 0

    def __post_init__(self):
        for name in ("d_in", "features"):
            if getattr(self, name) < 1:
                raise ValueError(f"source.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"source.seed is {self.seed}; it must be from 0 to 2**32 - 1")

    @abstractmethod
    def model(self) -> FeatureModel:
        """The features, drawn."""


@dataclass(frozen=True, kw_only=True)
class GroupedFeaturesSettings(SyntheticSettings):
    """MFR's data (Marks et al. 2024, arXiv 2411.01220, and its code): each sample takes its features from one group.

    Attributes:
        groups: of features // groups features each; what is left over is never there.
        active: features of a sample, drawn without replacement.
        decay: the i-th feature of a group is drawn with probability proportional to decay^i. Coefficients are uniform
            in [0, 1], features standard normal.
    """

    d_in: int = 256
    features: int = 512
    groups: int = 12
    active: int = 32
    decay: float = 0.99

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.groups <= self.features:
            raise ValueError(f"source.groups is {self.groups}; it must be from 1 to source.features={self.features}")
        if not 1 <= self.active <= self.features // self.groups:
            raise ValueError(
                f"source.active is {self.active}; a group has {self.features // self.groups} features, of which at "
                "least one is there"
            )
        if not 0 < self.decay <= 1:
            raise ValueError(f"source.decay is {self.decay}; it must be above 0 and at most 1")

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

    d_in: int = 8
    features: int = 16
    active: int = 3
    zipf: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.active <= self.features:
            raise ValueError(f"source.active is {self.active}; it must be from 1 to source.features={self.features}")
        if self.zipf < 0:
            raise ValueError(f"source.zipf is {self.zipf}; it must not be negative")

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
    """Many features with a hierarchy and correlations, with the statistics of SynthSAEBench-16k (arXiv 2602.14687).

    A feature is on where a Gaussian variable of its own is above the threshold for its base rate, and where its parent
    is on. These variables share `rank` common factors. Base rates fall as rank^-zipf within [p_min, p_max], shared out
    at random, and are scaled so that `l0` features are on on average. Where it is on, a feature's coefficient is
    |N(1, 0.15^2)|; features are unit vectors.

    Attributes:
        roots, branching, depth: of the hierarchy: trees of this many, each feature above the lowest level with so many
            children. The rest of the features stand alone.
        zipf, p_min, p_max: of the base rates.
        rank: common factors of the Gaussian variables.
        correlation: share of their variance that is common.
        l0: features of a sample, on average.
    """

    d_in: int = 768
    features: int = 16_384
    roots: int = 128
    branching: int = 4
    depth: int = 3
    zipf: float = 0.5
    p_min: float = 5e-4
    p_max: float = 0.4
    rank: int = 25
    correlation: float = 0.1
    l0: float = 34.0

    def __post_init__(self):
        super().__post_init__()
        size = self.roots * sum(self.branching**level for level in range(self.depth + 1))
        if size > self.features:
            raise ValueError(
                f"source.roots={self.roots}, branching={self.branching} and depth={self.depth} make {size} features in "
                f"trees, more than source.features={self.features}"
            )
        if not 0 < self.p_min <= self.p_max < 1:
            raise ValueError(f"source.p_min={self.p_min} and source.p_max={self.p_max}: 0 < p_min <= p_max < 1")
        if not 0 <= self.correlation < 1:
            raise ValueError(f"source.correlation is {self.correlation}; it must be in [0, 1)")
        if not 0 < self.l0 < self.features:
            raise ValueError(f"source.l0 is {self.l0}; it must be above 0 and below source.features")

    def model(self) -> FeatureModel:
        return _HierarchicalFeatures(self)


class _HierarchicalFeatures(FeatureModel):
    def __init__(self, settings: HierarchicalFeaturesSettings):
        self._settings = settings
        self.features = _unit_vectors(settings)
        generator = generator_for(settings.seed, "hierarchy")
        self._levels = self._hierarchy()
        factors = torch.randn(settings.features, settings.rank, generator=generator)
        self._factors = factors * (settings.correlation**0.5 / factors.norm(dim=1, keepdim=True))
        ranks = torch.arange(1, settings.features + 1).double()
        rates = (settings.p_max * ranks**-settings.zipf).clamp_min(settings.p_min)
        rates = rates[torch.randperm(settings.features, generator=generator)]
        self._thresholds = self._scaled(rates)

    def _hierarchy(self) -> list[tuple[Tensor, Tensor]]:
        """For each level below the roots: its features, and their parents."""
        settings, levels = self._settings, []
        above = torch.arange(settings.roots)
        begin = settings.roots
        for _ in range(settings.depth):
            parents = above.repeat_interleave(settings.branching)
            above = torch.arange(begin, begin + len(parents))
            begin += len(parents)
            levels.append((above, parents))
        return levels

    def _scaled(self, rates: Tensor) -> Tensor:
        """Thresholds at which the wanted number of features is on, each rate multiplied by one factor."""
        settings = self._settings

        def expected(factor: float) -> float:
            # A child's own variable and its parents' are nearly independent: correlated by common factors alone.
            on = (rates * factor).clamp_max(0.999)
            for features, parents in self._levels:
                on[features] = on[features] * on[parents]
            return on.sum().item()

        low, high = 1e-6, 1e3
        for _ in range(100):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if expected(middle) < settings.l0 else (low, middle)
        return torch.special.ndtri(1 - (rates * low).clamp_max(0.999)).float()

    def draw(self, count: int, generator: torch.Generator) -> Codes:
        settings = self._settings
        own = torch.randn(count, settings.features, generator=generator).mul_((1 - settings.correlation) ** 0.5)
        common = torch.randn(count, settings.rank, generator=generator)
        on = own.addmm_(common, self._factors.T) > self._thresholds
        for features, parents in self._levels:
            on[:, features] &= on[:, parents]
        pattern = Pattern.of_mask(on)
        coefficients = torch.randn(len(pattern.columns), generator=generator).mul_(0.15).add_(1).abs_()
        return Codes(coefficients, pattern)


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
        self._batch = 0

    @property
    def features(self) -> Float[Tensor, "features d_in"]:
        return self._model.features

    def first_vectors(self) -> Float[Tensor, "vectors d_in"]:
        return self._vectors(self._draw("first", 0, _FIRST))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        while True:
            vectors = self._vectors(self._draw("train", self._batch, batch_size))
            self._batch += 1
            yield Batch(vectors, vectors)

    def held_out(self, count: int, batch_size: int) -> Iterator[Batch]:
        for codes in self._held_out(count, batch_size):
            vectors = self._vectors(codes)
            yield Batch(vectors, vectors)

    def held_out_presence(self, count: int, batch_size: int) -> Iterator[Bool[Tensor, "batch features"]]:
        """Which features the samples of `held_out` have."""
        for codes in self._held_out(count, batch_size):
            yield codes.dense() != 0

    def _held_out(self, count: int, batch_size: int) -> Iterator[Codes]:
        for number, begin in enumerate(range(0, count, batch_size)):
            yield self._draw("held out", number, min(batch_size, count - begin))

    def _draw(self, part: str, number: int, count: int) -> Codes:
        return self._model.draw(count, generator_for(self._seed, part, number))

    def _vectors(self, codes: Codes) -> Tensor:
        return codes.decode(self._model.features).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return {"batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._batch = state["batch"]


def _unit_vectors(settings: SyntheticSettings) -> Tensor:
    generator = generator_for(settings.seed, "features")
    vectors = torch.randn(settings.features, settings.d_in, generator=generator)
    return vectors / vectors.norm(dim=1, keepdim=True)


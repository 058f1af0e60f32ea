"""Points on a circle, as a source."""

import math
from dataclasses import dataclass, field

import torch

from fsae.ranges import between
from fsae.seeds import generator_for
from fsae.sources.in_memory import InMemorySettings, InMemorySource


@dataclass(frozen=True, kw_only=True)
class CircleSettings(InMemorySettings):
    """Settings of points on the unit circle.

    Attributes:
        points: number of training points; 256 others are held out.
    """

    points: int = field(default=1024, metadata=between(least=1, most=10**6, meaning="a number of points"))

    def width(self) -> int:
        return 2

    def source(self, device: torch.device) -> InMemorySource:
        angles = 2 * math.pi * torch.rand(self.points + 256, generator=generator_for(self.seed, "circle"))
        points = torch.stack([angles.cos(), angles.sin()], dim=1)
        return InMemorySource(points[: self.points], points[self.points :], self.seed, device)

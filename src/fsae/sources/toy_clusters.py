"""SplInterp's toy in the plane: a noisy line, a square and a diagonal."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.ranges import between
from fsae.seeds import generator_for
from fsae.sources.in_memory import InMemorySettings, InMemorySource

_HELD_OUT = 4096


@dataclass(frozen=True, kw_only=True)
class ToyClustersSettings(InMemorySettings):
    """Settings of the toy: three clusters in the plane (arXiv 2505.11836, toy experiment).

    40 % of the points are on a level line from (-4, 0) to (-1, 0) with noise of 0.15 across it, 30 % in the square
    between (1, 1) and (3, 3), 30 % on the diagonal from (1, -3) to (3, -1) with noise of 0.15 in both coordinates. The
    coordinates are fsae's choice; the paper's text does not state them.

    Attributes:
        points: training points; 4,096 other points are held out.
    """

    points: int = field(default=100, metadata=between(least=3, most=10**9, meaning="a number of points"))

    def width(self) -> int:
        return 2

    def source(self, device: torch.device) -> InMemorySource:
        train, held_out = (self._draw(part, count) for part, count in (("train", self.points), ("held out", _HELD_OUT)))
        return InMemorySource(train, held_out, self.seed, device)

    def _draw(self, part: str, count: int) -> Float[Tensor, "points 2"]:
        generator = generator_for(self.seed, part)
        of_line, of_square = round(0.4 * count), round(0.3 * count)
        uniform, normal = torch.rand(count, 2, generator=generator), torch.randn(count, 2, generator=generator)
        line, square, diagonal = uniform.split([of_line, of_square, count - of_line - of_square])
        noise = 0.15 * normal
        along = torch.stack([3 * line[:, 0] - 4, noise[:of_line, 1]], dim=1)
        across = diagonal[:, :1] * 2 + torch.tensor([1.0, -3.0]) + noise[of_line + of_square :]
        return torch.cat([along, 2 * square + 1, across])

"""The regions of an autoencoder: inputs with the same support, on each of which it is one affine map."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.seeds import generator_for

# Rows per forward pass, and places that are held at a time.
_AT_ONCE = 4096
# Halvings of the interval that holds a region's boundary.
_HALVINGS = 30
# Doublings of a ray, after which a region counts as unbounded along it.
_DOUBLINGS = 12


class Regions:
    """The names of the regions that inputs lie in.

    A name is the sum of 64-bit random numbers, one for each latent that is on: two supports share a name with a
    probability of 2^-64.

    Args:
        autoencoder: in eval mode, in the inputs' units.
        heartbeat: called before each forward pass; may raise to stop.
    """

    def __init__(self, autoencoder: Autoencoder, heartbeat: Callable[[], None] = lambda: None):
        self._autoencoder, self._heartbeat = autoencoder, heartbeat
        ends = torch.iinfo(torch.long)
        numbers = torch.empty(autoencoder.d_sae, dtype=torch.long)
        numbers.random_(ends.min, ends.max, generator=generator_for("latents"))
        self._numbers = numbers.to(autoencoder.W_dec.device)

    @torch.no_grad()
    def names(self, x: Float[Tensor, "batch d_in"]) -> Int[Tensor, " batch"]:
        """Return the region of each input."""
        return torch.cat([self._names(some) for some in x.split(_AT_ONCE)])

    def _names(self, x: Tensor) -> Tensor:
        self._heartbeat()
        codes = self._autoencoder(x.to(self._autoencoder.W_dec), sparse=True).codes
        assert codes.pattern is not None
        on = (codes.values != 0).long() * self._numbers[codes.pattern.columns]
        return on.new_zeros(len(x)).index_add(0, codes.pattern.rows, on)


def sizes(names: Int[Tensor, " samples"]) -> Int[Tensor, " regions"]:
    """Return the number of samples in each occupied region, the fullest first."""
    return torch.unique(names, return_counts=True)[1].sort(descending=True).values


def along_segments(
    regions: Regions, ends: Float[Tensor, "segments 2 d_in"], steps: int
) -> Int[Tensor, "segments steps"]:
    """Return the regions at `steps` evenly spaced places along segments, both ends included."""
    shares = torch.linspace(0, 1, steps, device=ends.device, dtype=ends.dtype).view(1, -1, 1)
    portions = ends.split(max(1, _AT_ONCE // steps))
    names = [regions.names((some[:, :1] + shares * (some[:, 1:] - some[:, :1])).flatten(0, 1)) for some in portions]
    return torch.cat(names).view(len(ends), steps)


def radii(
    regions: Regions, points: Float[Tensor, "points d_in"], unit: float, generator: torch.Generator
) -> Float[Tensor, " points"]:
    """Return the distance from each point to the end of its region, in a uniformly random direction.

    Bisection finds it, which is exact if a ray leaves its region once: TopK's and relu-like regions are convex.

    Args:
        regions: the names of one autoencoder's regions.
        points: the origins of the rays.
        unit: the first distance that is tried.
        generator: draws the directions.

    Returns:
        Distances; infinite if the region reaches farther than 4,096 units.
    """
    directions = torch.nn.functional.normalize(torch.randn(points.shape, generator=generator), dim=1).to(points)
    home = regions.names(points)
    inside, outside = points.new_zeros(len(points)), points.new_full((len(points),), math.inf)
    reach = points.new_full((len(points),), unit)
    for _ in range(_DOUBLINGS + _HALVINGS):
        same = regions.names(points + reach.unsqueeze(1) * directions) == home
        inside, outside = torch.where(same, reach, inside), torch.where(same, outside, reach)
        reach = torch.where(outside.isinf(), (2 * inside).clamp(unit, unit * 2**_DOUBLINGS), (inside + outside) / 2)
    return torch.where(outside.isinf(), outside, reach)


def on_plane(
    regions: Regions, origin: Float[Tensor, " d_in"], axes: Float[Tensor, "2 d_in"], grid: Float[Tensor, " side"]
) -> Int[Tensor, "side side"]:
    """Return the regions at origin + grid_j axes_0 + grid_i axes_1, for a picture: row i, column j."""
    row = origin + grid.unsqueeze(1) * axes[0]
    portions = grid.view(-1, 1, 1).split(max(1, _AT_ONCE // len(grid)))
    names = [regions.names((row + some * axes[1]).flatten(0, 1)) for some in portions]
    return torch.cat(names).view(len(grid), len(grid))

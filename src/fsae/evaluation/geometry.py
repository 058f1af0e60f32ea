"""`geometry`: the regions into which autoencoders divide the space of their inputs, seen from held-out samples."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.power_diagram import PowerDiagram, own_supports, power_diagram
from fsae.evaluation.regions import Regions, along_segments, on_plane, radii, sizes
from fsae.evaluation.subject import Subject
from fsae.outputs.results import Meaning, Shown
from fsae.ranges import COUNT, between
from fsae.seeds import generator_for
from fsae.sources.source import Batch

log = logging.getLogger(__name__)

# Samples for the comparison with the power diagram, for segments and for rays: enough for two digits.
_COMPARED = 1024
_SEGMENTS = 256
_STEPS = 256
_RAYS = 1024
# Entries of the table of power distances that is held at a time.
_DISTANCES = 2**22
# Points along each side of a picture.
_SIDE = 320
# A sample counts as on a line if its distance from the line, over the farthest sample's distance from the line's
# origin, is below this.
_ON_LINE = 1e-3


@dataclass(frozen=True, eq=False)
class Slice:
    """A plane through the inputs' space, for a picture; coordinates are in units of the inputs.

    Attributes:
        regions: at each point of a square grid, numbered from 0: row i, column j is at (edges[j], edges[i]).
        edges: coordinates along both axes.
        points: coordinates of the samples that lie in the plane.
        sites: x, y and weight of the power diagram's sites, and of the origin if it has a cell; None if the diagram is
            not in the plane.
        lift: x, y and height of the same sites. `sites` and `lift` describe the diagram with the same cells whose sites
            have the samples' size.
    """

    regions: Int[Tensor, "side side"]
    edges: Float[Tensor, " side"]
    points: Float[Tensor, "points 2"]
    sites: Float[Tensor, "sites 3"] | None
    lift: Float[Tensor, "sites 3"] | None


@dataclass(frozen=True, eq=False)
class Divided:
    """The regions of one autoencoder.

    Attributes:
        scalars: by name. regions: distinct supports among the held-out samples. points_per_region: samples per region.
            largest_region: share of the samples in the fullest one. region_radius: median distance from a sample to
            the end of its region in a uniformly random direction, over the samples' root mean square distance
            from their mean; a region of volume v has about the d_in-th root of v over the unit ball's. segment_regions:
            mean number of stretches of one support along a segment between two samples, read at 256 places: at most
            256, and too few if regions are thinner than the places' distance. same_region_share, adjacent_share: shares
            of these segments that stay in one region, and that cross one boundary. diagram_agreement: for architectures
            that have a power diagram, share of samples whose support follows from the diagram's distances.
            diagram_ties: share of samples whose deciding distances lie within float32's rounding of each other.
        region_sizes: samples of each occupied region, the fullest first.
        plane: the inputs' plane if they have two dimensions, else the plane through three samples; None if samples span
            no plane.
    """

    scalars: dict[str, float]
    region_sizes: Int[Tensor, " regions"]
    plane: Slice | None


@torch.no_grad()
def evaluate_geometry(
    autoencoders: Sequence[Autoencoder], batches: Iterable[Batch], heartbeat: Callable[[], None] = lambda: None
) -> list[Divided]:
    """Return each autoencoder's regions on held-out samples.

    Args:
        autoencoders: in eval mode and in raw units.
        batches: raw vectors; all are held at once.
        heartbeat: called before each forward pass; may raise to stop.
    """
    x = torch.cat([batch.inputs for batch in batches]).to(autoencoders[0].W_dec)
    return [_geometry(each, x, heartbeat) for each in autoencoders]


def size_histogram(region_sizes: Int[Tensor, " regions"]) -> dict[str, list[int]]:
    """Return a histogram of the regions' sizes.

    Returns:
        `from`: the least number of samples in each bin, a power of two. `regions`: the number of regions with at least
        so many samples, and fewer than the next bin's.
    """
    bins = torch.bincount(region_sizes.double().log2().floor().long()).tolist()
    return {"from": [2**power for power in range(len(bins))], "regions": bins}


def _geometry(autoencoder: Autoencoder, x: Float[Tensor, "samples d_in"], heartbeat: Callable[[], None]) -> Divided:
    regions, diagram = Regions(autoencoder, heartbeat), power_diagram(autoencoder)
    names = regions.names(x)
    counts = sizes(names)
    spread = x.var(dim=0, correction=0).sum().sqrt().item()
    ends = torch.randint(len(x), (_SEGMENTS, 2), generator=generator_for("segments")).to(x.device)
    found = along_segments(regions, x[ends], _STEPS)
    stretches = 1 + (found[:, 1:] != found[:, :-1]).sum(1)
    begins = torch.randint(len(x), (_RAYS,), generator=generator_for("rays")).to(x.device)
    reach = radii(regions, x[begins], 0.01 * spread, generator_for("directions"))
    scalars = {
        "regions": float(len(counts)),
        "points_per_region": len(x) / len(counts),
        "largest_region": counts[0].item() / len(x),
        "region_radius": (reach.median() / spread).item(),
        "segment_regions": stretches.double().mean().item(),
        "same_region_share": (stretches == 1).double().mean().item(),
        "adjacent_share": (stretches == 2).double().mean().item(),
    }
    if diagram is not None:
        scalars |= _agreement(autoencoder, diagram, x[:_COMPARED], heartbeat)
    return Divided(scalars, counts.cpu(), _plane(regions, diagram, x))


def _agreement(
    autoencoder: Autoencoder, diagram: PowerDiagram, x: Tensor, heartbeat: Callable[[], None]
) -> dict[str, float]:
    agree, ties = [], []
    # A pre-activation's rounding; power distances differ by twice as much as pre-activations.
    size = diagram.sites.norm(dim=1).max() * x.double().norm(dim=1) + diagram.weights.abs().max()
    rounding = 4 * torch.finfo(torch.float32).eps * size
    some = max(1, _DISTANCES // len(diagram.sites))
    for part, near in zip(x.split(some), rounding.split(some), strict=True):
        heartbeat()
        supports, gap = diagram.supports(part)
        agree.append((supports == own_supports(autoencoder, part)).all(1))
        ties.append(gap < 2 * near)
    return {
        "diagram_agreement": torch.cat(agree).double().mean().item(),
        "diagram_ties": torch.cat(ties).double().mean().item(),
    }


def _plane(regions: Regions, diagram: PowerDiagram | None, x: Tensor) -> Slice | None:
    """Return the picture of a plane, with a margin around the samples in it."""
    if x.shape[1] == 2:
        origin, axes = x.new_zeros(2), torch.eye(2).to(x)
        points = x
    else:
        spanned = _spanned(x)
        if spanned is None:
            return None
        three, axes = spanned
        # The first sample is where the axes meet.
        origin = three[0]
        points = (three - origin) @ axes.T
    low, high = points.min().item(), points.max().item()
    if low == high:
        return None
    margin = 0.15 * (high - low)
    edges = torch.linspace(low - margin, high + margin, _SIDE).to(x)
    numbers = torch.unique(on_plane(regions, origin, axes, edges), return_inverse=True)[1]
    sites = lift = None
    if diagram is not None and x.shape[1] == 2:
        size = (points.norm(dim=1).mean() / diagram.sites.norm(dim=1).mean().clamp_min(1e-12)).item()
        shown = diagram.times(size).with_origin()
        sites = torch.cat([shown.sites, shown.weights.unsqueeze(1)], dim=1).cpu()
        lift = shown.lift().cpu()
    return Slice(numbers.cpu(), edges.cpu(), points.cpu(), sites, lift)


def _spanned(x: Tensor) -> tuple[Float[Tensor, "3 d_in"], Float[Tensor, "2 d_in"]] | None:
    """Return three samples that span a plane, and the plane's orthonormal axes; None if no three samples span one.

    In the samples' random order these are the first one, the next that differs from it, and the next that is not in
    line with these two.
    """
    some = x[torch.randperm(len(x), generator=generator_for("plane"))[:_COMPARED].to(x.device)]
    chosen, axes = [0], []
    left = some.double() - some[0].double()
    far = _ON_LINE * left.norm(dim=1).max()
    for _ in range(2):
        distances = left.norm(dim=1)
        found = (distances > far).nonzero()
        if len(found) == 0:
            return None
        chosen.append(int(found[0]))
        axes.append(left[chosen[-1]] / distances[chosen[-1]])
        left = left - torch.outer(left @ axes[-1], axes[-1])
    return some[chosen], torch.stack(axes).to(x)


@dataclass(frozen=True, kw_only=True)
class Geometry(Evaluation, group="eval.geometry"):
    """The regions into which an autoencoder divides the space of its inputs, with pictures.

    Attributes:
        samples: held-out samples; all are in memory at once.
        batch_size: samples per batch.
    """

    samples: int = field(default=32768, metadata=COUNT)
    batch_size: int = field(default=2048, metadata=between(least=1, most=10**9))

    meanings: ClassVar[dict[str, Meaning]] = {
        "regions": Meaning("distinct supports among the held-out samples", shown=Shown.files),
        "points_per_region": Meaning("held-out samples per region", shown=Shown.files),
        "largest_region": Meaning("share of samples in the fullest region", shown=Shown.files),
        "region_radius": Meaning("median distance to the boundary, over the samples' spread", shown=Shown.files),
        "segment_regions": Meaning("regions along a segment between two samples", shown=Shown.files),
        "same_region_share": Meaning("share of segments between two samples in one region", shown=Shown.files),
        "adjacent_share": Meaning("share of segments between two samples across one boundary", shown=Shown.files),
        "diagram_agreement": Meaning("share of samples whose support is the power diagram's", shown=Shown.files),
        "diagram_ties": Meaning("share of samples where rounding may decide the support", shown=Shown.files),
    }

    @property
    def held_out(self) -> int:
        return self.samples

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's regions, and pictures of each run's best one."""
        batches = subject.held_out(self.samples, self.batch_size, "evaluating regions")
        found = subject.by_run(evaluate_geometry(subject.autoencoders, batches, subject.heartbeat))
        return [_of_run(own, own[run.best]) for run, own in zip(subject.runs, found, strict=True)]


def _of_run(found: Sequence[Divided], best: Divided) -> Measured:
    histogram = size_histogram(best.region_sizes)
    pictures = _pictures(histogram, best.plane)
    return Measured([each.scalars for each in found], content={"region_histogram": histogram}, pictures=pictures)


def _pictures(histogram: dict[str, list[int]], plane: Slice | None) -> dict[str, Callable[[Path], None]]:
    from fsae.analysis.region_plots import plot_lift, plot_region_sizes, plot_regions

    pictures: dict[str, Callable[[Path], None]] = {
        "region_sizes.png": partial(plot_region_sizes, histogram["from"], histogram["regions"])
    }
    if plane is None:
        log.info("no three held-out samples span a plane, so there is no picture of regions in one")
        return pictures
    regions, edges = plane.regions.numpy(), plane.edges.numpy()
    sites = None if plane.sites is None else plane.sites.numpy()
    pictures["regions.png"] = partial(plot_regions, regions, edges, plane.points.numpy(), sites)
    if plane.lift is not None:
        pictures["voronoi_lift.png"] = partial(plot_lift, regions, edges, plane.lift.numpy())
    return pictures

"""The power diagram whose cells are the regions of an autoencoder with a fixed number of active latents.

A site m with weight a has the power distance |x - m|^2 - a from x. With m_i = w_i and a_i = 2 b_i + |w_i|^2 for the
latents' pre-activations z_i = x . w_i + b_i it is |x|^2 - 2 z_i: the k nearest sites are the k largest pre-activations,
so TopK's supports are the cells of a power diagram of order k (SplInterp, arXiv 2505.11836). If TopK rectifies, a
latent is on if its site is also nearer than the origin, a site of weight 0. AbsTopK's supports are unions of cells of
the diagram of the 2n sites of z_i and -z_i, since |z_i| is the larger of the two.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder


@dataclass(frozen=True, eq=False)
class PowerDiagram:
    """Sites with weights, in float64.

    Attributes:
        sites: columns of the encoder, or centres.
        weights: of the sites.
        order: k, the number of nearest sites that make a cell.
        latents: n; site n + i is the other sign of site i.
        rectified: whether a latent is on only if its site is nearer than the origin, a site of weight 0.
    """

    sites: Float[Tensor, "sites d_in"]
    weights: Float[Tensor, " sites"]
    order: int
    latents: int
    rectified: bool = False

    def distances(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch sites"]:
        """Return power distances, by their definition; builds batch x sites."""
        squared = torch.cdist(x.double(), self.sites, compute_mode="donot_use_mm_for_euclid_dist").square()
        return squared - self.weights

    def supports(self, x: Float[Tensor, "batch d_in"]) -> tuple[Int[Tensor, "batch k"], Float[Tensor, " batch"]]:
        """Return the latents that are on, by the distances alone.

        Returns:
            The latents of the k nearest sites, in rising order, with -1 for each that is off; and the least difference
            of two deciding distances: the last chosen site's and the next site's, or a chosen site's and the origin's.
        """
        count = min(self.order + 1, len(self.sites))
        least = self.distances(x).topk(count, dim=1, largest=False)
        found = least.indices[:, : self.order] % self.latents
        if count == self.order:
            gap = least.values.new_full((len(x),), torch.inf)
        else:
            gap = least.values[:, self.order] - least.values[:, self.order - 1]
        if self.rectified:
            beyond = least.values[:, : self.order] - x.double().square().sum(1, keepdim=True)
            found = torch.where(beyond < 0, found, -1)
            gap = torch.minimum(gap, beyond.abs().amin(1))
        return found.sort(dim=1).values, gap

    def times(self, factor: float) -> "PowerDiagram":
        """Return a diagram with the same cells: the one of all pre-activations multiplied by a positive factor."""
        squares = self.sites.square().sum(1)
        weights = factor * (self.weights - squares) + factor**2 * squares
        return replace(self, sites=factor * self.sites, weights=weights)

    def with_origin(self) -> "PowerDiagram":
        """Return the diagram with the origin as its last site if it is rectified, else the diagram itself.

        For order 1, the origin's cell holds the inputs that have no latent on.
        """
        if not self.rectified:
            return self
        sites = torch.cat([self.sites, self.sites.new_zeros(1, self.sites.shape[1])])
        return replace(self, sites=sites, weights=torch.cat([self.weights, self.weights.new_zeros(1)]), rectified=False)

    def lift(self) -> Float[Tensor, "sites d_in_plus_1"]:
        """Return sites in one more dimension; the section of their Voronoi diagram at height 0 is this diagram.

        (m_i, sqrt(c - a_i)) with c the largest weight: |(x, 0) - (m, h)|^2 = |x - m|^2 + c - a.
        """
        heights = (self.weights.max() - self.weights).sqrt()
        return torch.cat([self.sites, heights.unsqueeze(1)], dim=1)


@torch.no_grad()
def power_diagram(autoencoder: Autoencoder) -> PowerDiagram | None:
    """Return the diagram whose cells are the autoencoder's regions; None if it has none.

    The diagram of kmeans and local_pca is the Voronoi diagram of the centres. An autoencoder has no diagram if its
    latents do not compete for a fixed number of places per sample. A subtracted b_dec is part of the biases, and a
    folded scale is part of the weights.
    """
    found = autoencoder.deciding_map()
    if found is None:
        return None
    columns, weights = found.columns, 2 * found.biases + found.columns.square().sum(1)
    if found.signed:
        weights = torch.cat([weights, weights - 4 * found.biases])
        columns = torch.cat([columns, -columns])
    return PowerDiagram(columns, weights, found.k, len(found.columns), found.rectified)


@torch.no_grad()
def own_supports(autoencoder: Autoencoder, x: Float[Tensor, "batch d_in"]) -> Int[Tensor, "batch k"]:
    """Return the deciding latents that are on in the codes, in rising order after a -1 for each that is off.

    Args:
        autoencoder: one with a power diagram.
    """
    codes, deciding = autoencoder(x.to(autoencoder.W_dec), sparse=True).codes, autoencoder.deciding
    chosen = codes.pattern.columns.view(len(x), -1)[:, deciding] // (deciding.step or 1)
    return torch.where(codes.values.view(len(x), -1)[:, deciding] != 0, chosen, -1).sort(dim=1).values

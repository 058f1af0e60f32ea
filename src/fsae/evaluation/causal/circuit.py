"""Circuits: the nodes of several dictionaries that a task needs, found by their effects, judged by ablating the rest.

Marks et al. 2024 (arXiv 2403.19647), with the definitions of feature-circuits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fsae.evaluation.causal.passes import Function, Reader
from fsae.evaluation.causal.placed import Placed, State
from fsae.evaluation.causal.prompts import Prompts
from fsae.evaluation.causal.tasks import Asked
from fsae.language_models.sites import Site

Name = TypeVar("Name")
Errors = Literal["ranked", "removed"]
# By site, the nodes (latents, then the error) that are in a circuit, position by position.
Circuit = Mapping[Site, Bool[Tensor, "position nodes"]]
Effects = Mapping[Site, Float[Tensor, "position nodes"]]


@dataclass(frozen=True, eq=False)
class Changes:
    """The difference that the clean prompts make to every node, against the patch prompts.

    Attributes:
        change: by site, parts of the clean activations minus those of the patch activations.
        gradient: by site, of the outcome of the clean prompts with respect to the activations.
    """

    change: Mapping[Site, State]
    gradient: Mapping[Site, Float[Tensor, "row position d"]]


@torch.no_grad()
def changes(reader: Reader, dictionaries: Sequence[Placed], pairs: Asked, steps: int = 0) -> Changes:
    """Return the difference between clean and patch prompts at every site, and the gradients there.

    Args:
        reader: of the prompts.
        dictionaries: one per site.
        pairs: the prompts.
        steps: 0 for the gradient at the clean prompts (attribution); otherwise the midpoints between patch and clean
            activations over which it is averaged, one site at a time (integrated gradients).
    """
    sites = [each.site for each in dictionaries]
    clean, gradient = reader.gradients(pairs.clean, sites)
    patch = reader.activations(pairs.patch, sites)
    if steps:
        gradient = {
            site: reader.integrated_gradient(pairs.clean, site, patch[site].to(clean[site]), clean[site], steps)
            for site in sites
        }
    change = {each.site: each.state(clean[each.site]).minus(each.state(patch[each.site])) for each in dictionaries}
    return Changes(change, gradient)


@torch.no_grad()
def effects(dictionaries: Sequence[Placed], found: Changes) -> Effects:
    """Return each node's effect: the mean over prompts of what its clean value adds to the outcome."""
    return {
        each.site: each.effects(found.gradient[each.site], found.change[each.site]).mean(0) for each in dictionaries
    }


@torch.no_grad()
def means(reader: Reader, dictionaries: Sequence[Placed], prompts: Prompts) -> dict[Site, State]:
    """Return the mean parts of the activations of prompts, position by position: the values of ablated nodes."""
    x = reader.activations(prompts, [each.site for each in dictionaries])
    return {each.site: each.state(x[each.site]).mean() for each in dictionaries}


def ablating(
    dictionaries: Sequence[Placed],
    inside: Mapping[Site, Bool[Tensor, "row position nodes"]],
    mean: Mapping[Site, State],
) -> dict[Site, Function]:
    """Return what replaces the activations at each site: nodes that are not inside get their mean.

    The activations are those that arrive at the site, so an ablation at an earlier site changes the nodes here.
    """

    def replacing(placed: Placed) -> Function:
        kept, usual = inside[placed.site], mean[placed.site]

        @torch.no_grad()
        def replacement(x: Tensor) -> Tensor:
            own = placed.state(x)
            change = State(
                torch.where(kept[..., :-1], 0.0, usual.codes - own.codes),
                torch.where(kept[..., -1:], 0.0, usual.error - own.error),
            )
            return x + placed.vectors(change).to(x)

        return replacement

    return {each.site: replacing(each) for each in dictionaries}


def strongest(found: Effects, size: int, errors: Errors = "ranked") -> dict[Site, Tensor]:
    """Return the circuit of the nodes with the largest absolute effects; fewer if fewer have any.

    Args:
        found: the effects.
        size: nodes.
        errors: whether the nodes of errors are ranked with the latents, or removed.
    """
    magnitudes = {site: each.abs() for site, each in found.items()}
    if errors == "removed":
        for site, each in magnitudes.items():
            magnitudes[site] = each.clone()
            magnitudes[site][:, -1] = 0
    return _chosen(magnitudes, torch.cat([each.flatten() for each in magnitudes.values()]), size)


def at_random(found: Effects, size: int, generator: torch.Generator) -> dict[Site, Tensor]:
    """Return a circuit of so many nodes drawn from those that have an effect."""
    joined = torch.cat([each.flatten() for each in found.values()])
    drawn = torch.rand(len(joined), generator=generator).to(joined.device) + 1
    return _chosen(found, torch.where(joined != 0, drawn, 0.0), size)


def _chosen(shapes: Effects, scores: Float[Tensor, " nodes"], size: int) -> dict[Site, Tensor]:
    best = scores.topk(min(size, int((scores > 0).sum()))).indices
    inside = torch.zeros_like(scores, dtype=torch.bool)
    inside[best] = True
    parts = inside.split([each.numel() for each in shapes.values()])
    return {site: part.view(each.shape) for (site, each), part in zip(shapes.items(), parts, strict=True)}


def complement(circuit: Circuit) -> dict[Site, Tensor]:
    """Return all nodes that are not in the circuit."""
    return {site: ~inside for site, inside in circuit.items()}


def everything(shapes: Circuit | Effects, inside: bool) -> dict[Site, Tensor]:
    """Return the circuit of all nodes, or of none."""
    return {site: torch.full_like(each, inside, dtype=torch.bool) for site, each in shapes.items()}


@dataclass(frozen=True, eq=False)
class Judge:
    """Outcomes of a task with parts of a circuit ablated.

    Attributes:
        reader: of the prompts.
        dictionaries: one per site.
        prompts: on which circuits are judged; none of them was used to find them or to measure the means.
        mean: the values of ablated nodes.
    """

    reader: Reader
    dictionaries: Sequence[Placed]
    prompts: Prompts
    mean: Mapping[Site, State]

    def outcomes(self, circuits: Sequence[Circuit]) -> Float[Tensor, "circuit row"]:
        """Return each prompt's outcome with everything outside a circuit ablated, for each circuit.

        All circuits share passes: a pass over few short prompts takes as long as one over many.
        """
        count = len(self.prompts)
        repeated = self.prompts.of(torch.arange(count).repeat(len(circuits)))

        def replaced(rows: slice) -> dict[Site, Function]:
            of_row = [number // count for number in range(*rows.indices(len(repeated)))]
            inside = {site: torch.stack([circuits[number][site] for number in of_row]) for site in self.mean}
            return ablating(self.dictionaries, inside, self.mean)

        return self.reader.outcomes(repeated, replaced).view(len(circuits), count)

    def shares(self, circuits: Mapping[Name, Circuit], whole: float, empty: float) -> dict[Name, float]:
        """Return the faithfulness of circuits by name, F = (m(circuit) - m(empty)) / (m(model) - m(empty)).

        Args:
            circuits: by name.
            whole: m(model), the mean outcome of the model itself.
            empty: m(empty), the mean outcome with every node ablated.
        """
        found = self.outcomes(list(circuits.values())).double().mean(1).tolist()
        return {name: (each - empty) / (whole - empty) for name, each in zip(circuits, found, strict=True)}

"""Edges between the nodes of a circuit: first-order direct effects, by vector-Jacobian products."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.evaluation.causal.circuit import Changes
from fsae.evaluation.causal.passes import Function, Reader
from fsae.evaluation.causal.placed import Placed
from fsae.evaluation.causal.prompts import Prompts
from fsae.language_models.sites import Site


@dataclass(frozen=True)
class Node:
    """A node of a circuit.

    Attributes:
        site: of the dictionary.
        position: in the prompt.
        latent: its index; d_sae for the error.
    """

    site: Site
    position: int
    latent: int


@dataclass(frozen=True)
class Edge:
    """An edge.

    Attributes:
        source: the earlier node.
        target: the later node; None for the outcome.
        weight: what the source adds to the outcome by way of the target, in the outcome's unit, to first order.
    """

    source: Node
    target: Node | None
    weight: float


def edges(
    reader: Reader,
    dictionaries: Sequence[Placed],
    prompts: Prompts,
    found: Changes,
    nodes: Sequence[Node],
) -> list[Edge]:
    """Return the edges between nodes, and from nodes to the outcome.

    The weight from u to v is the mean over prompts of (gradient of the outcome with respect to v) * (derivative of v
    with respect to u, along paths through no site in between) * (clean value of u - patch value of u). Nodes at sites
    in between are held at their clean values, so a path through them belongs to their own edges. Attention and MLPs
    between the sites are not linear: all of this is first-order.

    Args:
        reader: of the prompts.
        dictionaries: one per site, in the order of a forward pass.
        prompts: the clean prompts.
        found: the changes on these prompts.
        nodes: the nodes.
    """
    assert [each.site.place for each in dictionaries] == sorted(each.site.place for each in dictionaries)
    by_site = {each.site: each for each in dictionaries}
    weights: dict[tuple[Node, Node | None], float] = {}
    for rows, part in prompts.parts(reader.rows_at_once):
        reader.heartbeat()
        outcome, arriving, leaves = _cut_pass(reader, part, list(by_site))

        def add(target: Node | None, gradients: Mapping[Site, Tensor], rows: slice = rows) -> None:
            for site, gradient in gradients.items():
                change = found.change[site]
                own = type(change)(change.codes[rows], change.error[rows])
                with torch.no_grad():
                    effects = by_site[site].effects(gradient, own).sum(0)
                for source in nodes:
                    if source.site == site:
                        key = source, target
                        weights[key] = weights.get(key, 0.0) + effects[source.position, source.latent].item()

        add(None, _gradients(outcome, leaves))
        for target in nodes:
            x = arriving[target.site]
            earlier = {site: leaf for site, leaf in leaves.items() if site.place < target.site.place}
            if not earlier or not x.requires_grad:
                continue
            reader.heartbeat()
            direction = _direction(by_site[target.site], x, target, found.gradient[target.site][rows])
            add(target, _gradients(x, earlier, direction))
        reader.passed(len(part))
    return [Edge(source, target, weight / len(prompts)) for (source, target), weight in weights.items() if weight != 0]


def _cut_pass(
    reader: Reader, prompts: Prompts, sites: Sequence[Site]
) -> tuple[Tensor, dict[Site, Tensor], dict[Site, Tensor]]:
    """Return the sum of outcomes, and the activations that arrive at each site and that leave it as a leaf."""
    arriving, leaves = dict[Site, Tensor](), dict[Site, Tensor]()

    def cut(site: Site) -> Function:
        def cutting(x: Tensor) -> Tensor:
            arriving[site], leaves[site] = x, x.detach().requires_grad_()
            return leaves[site]

        return cutting

    logits = reader.model.differentiable_logits(prompts.tokens, *((site, cut(site)) for site in sites))
    with torch.enable_grad():
        return prompts.outcome(logits).sum(), arriving, leaves


def _gradients(of: Tensor, leaves: Mapping[Site, Tensor], direction: Tensor | None = None) -> dict[Site, Tensor]:
    """Return the gradient with respect to each leaf that has a path to `of`."""
    found = torch.autograd.grad(of, list(leaves.values()), direction, retain_graph=True, allow_unused=True)
    return {site: gradient for site, gradient in zip(leaves, found, strict=True) if gradient is not None}


def _direction(
    placed: Placed, x: Float[Tensor, "row position d"], node: Node, gradient: Float[Tensor, "row position d"]
) -> Float[Tensor, "row position d"]:
    """Return the gradient, with respect to the activations, of a node's value times the outcome's gradient to it."""
    with torch.enable_grad():
        own = x[:, node.position : node.position + 1].detach().requires_grad_()
        state = placed.state(own)
        at_node = gradient[:, node.position].to(state.error)
        if node.latent == placed.autoencoder.d_sae:
            value = (state.error[:, 0] * at_node).sum()
        else:
            weight = at_node @ placed.autoencoder.W_dec[node.latent].detach()
            value = (state.codes[:, 0, node.latent] * weight).sum()
        (found,) = torch.autograd.grad(value, own)
    direction = torch.zeros_like(x)
    direction[:, node.position] = found[:, 0]
    return direction

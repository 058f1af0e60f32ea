"""Edges between nodes of a linear model, by hand."""

import pytest
import torch

from fsae.evaluation.causal.circuit import changes, effects
from fsae.evaluation.causal.edges import Edge, Node, edges
from tests.evaluation.causal.toy import BETWEEN, EARLY, EMBEDDING, LATE, D, halved, pairs, placed, reader

PAIRS = pairs()


def found_between(dictionaries, nodes: list[Node]) -> dict[tuple[Node, Node | None], float]:
    drawn = edges(reader(), dictionaries, PAIRS.clean, changes(reader(), dictionaries, PAIRS), nodes)
    assert all(isinstance(each, Edge) for each in drawn)
    return {(each.source, each.target): each.weight for each in drawn}


def test_an_edge_by_hand():
    """The positive part of the number at the first token, to the same latent at the last one.

    In half of the prompts the number is the singular: code 1, patch 0, and the late code is 3 / 3 of it, which adds 2
    to the outcome. In the other half the late latent is off, so nothing passes.
    """
    early, late = Node(EARLY, 0, 0), Node(LATE, 2, 0)
    found = found_between(placed(), [early, late])
    assert found[early, late] == pytest.approx(0.5 * (1 - 0) * BETWEEN[0, 0].item() / 3 * 2)
    # The early site has no path to the outcome but through the late one.
    assert set(found) == {(early, late), (late, None)}


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "with errors"])
def test_the_edges_into_a_node_sum_to_its_effect(exact: bool):
    """In a linear model whose every path passes the early site. Codes are piecewise linear: in these prompts the late
    latents of the first dimension do not change their side between clean and patch to first order, so the sum over
    both of them is exact."""
    dictionaries = placed() if exact else placed(halved(), halved())
    every = [Node(EARLY, position, node) for position in range(3) for node in range(2 * D + 1)]
    error = Node(LATE, 2, 2 * D)
    late = [Node(LATE, 2, node) for node in range(2 * D)] + ([] if exact else [error])
    found = found_between(dictionaries, [*every, *late])
    into = sum(weight for (source, target), weight in found.items() if source.site == EARLY and target in late)
    total = effects(dictionaries, changes(reader(), dictionaries, PAIRS))
    assert into == pytest.approx(total[LATE][2].sum().item())
    assert into == pytest.approx(total[EARLY].sum().item())


def test_edges_to_the_outcome_are_direct():
    dictionaries = placed()[:1]
    nodes = [Node(EARLY, 0, 0), Node(EARLY, 2, 1)]
    found = found_between(dictionaries, nodes)
    total = effects(dictionaries, changes(reader(), dictionaries, PAIRS))
    # Without a later site every path is direct.
    assert found[nodes[0], None] == pytest.approx(total[EARLY][0, 0].item())
    # The words after the number are the same in both prompts.
    assert (nodes[1], None) not in found
    assert torch.equal(EMBEDDING[PAIRS.clean.tokens[:, 1:]], EMBEDDING[PAIRS.patch.tokens[:, 1:]])

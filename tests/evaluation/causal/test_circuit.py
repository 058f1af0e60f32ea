"""Effects, circuits and their faithfulness on a linear model with known latents."""

import pytest
import torch

from fsae.evaluation.causal.circuit import (
    Judge,
    at_random,
    changes,
    complement,
    effects,
    everything,
    means,
    strongest,
)
from fsae.evaluation.causal.placed import Placed
from fsae.language_models.sites import Site
from fsae.seeds import generator_for
from tests.evaluation.causal.toy import EARLY, LATE, D, halved, pairs, placed, reader

PAIRS = pairs()


def ranked(dictionaries: list[Placed], steps: int = 0) -> dict[Site, torch.Tensor]:
    return dict(effects(dictionaries, changes(reader(), dictionaries, PAIRS, steps)))


def judge(dictionaries: list[Placed]) -> Judge:
    return Judge(reader(), dictionaries, PAIRS.clean, means(reader(), dictionaries, PAIRS.patch))


@pytest.mark.parametrize("steps", [0, 3])
def test_the_effect_of_a_node_is_what_its_exact_replacement_takes(steps: int):
    """The model is linear, so attribution, integrated gradients and ablation agree."""
    dictionaries = placed(early=halved())
    found = ranked(dictionaries, steps)
    patch = reader().activations(PAIRS.patch, [EARLY, LATE])
    before = reader().outcomes(PAIRS.clean).mean()
    for each in dictionaries:
        at_patch = each.state(patch[each.site])
        for position in range(3):
            for node in (0, 1, D, 2 * D):

                def replaced(rows: slice, each=each, at_patch=at_patch, position=position, node=node):
                    def function(x: torch.Tensor) -> torch.Tensor:
                        own = each.state(x)
                        change = own.minus(own)
                        if node == 2 * D:
                            change.error[:, position] = (at_patch.error[rows] - own.error)[:, position]
                        else:
                            change.codes[:, position, node] = (at_patch.codes[rows] - own.codes)[:, position, node]
                        return x + each.vectors(change)

                    return {each.site: function}

                taken = before - reader().outcomes(PAIRS.clean, replaced).mean()
                assert found[each.site][position, node].item() == pytest.approx(taken.item(), abs=1e-6)


def test_the_effects_at_a_site_sum_to_the_difference_between_clean_and_patch():
    found = ranked(placed(early=halved(), late=halved()))
    difference = (reader().outcomes(PAIRS.clean) - reader().outcomes(PAIRS.patch)).mean().item()
    assert [each.sum().item() for each in found.values()] == pytest.approx([difference, difference])


@pytest.mark.parametrize("dictionaries", [placed(), placed(halved(), halved())[:1]], ids=["two sites", "one site"])
def test_nothing_has_faithfulness_0_and_everything_has_1(dictionaries: list[Placed]):
    found, of_task = ranked(dictionaries), judge(dictionaries)
    whole = reader().outcomes(PAIRS.clean)
    # Not a bit is changed if every node is in the circuit.
    assert torch.equal(of_task.outcomes([everything(found, True)])[0], whole)
    empty = of_task.outcomes([everything(found, False)]).mean().item()
    circuits = {"all": everything(found, True), "none": everything(found, False)}
    assert of_task.shares(circuits, whole.mean().item(), empty) == pytest.approx({"all": 1, "none": 0})
    # With every node at its mean, all prompts have the same activations, and the answers' logits differ by a constant.
    assert empty == pytest.approx(0, abs=0.01)


def test_the_planted_latents_are_the_circuit():
    """The number is in two latents at the first token (its positive and its negative part), and at the late site in
    the same two at the last token."""
    dictionaries = placed()
    found = ranked(dictionaries)
    circuit = strongest(found, 4)
    inside = {site: sorted(map(tuple, each.nonzero().tolist())) for site, each in circuit.items()}
    assert inside == {EARLY: [(0, 0), (0, D)], LATE: [(2, 0), (2, D)]}
    of_task = judge(dictionaries)
    whole = reader().outcomes(PAIRS.clean).mean().item()
    empty = of_task.outcomes([everything(found, False)]).mean().item()
    shares = of_task.shares({"circuit": circuit, "rest": complement(circuit)}, whole, empty)
    assert shares == pytest.approx({"circuit": 1, "rest": 0}, abs=0.05)


def test_one_site_of_the_circuit_is_not_enough():
    found = ranked(placed())
    circuit = strongest(found, 4)
    circuit[LATE] = torch.zeros_like(circuit[LATE])
    of_task = judge(placed())
    whole = reader().outcomes(PAIRS.clean).mean().item()
    empty = of_task.outcomes([everything(found, False)]).mean().item()
    assert of_task.shares({"circuit": circuit}, whole, empty)["circuit"] == pytest.approx(0, abs=0.05)


def test_errors_are_ranked_or_removed():
    """Half of the number is in the error of the early site."""
    found = ranked(placed(early=halved()))
    assert strongest(found, 8)[EARLY][0, 2 * D]
    removed = strongest(found, 1000, "removed")
    assert not any(each[:, -1].any() for each in removed.values())
    assert removed[EARLY][0, 0]


def test_random_circuits_are_of_equal_size_among_nodes_with_an_effect():
    found = ranked(placed(early=halved()))
    count = sum(int((each != 0).sum()) for each in found.values())
    drawn = [at_random(found, 3, generator_for(seed)) for seed in range(20)]
    for each in drawn:
        assert sum(int(inside.sum()) for inside in each.values()) == 3
        assert not any((inside & (found[site] == 0)).any() for site, inside in each.items())
    assert len({str(each) for each in drawn}) > 5
    # There are no more nodes to draw.
    largest = at_random(found, 10**6, generator_for(0))
    assert sum(int(inside.sum()) for inside in largest.values()) == count


def test_effects_are_the_same_whatever_the_rows_per_pass():
    one, other = (effects(placed(), changes(reader(rows), placed(), PAIRS)) for rows in (2, 100))
    for site, each in one.items():
        torch.testing.assert_close(each, other[site])


def test_circuits_have_the_same_outcomes_alone_and_together():
    dictionaries = placed(early=halved())
    found, of_task = ranked(dictionaries), judge(dictionaries)
    circuits = [strongest(found, 5), at_random(found, 3, generator_for(0)), everything(found, False)]
    alone = torch.cat([of_task.outcomes([each]) for each in circuits])
    torch.testing.assert_close(of_task.outcomes(circuits), alone)
    assert len(alone.unique()) > 3

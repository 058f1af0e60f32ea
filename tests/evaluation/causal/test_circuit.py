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
from fsae.evaluation.causal.passes import Reader
from fsae.evaluation.causal.placed import Placed
from fsae.evaluation.causal.prompts import Contrasts
from fsae.language_models.settings import Package
from fsae.language_models.sites import Site, SiteName
from fsae.seeds import generator_for
from tests.architectures import build
from tests.evaluation.causal.toy import EARLY, LATE, D, halved, pairs, placed, reader
from tests.language_models.conftest import opened

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


@pytest.mark.parametrize("name", [name for name in SiteName if not name.value.endswith("_normalized")])
def test_every_node_of_a_transformer_s_site_has_faithfulness_1(name: SiteName):
    """At resid_mid too, whose activations a skip connection carries past the MLP."""
    model, site = opened(Package.tiny), Site(name=name, layer=1)
    tokens = torch.randint(1, 200, (6, 5), generator=torch.Generator().manual_seed(0))
    answers = torch.full((6,), 7), torch.full((6,), 9)
    reads = Reader(model, 4)
    dictionaries = [Placed(site, build("gated", model.width(site), 40).eval())]
    prompts = Contrasts(tokens, *answers)
    of_tokens = Judge(reads, dictionaries, prompts, means(reads, dictionaries, prompts.of([0, 2, 4])))
    shapes = {site: torch.zeros(5, 41)}
    whole, empty = of_tokens.outcomes([everything(shapes, True), everything(shapes, False)])
    torch.testing.assert_close(whole, reads.outcomes(prompts), rtol=1e-4, atol=1e-5)
    assert (empty - whole).abs().max() > 1e-3

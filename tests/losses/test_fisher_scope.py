"""Scopes of the Fisher penalty against their definition: the pairs within blocks of latents, and outside groups."""

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.record import ForwardRecord
from fsae.losses.fisher import Fisher, FisherEstimator, FisherForm, FisherScope, RandomSign
from fsae.losses.objective import check_terms
from fsae.losses.term import LossTerm, Moment
from tests.architectures import samples, settings_of
from tests.autoencoders.test_blocks import CROSS_LAYER, PARTITIONED, built
from tests.losses.test_fisher import definition, each_estimator, each_form, each_path


def per_sample_gradients(record: ForwardRecord, form: FisherForm) -> Tensor:
    codes = record.codes.dense()
    match form:
        case FisherForm.pre:
            assert record.pre_activations is not None
            return 2 * record.pre_activations.dense()
        case FisherForm.post:
            return 2 * codes
        case FisherForm.correlation:
            centred = 2 * (codes - codes.mean(0))
            return centred / (centred.norm(dim=0) + 1e-8)
        case FisherForm.reconstruction:
            return (codes != 0) * ((record.reconstruction - record.wanted) @ record.W_dec.T)


def check(fisher: Fisher, dictionary: SparseAutoencoder, sparse: bool, regions: list[slice], outside: bool) -> None:
    x, y = samples(11, dictionary.d_in), samples(11, dictionary.d_out, seed=2)
    record = dictionary(x, sparse, y)
    value = fisher.measure(record, Moment(torch.empty(0)))
    g = per_sample_gradients(record, fisher.form)
    within = [definition(g[:, region], fisher.estimator)[0] for region in regions]
    total, diagonal = definition(g, fisher.estimator)
    inside = torch.stack(within).sum()
    expected = total - inside if outside else inside
    assert expected.item() not in (0.0, total.item())
    torch.testing.assert_close(value.value, expected)
    torch.testing.assert_close(value.beside["fisher_ratio"], (expected / diagonal).detach())
    weights = [parameter for parameter in dictionary.parameters() if parameter.requires_grad]
    found, wanted = (
        torch.autograd.grad(each, weights, retain_graph=True, allow_unused=True) for each in (value.value, expected)
    )
    dictionary.zero_grad()
    for parameter, ours, theirs in zip(weights, found, wanted, strict=True):
        zero = torch.zeros_like(parameter)
        parameter.grad = zero if ours is None else ours
        dictionary.mask_gradients()
        ours = parameter.grad
        parameter.grad = zero.clone() if theirs is None else theirs
        dictionary.mask_gradients()
        torch.testing.assert_close(ours, parameter.grad)


@each_form
@each_estimator
@each_path
def test_block_scope_sums_the_pairs_of_each_block(form: FisherForm, estimator: FisherEstimator, sparse: bool):
    fisher = Fisher(form=form, estimator=estimator, scope=FisherScope.block)
    dictionary = built("standard", CROSS_LAYER)
    with torch.no_grad():
        # One latent is on for every sample, and one for none.
        dictionary.get_parameter("b_enc")[[0, 1]] = torch.tensor([50.0, -50.0], dtype=torch.float64)
    check(fisher, dictionary, sparse, dictionary.ends.latents(15), outside=False)


@each_form
@each_estimator
@each_path
def test_group_scope_leaves_the_pairs_of_each_group_out(form: FisherForm, estimator: FisherEstimator, sparse: bool):
    fisher = Fisher(form=form, estimator=estimator, scope=FisherScope.outside_groups)
    generator = torch.Generator().manual_seed(0)
    dictionary = settings_of("group_topk", d_sae=15, k=6, rank=3).build(5, generator).double()
    with torch.no_grad():
        # The first group is on for every sample.
        dictionary.get_parameter("b_enc")[:3] = 50.0
    check(fisher, dictionary, sparse, [slice(begin, begin + 3) for begin in range(0, 15, 3)], outside=True)


def test_every_scope_is_that_of_all_codes_without_blocks():
    dictionary = settings_of("topk", d_sae=14).build(5, torch.Generator().manual_seed(0))
    record = dictionary(samples(9, dtype=torch.float32), sparse=True)
    of_all, of_block = (Fisher(scope=scope).sums(record) for scope in (FisherScope.all, FisherScope.block))
    assert torch.equal(of_all.off_diagonal, of_block.off_diagonal)


def test_random_signs_have_the_scope_of_the_penalty():
    dictionary, moment = built("standard", PARTITIONED), Moment(torch.empty(0))
    record = dictionary(samples(9, 9))
    scoped = RandomSign(scope=FisherScope.block).measure(record, moment)
    assert scoped.beside["fisher"].item() == Fisher(scope=FisherScope.block).sums(record).off_diagonal.item()
    assert abs(scoped.value.item()) < scoped.beside["fisher"].item()


def test_group_scope_is_refused_without_groups():
    term: dict[str, LossTerm] = {"penalty": Fisher(scope=FisherScope.outside_groups)}
    check_terms(term, settings_of("group_topk"))
    with pytest.raises(ValueError, match="group_rank"):
        check_terms(term, settings_of("topk"))

"""`fsae.evaluate`: a run's numbers, on the caller's own vectors."""

from typing import Any

import pytest
import torch

import fsae
from fsae.sources.toy_clusters import ToyClustersSettings
from tests.surface.vectors import D_IN, SHORT, sparse_features


@pytest.fixture(scope="module")
def dictionary() -> fsae.Dictionary:
    return fsae.train(sparse_features(), "topk", d_sae=32, k=4, **SHORT)


def test_on_what_training_held_out_it_gives_training_s_numbers(dictionary: fsae.Dictionary):
    numbers = fsae.evaluate(dictionary, sparse_features()[-300:])
    assert numbers == {name: value for name, value in dictionary.results.items() if name.startswith("eval/")}


def test_parts_of_any_size_give_the_same_numbers(dictionary: fsae.Dictionary):
    vectors = sparse_features(900, seed=1)
    whole = fsae.evaluate(dictionary, vectors, batch_size=128)
    assert fsae.evaluate(dictionary, (part for part in vectors.split(77)), batch_size=128) == whole
    assert fsae.evaluate(dictionary, torch.cat([vectors, 9 * vectors]), samples=900, batch_size=128) == whole


def test_fvu_is_the_unexplained_share_of_variance(dictionary: fsae.Dictionary):
    vectors = sparse_features(900, seed=1)
    error = (vectors - dictionary(vectors)).square().sum()
    variance = (vectors - vectors.mean(0)).square().sum()
    numbers = fsae.evaluate(dictionary, vectors)
    assert numbers["eval/fvu"] == pytest.approx((error / variance).item(), rel=1e-5)
    assert numbers["eval/l0"] == pytest.approx((dictionary.encode(vectors) != 0).sum(1).float().mean().item())


def test_every_number_has_a_meaning_and_is_in_the_table(dictionary: fsae.Dictionary):
    numbers = fsae.evaluate(dictionary, sparse_features(100, seed=1))
    assert numbers.meanings.keys() == numbers.keys()
    assert numbers.meanings["eval/fvu"] == "fraction of variance unexplained"
    assert len(str(numbers).splitlines()) == len(numbers)


def test_a_source_is_measured_on_its_held_out_part():
    source = ToyClustersSettings(points=300).source(torch.device("cpu"))
    dictionary = fsae.train(source.first_vectors(), "topk", d_sae=8, k=2, samples=3000, batch_size=100)
    (held_out,) = source.held_out(4096, 4096)
    assert fsae.evaluate(dictionary, source) == fsae.evaluate(dictionary, held_out.inputs)
    assert fsae.evaluate(dictionary, source, samples=50) == fsae.evaluate(dictionary, held_out.inputs[:50])


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(4, D_IN + 1), rf"expected shape \(n, d_in\) with d_in = {D_IN}, .* found \(4, {D_IN + 1}\)"),
        (torch.ones(4), r"found \(4,\) of float32"),
        ([], "no vectors"),
        (torch.ones(1, D_IN), "there is a single vector to measure on"),
        (torch.full((4, D_IN), float("nan")), "are not finite"),
    ],
)
def test_what_cannot_be_measured_on_is_refused(dictionary: fsae.Dictionary, vectors: Any, message: str):
    with pytest.raises(ValueError, match=message):
        fsae.evaluate(dictionary, vectors)


@pytest.mark.parametrize("name", ["samples", "batch_size"])
@pytest.mark.parametrize("size", [-1, 0, 1])
def test_sizes_below_two_are_refused(name: str, size: int, dictionary: fsae.Dictionary):
    with pytest.raises(ValueError, match=rf"^{name} is {size}; it must be at least 2 and at most"):
        fsae.evaluate(dictionary, sparse_features()[-300:], **{name: size})

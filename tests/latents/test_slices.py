"""Surveys of some latents after the others: the same findings, and memory that is known before."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fsae.latents.contexts import SampleContexts
from fsae.latents.findings import LatentFindings, findings
from fsae.latents.footprint import Footprint, footprint, slices_needed
from fsae.latents.hits import HitSizes
from fsae.latents.latent_pass import Sizes
from fsae.latents.slices import Slices, survey_slices
from tests.architectures import build

SIZES = Sizes(HitSizes(top=4, per_bin=2, bins=8, window=0), cofiring=8, seed=1)
WIDTH = 8


@pytest.fixture(scope="module")
def contexts() -> SampleContexts:
    """Three parts."""
    return SampleContexts(torch.randn(384, WIDTH, generator=torch.Generator().manual_seed(0)), 64, part_positions=128)


@pytest.fixture(scope="module")
def dictionaries():
    return [build(name, d_in=WIDTH, seed=0, dtype=torch.float32).eval() for name in ("topk", "standard")]


def found(contexts: SampleContexts, dictionaries, count: int, folder: Path) -> tuple[list[LatentFindings], Slices]:
    slices = Slices(dictionaries, SIZES, count, folder, "key")
    survey_slices(contexts, [slices], lambda: None)
    of_each = [
        findings(contexts, each, lambda number=number: slices.surveys(number), slices.counts(number), partners=4)
        for number, each in enumerate(dictionaries)
    ]
    return of_each, slices


@pytest.fixture(scope="module")
def whole(contexts, dictionaries, tmp_path_factory) -> list[LatentFindings]:
    return found(contexts, dictionaries, 1, tmp_path_factory.mktemp("whole"))[0]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_slices_find_what_one_survey_finds(contexts, dictionaries, whole, tmp_path: Path, count: int):
    sliced, slices = found(contexts, dictionaries, count, tmp_path)
    for one, several in zip(whole, sliced, strict=True):
        assert several.latents.equals(one.latents)
        expected, hits = (pd.concat(each.hits(), ignore_index=True) for each in (one, several))
        pd.testing.assert_frame_equal(hits, expected, check_exact=True)
        assert (several.numbers, several.samples, several.left_out) == (one.numbers, one.samples, one.left_out)
    slices.close()
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_pass_continues_in_the_slice_in_which_it_stopped(contexts, dictionaries, whole, tmp_path: Path):
    beats = iter(range(1000))

    def stop() -> None:
        # Six reads per slice: in the second slice.
        if next(beats) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey_slices(contexts, [Slices(dictionaries, SIZES, 2, tmp_path, "key")], stop)
    reads = []

    class Counted(SampleContexts):
        def read(self, begin: int, end: int):
            reads.append(begin)
            return super().read(begin, end)

    again, _ = found(Counted(contexts.vectors, 64, part_positions=128), dictionaries, 2, tmp_path)
    # The second and the third part of the second slice.
    assert reads == [128, 192, 256, 320]
    assert all(own.latents.equals(other.latents) for own, other in zip(again, whole, strict=True))


def test_the_footprint_is_what_a_survey_holds(contexts, dictionaries):
    (own, *_) = dictionaries
    codes = own.encode(contexts.vectors, sparse=True).codes
    survey = SIZES.survey(own)
    expected = footprint(SIZES, codes, samples=384, parts=0, at_once=0)
    held = {name: each for name, each in survey.state().items() if name not in ("parts", "left_out")}
    # A limit for the top contexts, for each list of samples, and for the draws.
    limits = 8 * (1 + SIZES.hits.bins + 1) * own.d_sae
    assert own.d_sae * expected.per_latent + 8 == sum(each.nbytes for each in held.values()) + limits


def test_the_footprint_of_co_firing_sets_is_near_the_number_that_is_kept():
    own = build("topk", d_in=WIDTH, seed=0, dtype=torch.float32).eval()
    vectors = torch.randn(4096, WIDTH, generator=torch.Generator().manual_seed(1))
    slices = Slices([own], SIZES, 1)
    survey_slices(SampleContexts(vectors, 512), [slices], lambda: None)
    (survey,) = slices.surveys(0)
    codes = own.encode(vectors[:2048], sparse=True).codes
    l0 = float(codes.firing_counts.sum()) / 2048
    said = footprint(SIZES, codes, samples=4096, parts=1, at_once=0).sets / (24 + 8 * l0)
    assert said == pytest.approx(survey.cofiring.samples, rel=0.2)


def test_slices_are_as_many_as_memory_asks_for():
    one = Footprint(latents=1000, per_latent=10, sets=300, block=200)
    assert slices_needed([one], 10_500) == 1
    assert slices_needed([one], 10_499) == 2
    assert slices_needed([one, one], 11_000) == 3
    needed = slices_needed([one], 700)
    assert 10 * np.ceil(1000 / needed) + 500 <= 700
    assert slices_needed([one], 509) == 0

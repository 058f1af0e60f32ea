"""The streaming survey against brute force on dense codes, and the merging of parts."""

import numpy as np
import pandas as pd
import pytest
import torch

from fsae.latents.bins import BINS, EDGES, bin_of
from fsae.latents.block import Block, Places
from fsae.latents.hits import HitSizes
from fsae.latents.sampling import hash_of
from fsae.latents.survey import Survey
from fsae.latents.tables import cofiring_columns, hit_table, tally_columns
from fsae.outputs.latent_store import SAMPLED, TOP
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern

D_SAE, CONTEXTS, LENGTH = 24, 40, 10
SIZES = HitSizes(top=5, per_bin=2, bins=6, window=3)


@pytest.fixture
def codes() -> torch.Tensor:
    """(context, position, latent); some are negative, as an abs_topk's, and latent 0 is dead."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(CONTEXTS, LENGTH, D_SAE, generator=generator) * torch.rand(D_SAE, generator=generator).exp2()
    density = torch.linspace(0, 0.6, D_SAE)
    return values * (torch.rand(CONTEXTS, LENGTH, D_SAE, generator=generator) < density)


@pytest.fixture
def keep() -> torch.Tensor:
    keep = torch.rand(CONTEXTS, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.9
    keep[:, 0] = False
    return keep


DOCUMENTS = (torch.arange(CONTEXTS * LENGTH).view(CONTEXTS, LENGTH) // 7).int()


def surveyed(
    codes: torch.Tensor, keep: torch.Tensor, contexts: list[int], part: int = 0, sparse: bool = True
) -> Survey:
    survey = Survey(range(D_SAE), D_SAE, SIZES, cofiring=4, seed=3)
    return add(survey, codes, keep, contexts, part, sparse)


def add(survey: Survey, codes, keep, contexts: list[int], part: int, sparse: bool = True) -> Survey:
    kept = codes[contexts][keep[contexts]]
    held = Codes(kept[kept != 0], Pattern.of_mask(kept != 0)) if sparse else Codes(kept)
    survey.add(Block.of(held, Places(torch.tensor(contexts), keep[contexts], DOCUMENTS[contexts])), 0, part)
    return survey


def records(table: pd.DataFrame) -> list[dict]:
    return [dict(zip(table, row, strict=True)) for row in table.itertuples(index=False)]


def state_of(survey: Survey) -> dict[str, bytes]:
    return {name: each.numpy().tobytes() for name, each in survey.state().items()}


def test_top_contexts_equal_brute_force(codes, keep):
    hits = hit_table(surveyed(codes, keep, list(range(CONTEXTS))))
    peaks = (codes.abs() * keep[:, :, None]).amax(1)
    for latent in range(D_SAE):
        top = hits[(hits["latent"] == latent) & (hits["group"] == TOP)]
        expected = peaks[:, latent].argsort(descending=True, stable=True).tolist()[:5]
        expected = [context for context in expected if peaks[context, latent] > 0]
        assert top["context"].tolist() == expected
        assert top["rank"].tolist() == list(range(len(expected)))
        for row in records(pd.DataFrame(top)):
            assert row["value"] == codes[row["context"], row["position"], latent]
            assert abs(row["value"]) == peaks[row["context"], latent]


def test_windows_hold_the_codes_of_their_document(codes, keep):
    for row in records(hit_table(surveyed(codes, keep, list(range(CONTEXTS))))):
        document = DOCUMENTS[row["context"], row["position"]]
        assert row["values"][row["position"] - row["begin"]] == row["value"]
        for position, value in enumerate(row["values"], row["begin"]):
            assert abs(position - row["position"]) <= SIZES.window
            if np.isnan(value):
                assert not keep[row["context"], position] or DOCUMENTS[row["context"], position] != document
            else:
                assert keep[row["context"], position]
                assert DOCUMENTS[row["context"], position] == document
                assert value == codes[row["context"], position, row["latent"]]
        # Nothing that could be shown is missing.
        shown = range(row["begin"], row["begin"] + len(row["values"]))
        near = range(max(0, row["position"] - SIZES.window), min(LENGTH, row["position"] + SIZES.window + 1))
        assert all(p in shown or not keep[row["context"], p] or DOCUMENTS[row["context"], p] != document for p in near)


def test_samples_are_those_of_smallest_hash_in_each_bin(codes, keep):
    hits = hit_table(surveyed(codes, keep, list(range(CONTEXTS))))
    peaks = (codes.abs() * keep[:, :, None]).amax(1)
    for latent in range(1, D_SAE):
        fires = peaks[:, latent].nonzero().squeeze(1)
        if not len(fires):
            continue
        bins = bin_of(peaks[fires, latent])
        drawn = hash_of(fires * D_SAE + latent, 3)
        expected = {
            number: fires[bins == number][drawn[bins == number].argsort()][:2].tolist()
            for number in bins.unique().tolist()
            if number > bins.max() - SIZES.bins
        }
        sampled = hits[(hits["latent"] == latent) & (hits["group"] == SAMPLED)]
        assert {number: rows["context"].tolist() for number, rows in sampled.groupby("bin")} == expected
        assert sampled["bin"].tolist() == sorted(sampled["bin"], reverse=True)


def test_counts_and_moments_equal_brute_force(codes, keep):
    columns = tally_columns(surveyed(codes, keep, list(range(CONTEXTS))))
    kept = codes[keep].double()
    on = kept != 0
    assert columns["count"].tolist() == on.sum(0).tolist()
    assert columns["density"] == pytest.approx((on.double().mean(0)).numpy())
    for latent in range(1, D_SAE):
        values = kept[on[:, latent], latent]
        if len(values):
            assert columns["mean"][latent] == pytest.approx(values.mean().item())
            assert columns["std"][latent] == pytest.approx(values.std(correction=0).item(), abs=1e-7)
            strengths = values.abs().numpy()
            assert columns["histogram"][latent].tolist() == np.histogram(strengths, EDGES)[0].tolist()
            assert abs(columns["max"][latent]) == np.float32(strengths.max())
    assert np.isnan(columns["max"][0])
    assert np.isnan(columns["mean"][0])


def test_bins_are_half_octaves():
    assert len(EDGES) == BINS + 1
    assert bin_of(torch.tensor([1.0, 1.4, 1.5, 2.0, 2.0**-40, 2.0**20])).tolist() == [64, 64, 65, 66, 0, BINS - 1]


@pytest.mark.parametrize("sparse", [True, False])
def test_parts_merge_to_the_same_bytes_in_any_order(codes, keep, sparse):
    whole = Survey(range(D_SAE), D_SAE, SIZES, cofiring=4, seed=3)
    parts = [list(range(begin, begin + 10)) for begin in range(0, CONTEXTS, 10)]
    for number, contexts in enumerate(parts):
        for context in contexts:
            add(whole, codes, keep, [context], number)
    merged = Survey(range(D_SAE), D_SAE, SIZES, cofiring=4, seed=3)
    for number in (2, 0, 3, 1):
        own = Survey(range(D_SAE), D_SAE, SIZES, cofiring=4, seed=3)
        for context in parts[number]:
            add(own, codes, keep, [context], number, sparse)
        # As a killed process leaves it, and the next one finds it.
        loaded = own.like()
        loaded.merge(own.state())
        merged.merge(loaded.state())
    assert state_of(merged) == state_of(whole)
    assert tally_columns(merged)["mean"].tobytes() == tally_columns(whole)["mean"].tobytes()
    assert hit_table(merged).equals(hit_table(whole))


def test_surveys_of_some_latents_find_what_the_survey_of_all_finds(codes, keep):
    whole = surveyed(codes, keep, list(range(CONTEXTS)))
    count, density = whole.tally.count.numpy(), whole.tally.count.numpy() / whole.tally.samples
    partners = cofiring_columns(whole.cofiring.partners(density, count, 5))
    columns, hits = tally_columns(whole), hit_table(whole)
    for latents in (range(7), range(7, 8), range(8, D_SAE)):
        survey = Survey(latents, D_SAE, SIZES, cofiring=4, seed=3)
        add(survey, codes, keep, list(range(CONTEXTS)), 0)
        own = slice(latents.start, latents.stop)
        for name, values in tally_columns(survey).items():
            assert np.array_equal(np.stack(values), np.stack(columns[name][own]), equal_nan=True)
        of_range = hits["latent"].between(latents.start, latents.stop - 1)
        pd.testing.assert_frame_equal(hit_table(survey), hits.loc[of_range].reset_index(drop=True), check_exact=True)
        for name, values in cofiring_columns(survey.cofiring.partners(density, count, 5)).items():
            assert [row.tolist() for row in values] == [row.tolist() for row in partners[name][own]]


def test_hits_of_some_latents_are_rows_of_the_whole_table(codes, keep):
    survey = surveyed(codes, keep, list(range(CONTEXTS)))
    tables = [hit_table(survey, first, min(first + 5, D_SAE)) for first in range(0, D_SAE, 5)]
    pd.testing.assert_frame_equal(pd.concat(tables, ignore_index=True), hit_table(survey), check_exact=True)


def test_co_firing_of_a_small_dictionary_equals_exact_counts(codes, keep):
    """Every sample of a latent is kept if it has fewer than `cofiring`."""
    survey = Survey(range(D_SAE), D_SAE, SIZES, cofiring=1000, seed=3)
    add(survey, codes, keep, list(range(CONTEXTS)), 0)
    on = (codes[keep] != 0).double()
    count, density = on.sum(0).numpy(), on.mean(0).numpy()
    both = (on.T @ on).numpy()
    found = survey.cofiring.partners(density, count, 5)
    columns = cofiring_columns(found)
    assert any(len(row) for row in columns["cofiring"])
    for latent in range(D_SAE):
        for place, other in enumerate(columns["cofiring"][latent]):
            share = both[latent, other] / count[latent]
            assert columns["cofiring_share"][latent][place] == pytest.approx(share)
            assert columns["cofiring_lift"][latent][place] == pytest.approx(share / density[other])
            either = count[latent] + count[other] - both[latent, other]
            assert columns["cofiring_jaccard"][latent][place] == pytest.approx(both[latent, other] / either)


def test_planted_pairs_co_fire():
    generator = torch.Generator().manual_seed(2)
    codes = (torch.rand(CONTEXTS, LENGTH, D_SAE, generator=generator) < 0.05).float()
    codes[:, :, 5] = codes[:, :, 4] * (torch.rand(CONTEXTS, LENGTH, generator=generator) < 0.9)
    keep = torch.ones(CONTEXTS, LENGTH, dtype=torch.bool)
    survey = Survey(range(D_SAE), D_SAE, SIZES, cofiring=16, seed=0)
    add(survey, codes, keep, list(range(CONTEXTS)), 0)
    on = (codes[keep] != 0).double()
    found = survey.cofiring.partners(on.mean(0).numpy(), on.sum(0).numpy(), 3)
    assert found.latents[4, 0] == 5
    assert found.latents[5, 0] == 4
    assert found.share[5, 0] == 1.0
    assert found.error[5, 0] > 0

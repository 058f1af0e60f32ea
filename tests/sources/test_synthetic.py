"""Synthetic features: their statistics, and a stream that depends on a seed and a counter alone."""

import math
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch

from fsae.sources.synthetic.grouped import GroupedFeaturesSettings
from fsae.sources.synthetic.hierarchical import HierarchicalFeaturesSettings
from fsae.sources.synthetic.source import SyntheticSettings, SyntheticSource, spread_out
from fsae.sources.synthetic.sparse_sources import SparseSourcesSettings
from tests.sources.positions import check_goes_on

CPU = torch.device("cpu")
SMALL = [
    GroupedFeaturesSettings(d_in=12, features=40, groups=3, active=4),
    SparseSourcesSettings(),
    HierarchicalFeaturesSettings(d_in=20, features=200, roots=4, branching=3, depth=2, rank=5, p_min=0.01),
]
each_kind = pytest.mark.parametrize("settings", SMALL, ids=lambda settings: type(settings).__name__)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@each_kind
def test_vectors_are_sums_of_features(settings: SyntheticSettings):
    source = SyntheticSource(settings, CPU)
    codes = settings.model().draw(50, generator())
    assert codes.shape == (50, settings.features)
    assert source.features.shape == (settings.features, settings.d_in)
    (batch,) = islice(source.batches(50), 1)
    assert batch.inputs.shape == (50, settings.d_in)
    assert batch.targets is batch.inputs
    torch.testing.assert_close(codes.decode(source.features), codes.dense() @ source.features, rtol=1e-5, atol=1e-5)


@each_kind
def test_a_resumed_stream_continues_with_the_next_batch(settings: SyntheticSettings):
    check_goes_on(lambda: SyntheticSource(settings, CPU), 16)


@each_kind
def test_parts_and_seeds_differ_and_repeat(settings: SyntheticSettings):
    source = SyntheticSource(settings, CPU)
    held_out = torch.cat([batch.inputs for batch in source.held_out(50, 20)])
    assert held_out.shape == (50, settings.d_in)
    assert torch.equal(held_out, torch.cat([batch.inputs for batch in source.held_out(50, 20)]))
    (batch,) = islice(source.batches(50), 1)
    assert not torch.equal(batch.inputs[:20], held_out[:20])
    assert not torch.equal(source.first_vectors()[:20], held_out[:20])


@each_kind
def test_coefficients_are_those_of_the_held_out_samples(settings: SyntheticSettings):
    source = SyntheticSource(settings, CPU)
    vectors = torch.cat([source.vectors(codes) for codes in source.held_out_codes(5000)])
    assert torch.equal(torch.cat([batch.inputs for batch in source.held_out(5000, 1500)]), vectors)


@each_kind
def test_held_out_samples_are_the_same_in_batches_of_any_size(settings: SyntheticSettings):
    source = SyntheticSource(settings, CPU)
    sizes = [[len(batch.inputs) for batch in source.held_out(5000, size)] for size in (1500, 4096)]
    assert sizes == [[1500, 1500, 1500, 500], [4096, 904]]
    first, second = (torch.cat([batch.inputs for batch in source.held_out(5000, size)]) for size in (1500, 4096))
    assert torch.equal(first, second)


def test_grouped_samples_take_their_features_from_one_group():
    settings = GroupedFeaturesSettings(d_in=12, features=40, groups=3, active=4, decay=0.8)
    dense = settings.model().draw(3000, generator()).dense()
    on = dense != 0
    assert (on.sum(1) == 4).all()
    # Three groups of 13, and one feature that is left over.
    groups = on[:, :39].view(-1, 3, 13).any(2)
    assert (groups.sum(1) == 1).all()
    assert groups.float().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert not on[:, 39].any()
    # Without replacement, and the earlier the likelier: of 13 with weights 0.8^i the first is in most samples.
    frequency = on[:, :39].view(-1, 3, 13).sum((0, 1)) / len(on)
    assert frequency.diff().max() < 0.03
    assert frequency[0] > 2 * frequency[9]
    assert dense.max() < 1
    assert dense[on].mean() == pytest.approx(0.5, abs=0.02)


def test_a_sample_has_three_sources_with_half_normal_coefficients():
    model = SparseSourcesSettings().model()
    dense = model.draw(20_000, generator()).dense()
    on = dense != 0
    assert (on.sum(1) == 3).all()
    assert on.float().mean(0).tolist() == pytest.approx([3 / 16] * 16, abs=0.015)
    assert dense[on].mean() == pytest.approx(math.sqrt(2 / math.pi), abs=0.01)
    torch.testing.assert_close(model.features.norm(dim=1), torch.ones(16))
    zipf = SparseSourcesSettings(zipf=1.0).model().draw(20_000, generator()).dense() != 0
    assert zipf[:, 0].float().mean() > 3 * zipf[:, 15].float().mean()


def test_children_are_on_with_their_parents_and_without_siblings():
    settings = SMALL[2]
    on = settings.model().draw(20_000, generator()).dense() != 0
    # 4 roots, their 12 children (three each, in order), their 36.
    children, grandchildren = on[:, 4:16].view(-1, 4, 3), on[:, 16:52].view(-1, 12, 3)
    for family, parents in ((children, on[:, :4]), (grandchildren, on[:, 4:16])):
        assert not (family & ~parents.unsqueeze(2)).any()
        assert family.sum(2).max() == 1


def test_every_feature_is_on_at_its_base_rate():
    settings = HierarchicalFeaturesSettings(
        d_in=20, features=20, roots=3, branching=2, depth=1, zipf=0.5, rank=2, p_min=0.02, p_max=0.3
    )
    on = settings.model().draw(50_000, generator()).dense() != 0
    rates = 0.02 + 0.28 * (torch.arange(1, 21.0) ** -0.5 - 20**-0.5) / (1 - 20**-0.5)
    for part in (slice(0, 3), slice(9, 20)):
        torch.testing.assert_close(on[:, part].float().mean(0), rates[part], rtol=0.05, atol=0.003)
    # Two siblings cannot both be on as often as they should where their parent leaves too little room.
    torch.testing.assert_close(on[:, 3:9].float().mean(0), rates[3:9], rtol=0.25, atol=0.0)


def test_a_childs_coefficient_scales_with_its_parents():
    settings = HierarchicalFeaturesSettings(d_in=8, features=6, roots=2, branching=2, depth=1, rank=1, p_min=0.2)
    model = settings.model()
    model._deviations.fill_(1.0)  # pyright: ignore[reportAttributeAccessIssue]
    dense = model.draw(50_000, generator()).dense()
    both = (dense[:, 0] > 0) & (dense[:, 2] > 0)
    assert torch.corrcoef(dense[both][:, [0, 2]].T)[0, 1] > 0.15
    apart = (dense[:, 1] > 0) & (dense[:, 2] > 0)
    assert torch.corrcoef(dense[apart][:, [1, 2]].T)[0, 1].abs() < 0.1


def test_the_default_size_has_the_benchmarks_statistics():
    codes = HierarchicalFeaturesSettings().model().draw(500, generator())
    # Published: about 34 features per sample.
    assert codes.firing_counts.sum() / 500 == pytest.approx(34, rel=0.1)
    # Most of them are of the trees' 128 x (1 + 4 + 16 + 64).
    assert codes.firing_counts[:10_880].sum() > 0.55 * codes.firing_counts.sum()


def test_spread_features_have_the_least_sum_of_squared_cosines_and_few_ones_are_orthogonal():
    drawn = torch.randn(64, 16, generator=generator())
    spread = spread_out(drawn)
    torch.testing.assert_close(spread.norm(dim=1), torch.ones(64))
    # The sum over all pairs, a feature and itself included, is n^2 / d for a tight frame, and least there.
    assert (spread @ spread.T).square().sum() == pytest.approx(64**2 / 16, rel=1e-4)
    assert torch.nn.functional.cosine_similarity(spread, drawn).min() > 0.8
    few = spread_out(drawn[:8])
    torch.testing.assert_close(few @ few.T, torch.eye(8))


def test_a_constant_is_added_to_every_sample():
    settings = HierarchicalFeaturesSettings(d_in=8, features=6, roots=2, branching=2, depth=1, rank=1, constant=0.5)
    source, without = (each.source(torch.device("cpu")) for each in (settings, replace(settings, constant=0.0)))
    constant = next(source.held_out(4, 4)).inputs - next(without.held_out(4, 4)).inputs
    assert constant.norm(dim=1).tolist() == pytest.approx([0.5] * 4, abs=1e-5)
    torch.testing.assert_close(constant, constant[:1].expand(4, 8))
    torch.testing.assert_close(
        torch.cat([source.vectors(codes) for codes in source.held_out_codes(4)]), next(source.held_out(4, 4)).inputs
    )


def test_common_factors_correlate_features():
    def together(factor: float) -> float:
        settings = HierarchicalFeaturesSettings(
            d_in=8, features=60, roots=1, branching=1, depth=0, zipf=0.0, p_max=0.2, p_min=0.2, rank=3, factor=factor
        )
        on = (settings.model().draw(20_000, generator()).dense() != 0).double()
        return (torch.corrcoef(on.T) - torch.eye(60)).square().mean().item()

    assert together(0.7) > 10 * together(0.0)


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        (GroupedFeaturesSettings, {"groups": 600}, "source.groups"),
        (GroupedFeaturesSettings, {"active": 50}, "source.active"),
        (GroupedFeaturesSettings, {"decay": 0.0}, "source.decay"),
        (SparseSourcesSettings, {"active": 17}, "source.active"),
        (SparseSourcesSettings, {"d_in": 0}, "source.d_in"),
        (HierarchicalFeaturesSettings, {"features": 1000}, "source.roots"),
        (HierarchicalFeaturesSettings, {"factor": -1.0}, "source.factor"),
        (HierarchicalFeaturesSettings, {"branching": 0}, "source.branching"),
        (HierarchicalFeaturesSettings, {"roots": 0}, "source.roots"),
        (HierarchicalFeaturesSettings, {"depth": -1}, "source.depth"),
        (HierarchicalFeaturesSettings, {"rank": -1}, "source.rank"),
        (HierarchicalFeaturesSettings, {"zipf": -1.0}, "source.zipf"),
        (HierarchicalFeaturesSettings, {"p_min": 0.5}, "source.p_min"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[SyntheticSettings], changes: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=named.replace(".", r"\.")):
        kind(**changes)

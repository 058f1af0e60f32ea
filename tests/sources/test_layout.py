"""Streams of several sites, and the settings that choose them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fsae.autoencoders.layout import PartNorm
from fsae.language_models.settings import DType, ModelSettings, OtherModelSettings, Package, Weights
from fsae.language_models.sites import Site, SiteName
from fsae.sources.activations import ActivationSource
from fsae.sources.layout import Latents, LayoutSettings, Sites
from fsae.sources.open_activations import ActivationSourceSettings
from fsae.sources.source import Batch, Request
from tests.sources.test_activations import DATASET, MODEL, WHERE, take
from tests.sources.test_massive import sinking_model
from tests.streams import D_IN, SITE, TableModel, activation_source, listed_shards

OTHER_MODEL = ModelSettings(package=Package.tiny, weights=Weights.random)
# Its vectors are twice as long as those of SITE.
OTHER = Site(name=SiteName.mlp_out, layer=9)
BETWEEN, BOTH = Sites((SITE,), (OTHER,)), Sites((SITE, OTHER), (SITE, OTHER))


def first(read: Sites, count: int, folder: Path | None = None) -> list[Batch]:
    with activation_source(folder, read=read) as source:
        batches = source.batches(8)
        return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("stored", [False, True], ids=["memory", "store"])
def test_rows_of_input_and_target_belong_together(stored: bool, tmp_path: Path):
    # 20 batches go beyond the first epoch.
    found = first(BETWEEN, 20, tmp_path if stored else None)
    plain = first(Sites((SITE,), (SITE,)), 20)
    for batch, alone in zip(found, plain, strict=True):
        assert torch.equal(batch.inputs, alone.inputs)
        assert torch.equal(batch.targets, 2 * batch.inputs)


def test_parts_of_a_crosscoder_are_side_by_side():
    for batch in first(BOTH, 3):
        assert batch.targets is batch.inputs
        assert torch.equal(batch.inputs[:, D_IN:], 2 * batch.inputs[:, :D_IN])


def test_held_out_vectors_are_pairs():
    with activation_source(read=BETWEEN) as source:
        (batch,) = source.held_out(40, 1000)
    assert batch.inputs.shape == (40, D_IN)
    assert torch.equal(batch.targets, 2 * batch.inputs)


def test_first_vectors_are_pairs():
    with activation_source(read=BETWEEN) as source:
        assert torch.equal(source.first_targets(), 2 * source.first_vectors())


def test_position_resumes_with_the_next_pair():
    whole = first(BETWEEN, 14)
    with activation_source(read=BETWEEN) as source:
        batches = source.batches(8)
        for _ in range(9):
            next(batches)
        state = source.state_dict()
    with activation_source(read=BETWEEN) as source:
        source.load_state_dict(state)
        batch = next(source.batches(8))
    assert torch.equal(batch.inputs, whole[9].inputs)
    assert torch.equal(batch.targets, whole[9].targets)


def test_row_that_is_massive_at_one_site_is_left_out_at_both():
    with (
        activation_source(model=sinking_model(), read=BETWEEN) as limited,
        activation_source(model=sinking_model(), max_norm_multiple=None, read=BETWEEN) as everything,
    ):
        kept, found = limited.first_vectors(), everything.first_vectors()
        assert 0 < len(kept) < len(found)
        assert torch.equal(limited.first_targets(), 2 * kept)
        limits = limited.norm_limits
    assert limits is not None
    assert limits[1] == pytest.approx(2 * limits[0])
    with activation_source(model=sinking_model(), read=BETWEEN) as source:
        source._norm_limits = [limits[0] * 1e6, limits[1]]
        assert torch.equal(source.first_vectors(), kept)


@pytest.mark.parametrize("stored", [False, True], ids=["memory", "store"])
def test_streams_at_several_sites_share_each_forward_pass(stored: bool, tmp_path: Path):
    alone = TableModel()
    # Four shards, so that every epoch but the first comes back to shards that are no longer in memory.
    with activation_source(tmp_path / "alone" if stored else None, model=alone, tokens=160) as source:
        batches = source.batches(8)
        plain, passes = [next(batches).inputs for _ in range(45)], alone.passes
        held_out = torch.cat([batch.inputs for batch in source.held_out(60, 25)])
    model, streams = TableModel(), [Sites((SITE,), (SITE,)), BETWEEN, BOTH]
    reader = listed_shards(
        tmp_path / "together" if stored else None,
        model=model, tokens=160, sites=[SITE, OTHER], streams=[sites.all for sites in streams],
    )  # fmt: skip
    sources = [activation_source(reader=reader, read=sites) for sites in streams]
    every = [source.batches(8) for source in sources]
    for wanted in plain:
        first, second, third = (next(batches) for batches in every)
        for found in (first.inputs, second.inputs, second.targets / 2, third.inputs[:, :D_IN]):
            assert torch.equal(found, wanted)
    assert model.passes == passes
    for source, factor in zip(sources, (1, 2, 1), strict=True):
        found = torch.cat([batch.targets[:, :D_IN] for batch in source.held_out(60, 25)])
        assert torch.equal(found, factor * held_out)
    assert not reader._in_memory
    for source in sources:
        source.__exit__()


def test_stream_that_lags_behind_has_its_shards_harvested_again():
    streams = [Sites((SITE,), (SITE,)), Sites((OTHER,), (OTHER,))]
    reader = listed_shards(tokens=160, sites=[SITE, OTHER], streams=[sites.all for sites in streams])
    ahead, behind = (activation_source(reader=reader, read=sites) for sites in streams)
    with ahead, behind:
        leading = ahead.batches(8)
        first = [next(leading).inputs for _ in range(20)]
        assert len(reader._in_memory) == 2
        lagging = behind.batches(8)
        for wanted in first:
            assert torch.equal(next(lagging).inputs, 2 * wanted)


def test_settings_name_the_sites_of_every_layout():
    site = Site(name=SiteName.mlp_in, layer=5)
    assert LayoutSettings().sites(site) == Sites((site,), (site,))
    transcoder = LayoutSettings(target=SiteName.mlp_out)
    assert str(transcoder.sites(site)) == "mlp_in.5 -> mlp_out.5"
    crosscoder = LayoutSettings(layers=[3, 6])
    assert str(crosscoder.sites(site)) == "mlp_in.3 + mlp_in.6"
    layers = LayoutSettings(target=SiteName.mlp_out, layers=[3, 6], latents=Latents.cross_layer)
    assert str(layers.sites(site)) == "mlp_in.3 + mlp_in.6 -> mlp_out.3 + mlp_out.6"
    assert [each.plain for each in (LayoutSettings(), transcoder, crosscoder)] == [True, False, False]


def test_sites_of_two_models():
    site = Site(name=SiteName.mlp_in, layer=5)
    pair = LayoutSettings(model=OTHER_MODEL)
    assert str(pair.sites(site)) == "mlp_in.5 + mlp_in.5_of_tiny-random_weights"
    assert (pair.plain, pair.several) == (False, True)
    own, other = pair.sites(site).input
    # Both run as the run's own model does.
    run = replace(MODEL, dtype=DType.bfloat16, batch_size=3)
    assert own.model_in(run) == run
    assert other.model_in(run) == replace(OtherModelSettings.of(OTHER_MODEL), dtype=DType.bfloat16, batch_size=3)
    assert (own.within, other.within) == (site, site)
    four = LayoutSettings(model=OTHER_MODEL, layers=[3, 6]).sites(site)
    assert [each.layer for each in four.input] == [3, 6, 3, 6]


def two_models(folder: Path, model: ModelSettings, layout: LayoutSettings) -> ActivationSource:
    request = Request(
        model=model,
        site=WHERE,
        layout=layout,
        dataset=DATASET,
        training_samples=600,
        held_out_samples=100,
        stores=folder,
    )
    return ActivationSourceSettings(tokens=600, shard_tokens=256).open(request, lambda: None)


def test_rows_of_two_models_are_of_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pair, alone = LayoutSettings(model=OTHER_MODEL), LayoutSettings()
    with two_models(tmp_path, MODEL, pair) as source:
        source.fill_store()
        first_time = take(source, 30)
        assert [width for _, width in source.input_layout.parts] == [32, 32]
        own, other = source.sites.input
        assert source.model_at(own) is source.model is not source.model_at(other)
    # The first model's store is that of runs on it alone. The other one's is not, because its text has the first one's
    # tokens.
    assert len(list(tmp_path.iterdir())) == 2
    for model, part in ((MODEL, 0), (OTHER_MODEL, 1)):
        with two_models(tmp_path, model, alone) as source:
            found = [rows.split(32, dim=1)[part] for rows in first_time]
            assert all(torch.equal(*each) for each in zip(found, take(source, 30), strict=True))
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr("fsae.sources.corpus.open_language_model", lambda settings: pytest.fail("it was opened"))
    with two_models(tmp_path, MODEL, pair) as source:
        assert all(torch.equal(*each) for each in zip(take(source, 30), first_time, strict=True))


def test_two_models_with_different_tokens_are_refused_before_they_are_opened(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("fsae.sources.corpus.open_language_model", lambda settings: pytest.fail("it was opened"))
    smollm = LayoutSettings(model=ModelSettings(package=Package.smollm2_135m_instruct_q4_1))
    different = r"tiny and smollm2\w* \(layout\.model\) read different tokens: '!' is 1 in tiny and 17 in"
    with pytest.raises(ValueError, match=different):
        two_models(tmp_path, MODEL, smollm)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skip": True}, "layout.target is null"),
        ({"target": SiteName.mlp_out, "skip_rank": 4}, "layout.skip is false"),
        ({"target": SiteName.mlp_out, "layers": [1, 2]}, "layout.target=null"),
        ({"target": SiteName.mlp_out, "model": OTHER_MODEL}, "layout=crosscoder"),
        ({"layers": [1, 2, 1]}, "names a layer twice"),
        ({"layers": [-1]}, "layout.layers"),
        ({"layers": [2, 1], "latents": Latents.cross_layer}, "name them in their order"),
        ({"layers": [1, 2], "latents": Latents.per_layer, "exclusive": 0.1}, "choose layout=crosscoder"),
        (
            {"layers": [1], "latents": Latents.per_layer, "target": SiteName.mlp_out, "skip": True, "skip_rank": 2},
            "would join the layers",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LayoutSettings(**settings)


@pytest.mark.parametrize("target", [SiteName.resid_pre, SiteName.mlp_in], ids=["earlier", "same"])
def test_targets_that_a_pass_reaches_before_the_input_are_refused(target: SiteName):
    with pytest.raises(ValueError, match=r"does not reach after mlp_in\.5"):
        LayoutSettings(target=target).sites(Site(name=SiteName.mlp_in, layer=5))


def test_joint_norm_is_a_choice():
    with activation_source(read=BOTH) as source:
        ends = LayoutSettings(layers=[1, 2], part_norm=PartNorm.joint).ends(source.input_layout, source.target_layout)
    assert ends.part_norm is PartNorm.joint
    assert ends.same

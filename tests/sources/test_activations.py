import copy
import re
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.sites import Site, SiteName
from fsae.sources.activations import ActivationSource
from fsae.sources.documents import DatasetFormat, DatasetSettings
from fsae.sources.open_activations import ActivationSourceSettings, Cache, open_activations
from fsae.sources.shard import Part
from fsae.sources.source import Request
from tests.streams import D_IN, PASSES, TEXTS, TableModel, activation_source, packed

TOKENS, SHARD, BATCH = 70, 40, 16
# 70 vectors are four batches, of which the third is joined from both shards; 6 are left out.
PER_EPOCH = 4


def take(source: ActivationSource, count: int) -> list[Tensor]:
    stream = source.batches(BATCH)
    return [next(stream).inputs for _ in range(count)]


def shard_in_text_order(number: int, tokens: int = TOKENS) -> Tensor:
    """Return a shard's activations in the order of the text, computed without the source."""
    model, text, found = TableModel(), packed(TEXTS, repeat=True), []
    for _ in range(number + 1):
        found = []
        while sum(map(len, found)) < SHARD:
            ids, keep, *_ = next(text)
            found.append((model.table[ids] + model.positions)[keep])
    return torch.cat(found)[: tokens - number * SHARD][:SHARD]


def same_rows(a: Tensor, b: Tensor) -> bool:
    """Whether two sets of vectors are the same, in any order."""
    return sorted(map(tuple, a.tolist())) == sorted(map(tuple, b.tolist()))


def test_targets_are_the_inputs():
    batch = next(activation_source().batches(BATCH))
    assert batch.inputs is batch.targets
    assert batch.inputs.shape == (BATCH, D_IN)


def test_shards_follow_one_another_in_the_text():
    # 40 vectors end within a block of two rows: its rest is left out, and the next shard begins after it.
    everything = torch.cat(take(activation_source(tokens=80), 5))
    assert same_rows(everything[:SHARD], shard_in_text_order(0, tokens=80))
    assert same_rows(everything[SHARD:], shard_in_text_order(1, tokens=80))


def test_an_epoch_has_every_vector_except_those_that_fill_no_batch():
    source = activation_source()
    first = torch.cat(take(source, PER_EPOCH))
    whole = torch.cat([shard_in_text_order(0), shard_in_text_order(1)])
    assert len(whole) == TOKENS
    # The first shard is used up before the second one begins, and no vector comes twice.
    assert same_rows(first[:SHARD], shard_in_text_order(0))
    left = sorted(map(tuple, whole.tolist()))
    for vector in first.tolist():
        left.remove(tuple(vector))
    assert len(left) == TOKENS - PER_EPOCH * BATCH


def test_every_epoch_shard_and_seed_has_an_order_of_its_own():
    # Four shards of 40 are ten batches.
    streams = [take(activation_source(seed=seed, tokens=160), 40) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(streams[0], streams[1], strict=True))
    epochs = [torch.cat(stream[i : i + 10]) for stream in (streams[0], streams[2]) for i in (0, 10, 20, 30)]
    assert all(same_rows(epoch, epochs[0]) for epoch in epochs)
    assert len({tuple(epoch.flatten().tolist()) for epoch in epochs}) == 8
    # Seeds differ in the first epoch too, but not in the order of the shards, which are harvested then.
    assert same_rows(epochs[0][:SHARD], epochs[4][:SHARD])
    begins = [same_rows(epochs[i][:SHARD], epochs[0][:SHARD]) for i in (1, 2, 3, 5, 6, 7)]
    assert not all(begins)


@pytest.mark.parametrize("at", [0, 1, 2, 3, PER_EPOCH, PER_EPOCH + 1, PER_EPOCH + 2, PER_EPOCH + 3, 2 * PER_EPOCH, 19])
def test_a_position_names_the_batch_that_comes_next(at: int):
    wanted = take(activation_source(), at + 3 * PER_EPOCH)[at:]
    before = activation_source()
    take(before, at)
    state = copy.deepcopy(before.state_dict())
    resumed = activation_source()
    resumed.load_state_dict(state)
    for batch, expected in zip(take(resumed, 3 * PER_EPOCH), wanted, strict=True):
        assert torch.equal(batch, expected)


def test_a_position_is_two_counters():
    source = activation_source()
    take(source, PER_EPOCH + 1)
    limit = 10 * source.first_vectors().norm(dim=1).median()
    assert source.state_dict() == {
        "epoch": 1,
        "batch": 1,
        "passes": PASSES.numerics,
        "norm_limit": pytest.approx(float(limit)),
    }


@pytest.mark.parametrize("kept", [True, False])
def test_a_store_does_not_change_the_stream(kept: bool, tmp_path: Path):
    wanted = take(activation_source(), 3 * PER_EPOCH)
    held_out = [batch.inputs for batch in activation_source().held_out(60, 25)]
    # Written, then read; a store that holds more serves as well.
    for tokens in (70, 70, 200, 70):
        source = activation_source(tmp_path if kept else None, tokens=tokens)
        with source:
            if tokens == 70:
                assert all(torch.equal(a, b) for a, b in zip(take(source, 3 * PER_EPOCH), wanted, strict=True))
                assert torch.equal(source.first_vectors(), activation_source().first_vectors())
            else:
                take(source, 12)
            found = [batch.inputs for batch in source.held_out(60, 25)]
            assert all(torch.equal(a, b) for a, b in zip(found, held_out, strict=True))


def test_removing_the_store_does_not_change_a_resumed_stream(tmp_path: Path):
    wanted = take(activation_source(), 3 * PER_EPOCH)
    with activation_source(tmp_path / "before") as before:
        take(before, PER_EPOCH + 2)
        state = before.state_dict()
    with activation_source(tmp_path / "after") as after:
        after.load_state_dict(state)
        found = take(after, PER_EPOCH)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted[PER_EPOCH + 2 :], strict=False))


def test_a_full_store_needs_no_language_model(tmp_path: Path):
    with activation_source(tmp_path) as first:
        take(first, PER_EPOCH)
        list(first.held_out(60, 25))
    model = TableModel()
    with activation_source(tmp_path, model=model) as second:
        take(second, 3 * PER_EPOCH)
        list(second.held_out(60, 25))
        assert second.prepends_bos is False
        assert second.harvester.seconds == 0
    assert model.passes == 0


def test_no_shard_is_fetched_that_training_does_not_reach():
    passes = []
    # 40 vectors are the first shard; 64 need the second one; 200 are several passes over both, which are in memory.
    for training_tokens in (40, 64, 200):
        model = TableModel()
        with activation_source(model=model, training_tokens=training_tokens) as source:
            take(source, training_tokens // BATCH)
            time.sleep(0.05)
            passes.append(model.passes)
    assert passes[0] < passes[1] == passes[2]


def test_vectors_that_fill_no_batch_do_not_begin_another_epoch():
    passes = set()
    for seed in range(6):
        # Three shards, of which memory holds two: some other epoch begins with the one that is not there.
        model = TableModel()
        with activation_source(model=model, tokens=100, training_tokens=100, seed=seed) as source:
            take(source, 100 // BATCH)
            time.sleep(0.05)
            passes.add(model.passes)
    assert len(passes) == 1


def test_the_next_shard_is_harvested_during_training():
    model, second_shard_begun = TableModel(), threading.Event()
    main = threading.current_thread()

    def heartbeat() -> None:
        assert threading.current_thread() is not main
        if model.passes > first:
            second_shard_begun.set()

    first = 10**9
    with activation_source(model=model, heartbeat=heartbeat) as source:
        source.first_vectors()
        first = model.passes
        stream = source.batches(BATCH)
        next(stream)
        # Long before the second shard is asked for.
        assert second_shard_begun.wait(60)


def test_at_most_two_shards_are_in_memory():
    with activation_source(tokens=200) as source:
        take(source, 30)
        assert len(source._fetched) == 2


def test_each_shard_is_harvested_once_if_memory_holds_all():
    model = TableModel()
    with activation_source(model=model) as source:
        take(source, PER_EPOCH)
        passes = model.passes
        take(source, 5 * PER_EPOCH)
    assert model.passes == passes


def test_a_closed_source_stops_harvesting(monkeypatch: pytest.MonkeyPatch):
    model, begun, stopped = TableModel(), threading.Event(), threading.Event()

    def heartbeat() -> None:
        begun.set()
        stopped.wait()

    with activation_source(model=model, heartbeat=heartbeat, tokens=4000, shard_tokens=2000) as source:
        stop = source.harvester.stop
        monkeypatch.setattr(source.harvester, "stop", lambda: (stop(), stopped.set()))
        source._fetch(0, beside=0)
        begun.wait()
    assert model.passes <= 2


def test_training_does_not_change_held_out_vectors():
    source = activation_source()
    first = [batch.inputs for batch in source.held_out(60, 25)]
    assert [len(batch) for batch in first] == [25, 25, 10]
    take(source, 5)
    again = [batch.inputs for batch in source.held_out(60, 25)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    source.held_out_rows(30)
    other_size = torch.cat([batch.inputs for batch in activation_source(seed=9).held_out(60, 7)])
    assert torch.equal(other_size, torch.cat(first))
    # Nor does evaluating disturb the training.
    quiet = activation_source()
    take(quiet, 5)
    assert all(torch.equal(a, b) for a, b in zip(take(source, 5), take(quiet, 5), strict=True))


def test_held_out_vectors_end_with_the_text():
    source = activation_source(held_out_tokens=10_000)
    everything = torch.cat([batch.inputs for batch in source.held_out(10_000, 25)])
    _, keep = source.held_out_rows(10_000)
    # Each shard of 40 ends within a forward pass of at most 16 positions, whose rest is left out.
    shards = len(everything) // SHARD
    assert int(keep.sum()) - 16 * shards < len(everything) <= int(keep.sum())


def test_held_out_rows_are_the_fewest_first_rows():
    source = activation_source()
    tokens, keep = source.held_out_rows(30)
    assert tokens.shape == keep.shape == (4, 8)
    longer, _ = source.held_out_rows(41)
    assert longer.shape == (6, 8)
    assert torch.equal(longer[:4], tokens)


def test_a_batch_larger_than_the_training_part_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.batch_size is 71, more than the 70 training vectors; raise"):
        next(activation_source().batches(71))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, r"source\.tokens is 0"),
        ({"shard_tokens": 0}, r"source\.shard_tokens is 0"),
        ({"seed": -1}, r"source\.seed is -1"),
        ({"cache_gb": 0.0}, r"source\.cache_gb is 0"),
        ({"also": ["mlp_out"]}, r"source\.also: 'mlp_out' is no site"),
        ({"also": ["nowhere.3"]}, r"source\.also: 'nowhere\.3' is no site"),
        ({"also": ["mlp_out.3"], "cache": Cache.none}, r"source\.also names sites to keep, and source\.cache is none"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ActivationSourceSettings(**changes)


MODEL = ModelSettings(package=Package.tiny)
WHERE = Site(name=SiteName.resid_mid, layer=1)
DATASET = DatasetSettings(format=DatasetFormat.python_source, context=32)


def opened(
    folder: Path,
    training_tokens: int = 600,
    dataset: DatasetSettings = DATASET,
    held_out_tokens: int = 100,
    **changes,
) -> ActivationSource:
    given: dict[str, Any] = {"tokens": 600, "shard_tokens": 256}
    settings = ActivationSourceSettings(**(given | changes))
    request = Request(
        model=MODEL,
        site=WHERE,
        dataset=dataset,
        training_samples=training_tokens,
        held_out_samples=held_out_tokens,
        stores=folder,
    )
    (source,) = open_activations(settings, [request], lambda: None)
    return source


def test_a_real_model_is_harvested_once_and_the_log_reports_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    with opened(tmp_path, cache=Cache.none) as source:
        wanted = take(source, 30)
    assert "activations are harvested into memory" in caplog.text
    assert not list(tmp_path.iterdir())
    with opened(tmp_path, cache=Cache.disk) as source:
        assert source.d_in == 32
        take(source, 30)
        list(source.held_out(100, 50))
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("tiny-resid_mid.1-python_source-")
    # 856 vectors of 32 floats and 16 bytes of facts: 96 kB and the text between shards.
    assert "of activations will be written to" in caplog.text
    caplog.clear()
    with opened(tmp_path) as source:
        found = take(source, 30)
        assert source.harvester.seconds == 0
    assert "activations from the store, nothing harvested: 600 to train on and 100 held out" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_an_evaluation_harvests_held_out_vectors_only(tmp_path: Path):
    with opened(tmp_path, training_tokens=0) as source:
        list(source.held_out(100, 50))
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in folder.glob("*.safetensors")] == ["held_out-00000.safetensors"]


def test_an_evaluation_of_text_alone_harvests_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    with opened(tmp_path, training_tokens=0, held_out_tokens=0, cache=Cache.none) as source:
        assert source.text is not None
        assert source.text.rows(Part.held_out, 64).tokens.shape == (2, 32)
    assert "harvested" not in caplog.text


def test_a_run_without_room_for_its_store_is_refused_or_keeps_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    # 700 vectors of 32 floats and 16 bytes: 0.0001 GB.
    with pytest.raises(
        OSError, match=r"source\.cache_gb is 1e-05, the stores in .* take 0 GB and .* source\.cache=none"
    ):
        opened(tmp_path, cache=Cache.disk, cache_gb=1e-5)
    with opened(tmp_path, cache=Cache.auto, cache_gb=1e-5) as source:
        take(source, 30)
    assert "of activations are not kept: source.cache_gb is 1e-05" in caplog.text
    assert not list(tmp_path.iterdir())


def test_repeated_harvests_cause_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with opened(tmp_path, cache=Cache.none, training_tokens=1500):
        pass
    assert "training goes 2.5 times round 3 shards, of which memory holds 2" in caplog.text


def test_a_site_the_model_does_not_have_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(ValueError, match="layer 9 is named, but model tiny has 4 layers"):
        opened(tmp_path, also=["mlp_out.9"])
    assert not list(tmp_path.glob("*/*.safetensors"))


def key(**changes):
    source = changes.pop("source", ActivationSourceSettings(tokens=600))
    request = {"model": MODEL, "site": WHERE, "dataset": DATASET, "training_samples": 600}
    return source.stream_key(Request(**(request | changes), held_out_samples=100, stores=Path("stores")))


def test_runs_share_a_stream_if_the_same_settings_make_it():
    same = [
        ActivationSourceSettings(tokens=600, cache=Cache.none),
        ActivationSourceSettings(tokens=600, cache_gb=3.0),
        ActivationSourceSettings(),
    ]
    assert {key(source=source) for source in same} == {key()}
    assert key(training_samples=700) == key()
    different = [
        # Settings that are lists count as well.
        key(dataset=replace(DATASET, exclude_tokens=[3])),
        key(dataset=replace(DATASET, prefix="x")),
        key(source=ActivationSourceSettings(tokens=601)),
        key(source=ActivationSourceSettings(tokens=600, shard_tokens=5)),
        key(source=ActivationSourceSettings(tokens=600, seed=1)),
        key(source=ActivationSourceSettings(), training_samples=700),
        key(source=ActivationSourceSettings(tokens=600, also=["mlp_out.1"])),
        key(site=Site(name=SiteName.mlp_out, layer=1)),
        key(model=ModelSettings(package=Package.tiny, batch_size=4)),
    ]
    assert len({key(), *different}) == 1 + len(different)


def test_settings_that_determine_the_content_have_a_store_of_their_own(tmp_path: Path):
    found = []
    for changes in ({}, {"tokens": 300, "seed": 3}, {"shard_tokens": 128}):
        with opened(tmp_path, BATCH, **cast(dict[str, Any], changes)) as source:
            take(source, 1)
            found.append(len(list(tmp_path.iterdir())))
    assert found == [1, 1, 2]


def test_a_position_with_other_forward_passes_is_refused():
    source = activation_source()
    state = source.state_dict() | {"passes": PASSES.numerics | {"dtype": "bfloat16"}}
    with pytest.raises(
        ValueError, match=r"in bfloat16, 4 rows per pass; here they would be harvested in float32.*model\.batch_size=4"
    ):
        source.load_state_dict(state)


def written_text(folder: Path, characters: int) -> DatasetSettings:
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"{number:02} words " * (characters // 40 // 9))
    return DatasetSettings(format=DatasetFormat.text, path=str(folder), context=32, skip_positions=0, held_out=0.3)


@pytest.mark.parametrize("cache", [Cache.disk, Cache.none])
def test_too_little_text_is_reported_and_counted(cache: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    dataset = written_text(tmp_path / "text", 4800)
    opening = partial(opened, tmp_path / "out", 8192, dataset=dataset, tokens=8192, shard_tokens=4096, cache=cache)
    with opening() as source:
        assert "too little held-out text: 100 samples" not in caplog.text
        take(source, 8192 // BATCH)
        distinct = source.distinct(8192)
    # One letter is one token, and the rest of a row and separators are no positions that count.
    letters = [len(path.read_text()) for path in (tmp_path / "text").iterdir()]
    assert 0.5 * sum(letters) < distinct < sum(letters)
    assert "the training text has ended; shard 0 reads it again" in caplog.text
    caplog.clear()
    with opening(held_out_tokens=5000) as source:
        # It is known at the beginning.
        assert (
            "too little held-out text: 5,000 samples are asked for (eval.vectors.samples) and there are" in caplog.text
        )
        if cache is Cache.disk:
            take(source, 1)
            list(source.held_out(5000, 100))
            assert source.distinct(8192) == distinct
    caplog.clear()
    if cache is Cache.disk:
        with opening(held_out_tokens=5000) as source:
            assert (
                f"8,192 distinct activations are asked for (source.tokens) and the training text has {distinct:,}"
                in (caplog.text)
            )
            assert "too little held-out text" in caplog.text


@pytest.mark.parametrize("also", [[], ["mlp_out.2", "attn_z.3"]])
def test_the_logged_size_matches_the_files(also: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Also where text waits between shards: one document is longer than everything that is harvested of it."""
    caplog.set_level("INFO")
    (tmp_path / "text").mkdir()
    for number in range(30):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} words " * 20_000)
    dataset = DatasetSettings(format=DatasetFormat.text, path=str(tmp_path / "text"), context=64)
    sizes: dict[str, Any] = {"tokens": 24_000, "shard_tokens": 8000, "also": also}
    with opened(tmp_path / "out", 24_000, dataset=dataset, **sizes) as source:
        source.fill_store()
    said = re.search(r"([\d.e-]+) GB of activations will be written", caplog.text)
    assert said is not None
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert written == pytest.approx(float(said[1]) * 1e9, rel=0.03)


def test_text_that_cannot_be_read_is_refused_before_the_model_is_opened(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("fsae.sources.corpus.open_language_model", lambda settings: pytest.fail("it was opened"))
    (tmp_path / "a.txt").write_text("alone")
    wrong = DatasetSettings(format=DatasetFormat.json, path=str(tmp_path / "a.txt"), context=32)
    with pytest.raises(ValueError, match=r"a\.txt cannot be read as json: line 1 is no JSON"):
        opened(tmp_path / "out", dataset=wrong)
    alone = DatasetSettings(format=DatasetFormat.text, path=str(tmp_path), context=32, held_out=1e-9)
    with pytest.raises(ValueError, match="none of its 1 documents is in the part held_out"):
        opened(tmp_path / "out", dataset=alone)


def test_a_shard_larger_than_memory_is_refused_before_the_model_is_opened(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("fsae.sources.corpus.open_language_model", lambda settings: pytest.fail("it was opened"))
    with pytest.raises(ValueError, match=r"at 1 site take .* GB, and .* lower source\.shard_tokens"):
        opened(tmp_path, 10**13, tokens=10**13, shard_tokens=10**13, cache=Cache.none)
    with pytest.raises(OSError, match=r"GB of activations are to be written to .* are free there: free space"):
        opened(tmp_path, 10**13, tokens=10**13, shard_tokens=10**5, cache=Cache.disk)

"""Shards between the store and the language model: who harvests, who waits, and what is done about damage."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from fsae.sources.activation_store import ActivationStore, folder_bytes, in_use
from fsae.sources.room import Room
from fsae.sources.shard import Extent, Part
from fsae.sources.shard_reader import ShardReader
from tests.sources.test_activation_store import swap
from tests.streams import OTHER_SITE, SITE, TEXTS, TableModel, activation_source, listed_shards, packed

TRAIN, HELD_OUT = Part.train, Part.held_out
# Four of training, two held out.
SIZES: dict[str, Any] = {"tokens": 150, "shard_tokens": 40, "held_out_tokens": 60}

# A process that fills the store of `folder`, sleeping so long in each forward pass, and counts its passes.
FILL = """
import sys, time
from pathlib import Path
from tests.streams import SITE, TableModel, listed_shards
model = TableModel()
shards = listed_shards(
    Path(sys.argv[1]), model=model, heartbeat=lambda: time.sleep(float(sys.argv[2])),
    tokens=150, shard_tokens=40, held_out_tokens=60,
)
shards.fill()
print(shards.made, model.passes)
"""


def filling(folder: Path, seconds_a_pass: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FILL, str(folder), str(seconds_a_pass)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def places_of(shards: ShardReader) -> list[tuple[Part, int]]:
    return [(part, number) for part in Part for number in range(shards.extent.shards(part))]


def every(shards: ShardReader) -> list[torch.Tensor]:
    return [shards.shard(part, number).activations for part, number in places_of(shards)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def wanted() -> list[torch.Tensor]:
    """Every shard as it is without a store."""
    return every(listed_shards(**SIZES))


def test_stored_shards_equal_harvested_shards(tmp_path: Path, wanted):
    assert same(every(listed_shards(tmp_path, **SIZES)), wanted)
    model = TableModel()
    assert same(every(listed_shards(tmp_path, model=model, **SIZES)), wanted)
    assert model.passes == 0


def test_the_order_of_requests_does_not_change_shards(wanted):
    places = places_of(listed_shards(**SIZES))
    for order in ([3, 0, 2, 1, 5, 4], [5, 4, 3, 2, 1, 0]):
        shards = listed_shards(**SIZES)
        found = {i: shards.shard(*places[i]).activations for i in order}
        assert same([found[i] for i in range(6)], wanted)


def test_columns_state_where_each_vector_is_from(tmp_path: Path):
    model = TableModel()
    labels = [f"kind {i % 3}" for i in range(len(TEXTS))]
    for folder in (None, tmp_path, tmp_path):
        shards = listed_shards(
            folder,
            model=model,
            held_out=TEXTS,
            labels=labels,
            **SIZES,
        )
        for part, number in places_of(shards):
            shard = shards.shard(part, number)
            assert len(shard.tokens) == len(shard.documents) == len(shard)
            # The vector less its token's row is one of the positions'.
            rests = shard.activations - model.table[shard.tokens.long()]
            assert all(torch.isclose(model.positions, rest, atol=1e-5).all(1).any() for rest in rests)
            for token, document in zip(shard.tokens.tolist(), shard.documents.tolist(), strict=True):
                assert chr(token - 1) in TEXTS[document]
            assert shard.labels is not None
            # Kinds are numbered as the documents bring them.
            assert torch.equal(shard.labels, shard.documents.long() % 3)
    record = ActivationStore(tmp_path / str(SITE)).record(TRAIN, 3)
    assert record is not None
    assert record.label_names == ["kind 0", "kind 1", "kind 2"]


def test_training_shards_are_shuffled_across_documents_and_held_out_ones_are_not():
    shards = listed_shards(**SIZES)
    train, held_out = shards.shard(TRAIN, 0).documents, shards.shard(HELD_OUT, 0).documents
    assert (train.diff() < 0).any()
    assert (held_out.diff() >= 0).all()


@pytest.mark.parametrize("tokens", [30, 70, 100, 150])
def test_a_store_serves_runs_of_any_size(tokens: int, tmp_path: Path):
    wanted = every(listed_shards(tokens=tokens, shard_tokens=40))
    every(listed_shards(tmp_path, tokens=110, shard_tokens=40))
    assert same(every(listed_shards(tmp_path, tokens=tokens, shard_tokens=40)), wanted)
    # And what was there before is unharmed.
    model = TableModel()
    assert same(
        every(listed_shards(tmp_path, model=model, tokens=110, shard_tokens=40)),
        every(listed_shards(tokens=110, shard_tokens=40)),
    )
    assert model.passes == 0


def test_extending_a_store_harvests_new_shards_only(tmp_path: Path):
    counts = []
    for tokens in (80, 160):
        model = TableModel()
        every(listed_shards(tmp_path, model=model, tokens=tokens, shard_tokens=40, held_out_tokens=40))
        counts.append(model.passes)
    model = TableModel()
    every(listed_shards(model=model, tokens=160, shard_tokens=40, held_out_tokens=40))
    # The held-out shard is harvested with the first two, and only then.
    assert sum(counts) == model.passes


def test_the_end_of_held_out_text_is_found_once(tmp_path: Path):
    passes = []
    for _ in range(2):
        model = TableModel()
        shards = listed_shards(tmp_path, model=model, tokens=40, shard_tokens=4000, held_out_tokens=4000)
        assert 100 < len(shards.shard(HELD_OUT, 0)) < 4000
        passes.append(model.passes)
    assert passes[0] > passes[1] == 0


def test_shards_after_the_held_out_text_are_not_missing(tmp_path: Path):
    """Its 158 positions or so end in the fourth of a hundred shards."""
    sizes: dict[str, Any] = {"tokens": 40, "shard_tokens": 40, "held_out_tokens": 4000}
    source = activation_source(tmp_path, **sizes)
    source.first_vectors()
    list(source.held_out(4000, 25))
    store = ActivationStore(tmp_path / str(SITE))
    assert len(store.shards()) < 10
    shards = listed_shards(tmp_path, **sizes)
    assert list(store.missing(shards.extent)) == []
    shards.fill()
    assert shards.made == 0
    # But one before the end is.
    store.discard(HELD_OUT, 1)
    assert list(store.missing(shards.extent)) == [(HELD_OUT, 1)]


def test_filling_a_store_looks_up_no_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The text is already at the next shard's beginning, so that its position is not looked up."""
    read: list[int] = []
    text_after = ActivationStore.text_after
    monkeypatch.setattr(
        ActivationStore,
        "text_after",
        lambda store, part, number: read.append(number) or text_after(store, part, number),
    )
    shards = listed_shards(tmp_path, **SIZES)
    shards.fill()
    assert shards.made == 6
    assert read == []


def test_another_site_is_filled_if_this_site_is_stored_already(tmp_path: Path, wanted):
    listed_shards(tmp_path, **SIZES).fill()
    assert same(every(listed_shards(tmp_path, sites=[SITE, OTHER_SITE], **SIZES)), wanted)
    assert len(ActivationStore(tmp_path / str(OTHER_SITE)).shards()) == 6


def test_sites_of_the_same_passes_equal_sites_harvested_alone(tmp_path: Path):
    alone = TableModel()
    listed_shards(tmp_path / "alone", model=alone, sites=[SITE], **SIZES).fill()
    listed_shards(tmp_path / "alone", sites=[OTHER_SITE], **SIZES).fill()
    both = TableModel()
    listed_shards(tmp_path / "both", model=both, sites=[SITE, OTHER_SITE], **SIZES).fill()
    assert both.passes == alone.passes
    for site in (SITE, OTHER_SITE):
        stores = [ActivationStore(tmp_path / name / str(site)) for name in ("alone", "both")]
        assert stores[0].shards() == stores[1].shards()
        for part, number in stores[0].shards():
            assert stores[0].path(part, number).read_bytes() == stores[1].path(part, number).read_bytes()
    # A site that joins later is filled in without touching the others.
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "alone" / str(SITE)).glob("*.safetensors"))]
    third = Path("mlp_out.3")
    listed_shards(tmp_path / "alone", sites=[SITE, type(SITE).parse(str(third))], **SIZES).fill()
    assert len(list((tmp_path / "alone" / third).glob("*.safetensors"))) == 6
    after = [path.stat().st_mtime_ns for path in sorted((tmp_path / "alone" / str(SITE)).glob("*.safetensors"))]
    assert before == after


def test_processes_share_the_work_and_harvest_no_shard_twice(tmp_path: Path, wanted):
    together = [filling(tmp_path, 0.05) for _ in range(3)]
    counts = [tuple(map(int, process.communicate(timeout=60)[0].split())) for process in together]
    assert [process.returncode for process in together] == [0, 0, 0]
    model = TableModel()
    listed_shards(tmp_path / "alone", model=model, **SIZES).fill()
    assert sum(made for made, _ in counts) == 6
    assert sum(passes for _, passes in counts) == model.passes
    assert same(every(listed_shards(tmp_path, **SIZES)), wanted)


def test_a_reader_that_waits_for_a_shard_harvests_a_later_one(tmp_path: Path, wanted, caplog):
    caplog.set_level("INFO")
    shards = listed_shards(tmp_path, **SIZES)
    other = ActivationStore(tmp_path / str(SITE))
    beats = []

    def looks() -> None:
        beats.append(shards.made)
        if shards.made == 3:
            raise InterruptedError

    shards.harvester._heartbeat = looks
    with other.lock(TRAIN, 0), pytest.raises(InterruptedError):
        shards.shard(TRAIN, 0)
    # The three later ones of training; then there is nothing to do but wait, which a signal ends.
    assert ActivationStore(tmp_path / str(SITE)).shards() == [(TRAIN, 1), (TRAIN, 2), (TRAIN, 3)]
    assert "waiting for the process that harvests resid_post.0: train shard 1 of 4" in caplog.text
    shards.harvester._heartbeat = lambda: None
    assert same(every(shards), wanted)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_kill_leaves_whole_shards_and_the_next_run_adds_the_rest(after: int, tmp_path: Path, wanted):
    folder = tmp_path / str(SITE)
    process = filling(tmp_path, 0.03)
    began = time.monotonic()
    while len(list(folder.glob("*.json"))) - 1 < after or not folder.exists():
        assert process.poll() is None
        assert time.monotonic() - began < 60
        time.sleep(0.005)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = ActivationStore(folder).shards() if (folder / "store.json").exists() else []
    assert len(there) >= after
    model = TableModel()
    shards = listed_shards(tmp_path, model=model, **SIZES)
    assert same(every(shards), wanted)
    assert shards.made == 6 - len(there)
    assert not list(folder.glob("*.partial"))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


def swap_with_the_next(path: Path) -> None:
    swap(path, path.with_name("train-00002.safetensors"))


def spoil_the_record(path: Path) -> None:
    path.with_suffix(".json").write_text('{"count": 40')


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut_short, r"train-00001.safetensors has \d+ bytes instead of \d+; it is harvested again"),
        (flip_a_byte, "train-00001.safetensors does not have the checksum it was written with; it is harvested again"),
        (remove, ""),
        (spoil_the_record, "train-00001.safetensors: its record cannot be read .*; it is harvested again"),
        (swap_with_the_next, "train-00001.safetensors was written as shard 2 of the part train; it is harvested again"),
    ],
)
def test_a_damaged_shard_is_reported_and_harvested_again(damage, told: str, tmp_path: Path, wanted, caplog):
    every(listed_shards(tmp_path, **SIZES))
    damage(tmp_path / str(SITE) / "train-00001.safetensors")
    shards = listed_shards(tmp_path, **SIZES)
    assert same(every(shards), wanted)
    assert shards.made == (2 if damage is swap_with_the_next else 1)
    assert re.search(told, caplog.text)
    model = TableModel()
    assert same(every(listed_shards(tmp_path, model=model, **SIZES)), wanted)
    assert model.passes == 0


def test_text_continues_after_a_damaged_shard(tmp_path: Path, wanted):
    """The position after the shard is in its record, which has its own checksum."""
    listed_shards(tmp_path, tokens=40, shard_tokens=40, held_out_tokens=60).fill()
    flip_a_byte(tmp_path / str(SITE) / "train-00000.safetensors")
    listed_shards(tmp_path, **SIZES).fill()
    later = listed_shards(tmp_path, **SIZES)
    assert same([later.shard(TRAIN, number).activations for number in (1, 2, 3)], wanted[1:4])
    assert later.made == 0


def test_damage_is_reported_once_while_another_process_harvests_again(tmp_path: Path, caplog):
    listed_shards(tmp_path, **SIZES).fill()
    cut_short(tmp_path / str(SITE) / "train-00000.safetensors")
    shards, beats = listed_shards(tmp_path, **SIZES), []

    def looks() -> None:
        beats.append(None)
        if len(beats) == 3:
            raise InterruptedError

    shards.harvester._heartbeat = looks
    with ActivationStore(tmp_path / str(SITE)).lock(TRAIN, 0), pytest.raises(InterruptedError):
        shards.shard(TRAIN, 0)
    assert caplog.text.count("it is harvested again") == 1


def test_a_reader_that_waits_keeps_the_store_in_use(tmp_path: Path):
    """They opened it before there was anything in it."""
    shards, beats = listed_shards(tmp_path, **SIZES), []
    other = ActivationStore(tmp_path / str(SITE))

    def looks() -> None:
        beats.append(in_use(other.folder))
        raise InterruptedError

    shards.harvester._heartbeat = looks
    with other.lock(TRAIN, 0):
        other.close()
        with pytest.raises(InterruptedError):
            shards.shard(TRAIN, 0)
    assert beats == [True]


def one_shard_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes one shard and is full then."""
    write = ActivationStore.write

    def limited(self: ActivationStore, part: Part, number: int, shard, **facts) -> None:
        if number > 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, part, number, shard, **facts)

    monkeypatch.setattr(ActivationStore, "write", limited)


def test_a_disk_that_fills_up_keeps_whole_shards(tmp_path: Path, wanted, monkeypatch: pytest.MonkeyPatch):
    one_shard_of_room(monkeypatch)
    shards = listed_shards(tmp_path, **SIZES)
    shards.shard(TRAIN, 0)
    with pytest.raises(OSError, match="No space left on device; what was harvested so far is kept"):
        shards.shard(TRAIN, 1)
    monkeypatch.undo()
    again = listed_shards(tmp_path, **SIZES)
    assert same(every(again), wanted)
    assert again.made == 5


def test_a_run_that_needs_no_store_continues_in_memory(tmp_path: Path, wanted, monkeypatch, caplog):
    one_shard_of_room(monkeypatch)
    shards = listed_shards(tmp_path, required=False, **SIZES)
    assert same(every(shards), wanted)
    assert "No space left on device; activations are harvested into memory from here on" in caplog.text
    assert ActivationStore(tmp_path / str(SITE)).shards() == [(TRAIN, 0)]


def test_a_quota_ends_a_harvest_midway(tmp_path: Path):
    # A shard of 40 vectors of 6 floats and 8 bytes is 1,280 bytes, and at most 2,000 bytes come with it.
    shards = listed_shards(tmp_path, limit_gb=8e-6, **SIZES)
    with pytest.raises(OSError, match=r"source\.cache_gb is 8e-06, the stores in .* what was harvested so far is kept"):
        every(shards)
    assert shards.made > 0
    assert folder_bytes(tmp_path) <= 8000


def test_several_processes_keep_one_quota(tmp_path: Path):
    """Both find room for a shard of two sites while the other harvests; only one of them may write it."""
    most: list[int] = []
    # A shard of one site takes about 1,950 bytes.
    limit = 7000
    both = threading.Barrier(2)

    def harvest(order: list[int]) -> None:
        def meet() -> None:
            most.append(folder_bytes(tmp_path))
            # Each has looked for room and harvests now.
            with suppress(threading.BrokenBarrierError):
                both.wait(0.1)

        shards = listed_shards(
            tmp_path, limit_gb=limit / 1e9, sites=[SITE, OTHER_SITE], required=False, heartbeat=meet, **SIZES
        )
        for number in order:
            shards.shard(TRAIN, number)
        shards.close()

    together = [threading.Thread(target=harvest, args=(order,)) for order in ([0, 1, 2, 3], [3, 2, 1, 0])]
    for each in together:
        each.start()
    for each in together:
        each.join()
    assert max([*most, folder_bytes(tmp_path)]) <= limit
    assert list(tmp_path.rglob("train-*.safetensors"))


def test_pending_text_is_not_stored(tmp_path: Path):
    """One document of 300,000 tokens, of which a shard uses 40."""
    sizes: dict[str, Any] = {"tokens": 80, "shard_tokens": 40, "held_out_tokens": 40}

    def opened() -> ShardReader:
        long = ["stream of words " * 20_000]
        return listed_shards(tmp_path, train=long, held_out=long, **sizes)

    shards = opened()
    shards.fill()
    assert folder_bytes(tmp_path) < 3 * 5000
    # The rest of the document is read again for a shard that continues it.
    wanted = shards.shard(TRAIN, 1).activations
    ActivationStore(tmp_path / str(SITE)).discard(TRAIN, 1)
    again = opened()
    assert torch.equal(again.shard(TRAIN, 1).activations, wanted)
    assert again.made == 1


@pytest.mark.parametrize("tokens", [30, 110, 150, 10**13])
def test_missing_bytes_are_those_of_the_missing_shards(tokens: int, tmp_path: Path):
    """Also for so many shards that counting them one by one would not end."""
    listed_shards(tmp_path, tokens=110, shard_tokens=40, held_out_tokens=4000).fill()
    store = ActivationStore(tmp_path / str(SITE))
    extent = Extent(tokens={TRAIN: tokens, HELD_OUT: 4000}, shard_tokens=40)
    found = store.missing_bytes(extent, lambda count: 10 * count + 7)
    if tokens > 1000:
        # Two of the shards that are wanted are there, and the text of the held-out part has ended.
        assert found == 10 * (tokens - 80) + 7 * (tokens // 40 - 2)
    else:
        assert found == sum(10 * extent.count(*place) + 7 for place in store.missing(extent))


def test_text_that_is_read_again_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    letters = sum(len(text) for text in TEXTS)
    tokens = 3 * letters // 40 * 40
    sizes: dict[str, Any] = {"tokens": tokens, "shard_tokens": 40}
    found = set()
    for folder in (None, tmp_path):
        shards = listed_shards(folder, **sizes)
        for number in range(shards.extent.shards(TRAIN)):
            shards.shard(TRAIN, number)
        found.add(shards.distinct(TRAIN, tokens))
        assert shards.distinct(TRAIN, 50) == 50
        assert "the training text has ended" in caplog.text
        caplog.clear()
    # A full store has the number. A run that resumes in the middle without a store reads over the text before.
    found.add(listed_shards(tmp_path, **sizes).distinct(TRAIN, tokens))
    later = listed_shards(**sizes)
    later.shard(TRAIN, shards.extent.shards(TRAIN) - 1)
    found.add(later.distinct(TRAIN, tokens))
    # What is left over of a forward pass of at most 16 positions at each shard's end is in no shard.
    (distinct,) = found
    assert letters - 16 * (letters // 40 + 1) <= distinct <= letters


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own takes root")
def test_a_real_full_disk_keeps_whole_shards(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    shards = listed_shards(disk, tokens=4000, shard_tokens=800)
    try:
        # Its own estimate would stop it in time.
        shards._room = Room(folder=tmp_path, limit_gb=None, required=True)
        full = "No space left on device; what was harvested so far is kept"
        for harvest in (lambda: every(shards), shards.fill):
            with pytest.raises(OSError, match=full) as raised:
                harvest()
            # Otherwise the run would say that its own folder's disk is full.
            assert raised.value.errno is None
        assert shards.made > 0
        assert not list(disk.glob("*/*.partial"))
        assert len(ActivationStore(disk / str(SITE), marked=False).shards()) == shards.made
    finally:
        shards.close()
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused_by_place(value: float):
    model = TableModel()
    tokens, keep, *_ = next(packed(TEXTS, repeat=True))
    row, position = keep.nonzero()[-1].tolist()
    model.table[tokens[row, position], 3] = value
    bad = (tokens == tokens[row, position]).nonzero()
    first_row, first_position = bad[0].tolist()
    message = (
        rf"activations at resid_post\.0 are not finite: {len(bad)} of 16 positions .* the first in its row {first_row} "
        rf"at position {first_position}; .*model\.dtype=bfloat16 or float32"
    )
    with pytest.raises(ValueError, match=message):
        listed_shards(model=model).shard(TRAIN, 0)


def test_positions_that_are_left_out_need_not_be_finite():
    model = TableModel()
    model.table[0] = float("nan")
    assert listed_shards(model=model).shard(TRAIN, 0).activations.isfinite().all()


def test_a_shard_that_cannot_fit_into_memory_is_refused_before_it_is_allocated():
    model = TableModel()
    # 10^14 vectors of 6 floats.
    shards = listed_shards(model=model, tokens=10**14, shard_tokens=10**14)
    with pytest.raises(ValueError, match=r"take 2400000\.0 GB, and .* lower source\.shard_tokens to at most \d+"):
        shards.shard(TRAIN, 0)
    assert model.passes == 0


def test_a_harvest_can_be_stopped_between_forward_passes():
    model = TableModel()

    def heartbeat() -> None:
        if model.passes == 3:
            raise InterruptedError

    shards = listed_shards(model=model, heartbeat=heartbeat)
    with pytest.raises(InterruptedError):
        shards.shard(TRAIN, 0)
    assert model.passes == 3
    # And taken up again from the shard's beginning.
    shards.harvester._heartbeat = lambda: None
    assert torch.equal(shards.shard(TRAIN, 0).activations, listed_shards().shard(TRAIN, 0).activations)


def test_text_with_no_position_to_train_on_is_refused():
    shards = listed_shards(train=[""] * 40)
    with pytest.raises(ValueError, match="a whole pass over the text has no position to train on"):
        shards.shard(TRAIN, 0)

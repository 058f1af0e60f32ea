import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch
import xxhash
from safetensors.torch import save_file

from fsae.sources import activation_store as module
from fsae.sources.activation_store import (
    ActivationStore,
    DamagedShard,
    in_use,
    last_used,
    remove,
    shard_bytes,
)
from fsae.sources.shard import Part, Shard

CONTENT = {"model": {"package": "tiny", "version": "1"}, "site": "resid_mid.1"}


def made(folder: Path) -> ActivationStore:
    store = ActivationStore(folder, CONTENT)
    store.create(d_in=4, prepends_bos=False)
    return store


def shard(count: int, labels: bool = True) -> Shard:
    numbers = torch.arange(count)
    return Shard(
        activations=torch.randn(count, 4, generator=torch.Generator().manual_seed(count)),
        tokens=numbers.int(),
        documents=(numbers // 3).int(),
        labels=numbers % 2 if labels else None,
    )


def write(store: ActivationStore, number: int, count: int, labels: bool = True, text: dict | None = None) -> Shard:
    given = shard(count, labels)
    write_shard(store, Part.train, number, given, text=text, label_names=["no", "yes"])
    return given


def write_shard(store: ActivationStore, part: Part, number: int, given: Shard, **facts) -> None:
    others = {"text": None, "text_ended": False, "distinct": len(given), "skipped_rows": 0, "label_names": []}
    store.write(part, number, given, **(others | facts))


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("count", [5, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shard_reads_back_as_it_was_written(labels: bool, count: int, dtype: torch.dtype, tmp_path: Path):
    store, given = made(tmp_path / "a"), shard(count, labels)
    given = Shard(
        activations=given.activations.to(dtype), tokens=given.tokens, documents=given.documents, labels=given.labels
    )
    write_shard(store, Part.held_out, 3, given, text_ended=True)
    found = ActivationStore(tmp_path / "a").read(Part.held_out, 3)
    for name in ("activations", "tokens", "documents", "labels"):
        wanted = getattr(given, name)
        assert getattr(found, name) is None if wanted is None else torch.equal(getattr(found, name), wanted)
    assert found.activations.dtype is dtype
    assert store.shards() == [(Part.held_out, 3)]


def test_a_record_keeps_the_position_of_the_text(tmp_path: Path):
    store = made(tmp_path / "a")
    text = {"documents": {"rows": {"shard": 3}, "seen": 2}, "used": 6, "epoch": 1}
    write(store, 0, 5, text=text)
    write(store, 1, 5)
    assert store.text_after(Part.train, 0) == text
    assert store.text_after(Part.train, 1) is None
    assert store.text_after(Part.train, 2) is None


def test_a_store_holds_a_shard_once_it_has_a_record(tmp_path: Path):
    store = made(tmp_path / "a")
    write(store, 0, 5)
    assert store.holds(Part.train, 0, 5)
    assert not store.holds(Part.train, 0, 6)
    assert not store.holds(Part.train, 1, 1)
    store.path(Part.train, 0).with_suffix(".json").unlink()
    assert not store.holds(Part.train, 0, 1)
    with pytest.raises(DamagedShard):
        store.read(Part.train, 0)


def test_every_read_compares_the_checksum(tmp_path: Path):
    """Also of what this process has read or written before."""
    store = made(tmp_path / "a")
    write(store, 0, 5)
    store.read(Part.train, 0)
    path = store.path(Part.train, 0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedShard, match="does not have the checksum"):
        store.read(Part.train, 0)


def test_a_shard_stays_readable_while_another_replaces_it(tmp_path: Path):
    store = made(tmp_path / "a")
    short = write(store, 0, 5)
    found = store.read(Part.train, 0)
    write(store, 0, 50)
    assert torch.equal(found.activations, short.activations)
    assert len(store.read(Part.train, 0)) == 50


def test_files_have_the_permissions_of_their_folder(tmp_path: Path):
    store = made(tmp_path / "a")
    write(store, 0, 5)
    modes = {path.stat().st_mode & 0o777 for path in store.folder.glob("train-*.*")}
    assert modes == {(tmp_path / "a").stat().st_mode & 0o666}


def test_a_full_disk_raises_the_system_s_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from safetensors import SafetensorError

    def full(tensors, path) -> None:
        save_file(tensors, path)
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", full)
    store = made(tmp_path / "a")
    with pytest.raises(OSError, match="No space left on device") as raised:
        write(store, 0, 5)
    assert module.is_full(raised.value)
    assert {path.name for path in store.folder.iterdir()} == {"store.json", "in_use.lock"}


def test_a_record_without_space_keeps_the_shorter_shard(tmp_path: Path):
    store = made(tmp_path / "a")
    short = write(store, 0, 5)
    # A real full disk: nothing fits on this device.
    (store.folder / "train-00000.json.partial.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        write(store, 0, 50)
    assert torch.equal(ActivationStore(store.folder).read(Part.train, 0).activations, short.activations)
    assert not list(store.folder.glob("*.partial"))


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path):
    """Records had a mean norm, which their seal covers."""
    store = made(tmp_path / "a")
    given = write(store, 0, 5)
    path = store.path(Part.train, 0).with_suffix(".json")
    values = json.loads(path.read_text()) | {"mean_norm": 7.233281487345695, "seal": ""}
    seal = xxhash.xxh3_128(json.dumps(values, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(values | {"seal": seal}))
    assert torch.equal(ActivationStore(store.folder).read(Part.train, 0).activations, given.activations)
    path.write_text(json.dumps(values | {"seal": seal, "mean_norm": 7.0}))
    with pytest.raises(DamagedShard, match="its record was changed"):
        store.read(Part.train, 0)


def test_only_one_holder_has_a_lock(tmp_path: Path):
    store = made(tmp_path / "a")
    with store.lock(Part.train, 0) as first, store.lock(Part.train, 0) as second, store.lock(Part.train, 1) as third:
        assert (first, second, third) == (True, False, True)
    with store.lock(Part.train, 0) as free:
        assert free


def test_refusing_another_format_names_the_program_that_wrote_it(tmp_path: Path):
    folder = made(tmp_path / "a").folder
    manifest = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(manifest | {"format": 7, "written_by": "fsae 9.0", "new": 1}))
    message = (
        r"the activation store .*a was written by fsae 9\.0 in format 7, and this version reads format 2; remove it "
        r"with `python -m fsae\.store --folder .* prune a`, or use another outputs folder"
    )
    with pytest.raises(ValueError, match=message):
        ActivationStore(folder)


GOOD = {"content": {}, "d_in": 4, "prepends_bos": False, "written_by": "fsae", "format": 2}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ('{"format": 1', "Expecting"),
        ("[" * 100_000, "recursion"),
        ("[1]", "it holds list, not an object"),
        ("null", "it holds NoneType"),
        (json.dumps({**GOOD, "d_in": "4"}), "d_in is '4', which is not of the type int"),
        (json.dumps({**GOOD, "d_in": True}), "d_in is True, which is not of the type int"),
        (json.dumps({**GOOD, "content": [1]}), r"content is \[1\], which is not of the type dict"),
        (json.dumps({**GOOD, "prepends_bos": 0}), "prepends_bos is 0"),
        (json.dumps({**GOOD, "written_by": None}), "written_by is None"),
        (json.dumps({**GOOD, "more": 1}), "'more' is no key of it"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "content"}), "content is missing"),
    ],
)
def test_a_damaged_manifest_is_named(text: str, reason: str, tmp_path: Path):
    folder = made(tmp_path / "a").folder
    (folder / "store.json").write_text(text)
    message = rf"store .*a has a damaged store\.json \(.*{reason}.*\); remove it with .* prune a`"
    with pytest.raises(ValueError, match=message):
        ActivationStore(folder)


def test_a_manifest_that_is_no_text_is_named(tmp_path: Path):
    folder = made(tmp_path / "a").folder
    (folder / "store.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"damaged store\.json \('utf-8' codec"):
        ActivationStore(folder)
    (folder / "store.json").unlink()
    (folder / "store.json").mkdir()
    with pytest.raises(ValueError, match=r"damaged store\.json \(.*Is a directory"):
        ActivationStore(folder)


def test_a_store_of_other_content_is_refused(tmp_path: Path):
    folder = made(tmp_path / "a").folder
    assert ActivationStore(folder, CONTENT).manifest is not None
    with pytest.raises(ValueError, match=r"store .*a holds other activations than its name says: .* remove it with"):
        ActivationStore(folder, CONTENT | {"site": "resid_mid.2"})


def swap(a: Path, b: Path) -> None:
    for one, other in ((a, b), (a.with_suffix(".json"), b.with_suffix(".json"))):
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)


def test_shards_that_changed_places_are_noticed(tmp_path: Path):
    """With their records, so that sizes and checksums fit."""
    store = made(tmp_path / "a")
    write(store, 0, 5)
    write(store, 1, 5)
    swap(store.path(Part.train, 0), store.path(Part.train, 1))
    for number, other in ((0, 1), (1, 0)):
        assert not store.holds(Part.train, number, 5)
        with pytest.raises(
            DamagedShard, match=rf"train-0000{number}.safetensors was written as shard {other} of the part train"
        ):
            store.read(Part.train, number)


def test_a_shard_of_the_other_part_or_of_another_store_is_noticed(tmp_path: Path):
    store = made(tmp_path / "a")
    write(store, 0, 5)
    write_shard(store, Part.held_out, 0, shard(5))
    swap(store.path(Part.train, 0), store.path(Part.held_out, 0))
    with pytest.raises(DamagedShard, match="was written as shard 0 of the part held_out"):
        store.read(Part.train, 0)
    other = ActivationStore(tmp_path / "b", CONTENT | {"site": "resid_mid.2"})
    other.create(d_in=4, prepends_bos=False)
    write(other, 0, 5)
    write(store, 0, 5)
    swap(store.path(Part.train, 0), other.path(Part.train, 0))
    for each in (store, other):
        assert not each.holds(Part.train, 0, 5)
        with pytest.raises(DamagedShard, match=r"was written for another store, with the digest [0-9a-f]{8}"):
            each.read(Part.train, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda record: record | {"count": 4}, "was changed"),
        (lambda record: record | {"count": "5"}, "was changed"),
        (lambda record: record | {"text": {"used": 3}}, "was changed"),
        (lambda record: record | {"more": 1}, "does not have format 2"),
        (lambda record: {key: value for key, value in record.items() if key != "bytes"}, "does not have format 2"),
        (lambda record: [record], "does not have format 2"),
        (lambda record: None, "does not have format 2"),
    ],
)
def test_a_record_that_was_changed_is_noticed(change, reason: str, tmp_path: Path):
    store = made(tmp_path / "a")
    write(store, 0, 5)
    path = store.path(Part.train, 0).with_suffix(".json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert store.record(Part.train, 0) is None
    with pytest.raises(DamagedShard, match=rf"train-00000.safetensors: its record {reason}"):
        store.read(Part.train, 0)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\0"])
def test_a_record_that_cannot_be_read_is_noticed(text: str, tmp_path: Path):
    store = made(tmp_path / "a")
    write(store, 0, 5)
    store.path(Part.train, 0).with_suffix(".json").write_text(text)
    with pytest.raises(DamagedShard, match=r"train-00000.safetensors: its record cannot be read"):
        store.read(Part.train, 0)


def test_foreign_files_do_not_count_as_shards(tmp_path: Path):
    store = made(tmp_path / "a")
    write(store, 0, 5)
    with store.lock(Part.train, 1):
        pass
    assert store.foreign() == []
    for name in ("notes-2.json", "train-1.json", "train-00000.json.bak", "other-00000.safetensors", "README"):
        (store.folder / name).write_text("{}")
    (store.folder / "held_out-x.json").mkdir()
    assert store.shards() == [(Part.train, 0)]
    assert [path.name for path in store.foreign()] == [
        "README", "held_out-x.json", "notes-2.json", "other-00000.safetensors", "train-00000.json.bak", "train-1.json",
    ]  # fmt: skip


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("width", [4, 768])
def test_the_estimate_matches_the_size_of_a_shard(labels: bool, width: int, tmp_path: Path):
    store, given = made(tmp_path / "a"), shard(20_000, labels)
    given = replace(given, activations=torch.zeros(20_000, width))
    text = {"documents": {"rows": {"file": 3, "row": 10**6}, "seen": 10**7, "kept": 10**6, "skipped": 3}, "used": 9}
    write_shard(store, Part.train, 0, given, text=text, label_names=["no", "yes"])
    taken = sum(path.stat().st_size for path in store.folder.glob("train-*"))
    estimate = shard_bytes(20_000, width, torch.float32, labels)
    assert taken <= estimate <= 1.01 * taken


def test_a_store_that_is_opened_while_it_is_removed_starts_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = made(tmp_path / "a")
    write(store, 0, 5)
    assert not remove(store.folder)
    store.close()
    opened: list[ActivationStore] = []
    other = Thread(target=lambda: opened.append(ActivationStore(store.folder, CONTENT)))
    unlink = Path.unlink

    def slowly(path: Path, missing_ok: bool = False) -> None:
        if path.name == "store.json":
            # The other thread has read the manifest, and waits until the removal has ended.
            other.start()
            other.join(0.2)
            assert other.is_alive()
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", slowly)
    assert remove(store.folder)
    monkeypatch.undo()
    other.join(10)
    assert not opened[0].holds(Part.train, 0, 5)
    assert in_use(store.folder)
    opened[0].create(d_in=4, prepends_bos=False)
    given = write(opened[0], 0, 5)
    assert torch.equal(ActivationStore(store.folder).read(Part.train, 0).activations, given.activations)


def test_a_store_is_in_use_until_it_is_closed(tmp_path: Path):
    store = made(tmp_path / "a")
    assert in_use(store.folder)
    store.close()
    assert not in_use(store.folder)
    os.utime(store.folder / "in_use.lock", (1000, 1000))
    os.utime(store.folder / "store.json", (1000, 1000))
    assert last_used(store.folder) == 1000
    assert not in_use(store.folder)
    again = ActivationStore(store.folder)
    assert in_use(store.folder)
    assert last_used(store.folder) > 1000
    # Several runs at a time.
    with (store.folder / "in_use.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    again.close()

import errno
import json
import os
from pathlib import Path

import pytest

from fsae.files import digest_of, replacing, share_as_folder, whole_files, write_json


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path):
    path = tmp_path / "results.json"
    write_json(path, {"eval/fvu": 0.1})
    # A real full disk: nothing fits on this device.
    (tmp_path / "results.json.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"eval/fvu": 0.2})
    assert json.loads(path.read_text()) == {"eval/fvu": 0.1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_not_replaced_before_the_block_ends(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_what_a_killed_process_left_of_it(tmp_path: Path):
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "half.bin").write_text("")
    with replacing(tmp_path / "model") as unfinished:
        unfinished.mkdir()
        (unfinished / "whole.bin").write_text("")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.bin")] == ["model/whole.bin"]


def test_an_error_leaves_no_folder(tmp_path: Path):
    def write() -> None:
        with replacing(tmp_path / "model") as unfinished:
            unfinished.mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert not list(tmp_path.iterdir())


def of_content(folder: Path, content: str) -> None:
    with replacing(folder) as unfinished:
        unfinished.mkdir()
        (unfinished / content).write_text("")


def test_a_folder_replaces_an_earlier_one(tmp_path: Path):
    # A killed process left the folder that it replaced.
    (tmp_path / ".store.earlier" / "inner").mkdir(parents=True)
    for content in ("first", "second", "third"):
        of_content(tmp_path / "store", content)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["store", "store/third"]


def test_a_kill_between_two_renames_loses_no_folder(tmp_path: Path):
    of_content(tmp_path / "store", "first")
    (tmp_path / "store").rename(tmp_path / ".store.earlier")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "store"):
        raise ZeroDivisionError
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["store", "store/first"]


def test_a_folder_that_cannot_be_flushed_or_moved_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    of_content(tmp_path / "store", "first")
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name, function in ((Path, "rename", refused), (os, "fsync", full)):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, function)
            with pytest.raises(OSError, match="No space left"):
                of_content(tmp_path / "store", "second")
        assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["store", "store/first"]


def test_whole_files_are_those_that_no_killed_process_left_unfinished(tmp_path: Path):
    folder = tmp_path / "named.partial"
    for name in ("a/whole", "a/half.partial", "b.partial/half"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    assert whole_files(folder) == [folder / "a" / "whole"]
    assert whole_files(tmp_path / "nowhere") == []


def test_two_processes_write_one_shared_file_under_names_of_their_own(tmp_path: Path):
    path = tmp_path / "store.json"
    with replacing(path, shared=True) as first, replacing(path, shared=True) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_shared_file_has_the_permissions_of_its_folder(tmp_path: Path):
    tmp_path.chmod(0o750)
    file = tmp_path / "weights"
    file.touch(mode=0o600)
    share_as_folder(file)
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_digest_identifies_the_whole_content():
    content = {"model": {"package": "tiny", "version": "1"}, "site": "resid_mid.1"}
    assert digest_of(content) == digest_of(dict(reversed(content.items())))
    assert digest_of(content) != digest_of(content | {"site": "resid_mid.2"})
    assert len(digest_of(content)) == 8

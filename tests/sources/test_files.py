"""Which files a folder, a file or a glob stands for."""

import os
import sysconfig
from pathlib import Path

import pytest

from fsae.sources.files import files_at, files_below, standard_library


def names(path: Path | str, endings: tuple[str, ...] = ()) -> list[str]:
    return [Path(file).name for file in files_at(str(path), endings, "text")]


def test_linked_folders_and_files_are_read(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "elsewhere" / name).write_text(name)
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "c.txt").write_text("c")
    (data / "c.txt").symlink_to(tmp_path / "c.txt")
    assert names(data) == ["c.txt", "a.txt", "b.txt"]
    # A file that two links lead to is one document.
    (data / "again").symlink_to(tmp_path / "elsewhere")
    (data / "a_too.txt").symlink_to(tmp_path / "elsewhere" / "a.txt")
    assert names(data) == ["c.txt", "a.txt", "b.txt"]


def test_a_loop_of_links_ends(tmp_path: Path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.txt").write_text("a")
    (tmp_path / "inner" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path)
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("target", ["nowhere.txt", "a.txt"])
def test_a_link_that_leads_nowhere_is_refused_by_name(target: str, tmp_path: Path):
    # Also one to itself.
    (tmp_path / "a.txt").symlink_to(tmp_path / target)
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(ValueError, match=rf"{tmp_path}/a\.txt is a link that leads nowhere \({tmp_path}/{target}\)"):
        names(tmp_path)
    # A link with another ending is ignored.
    assert names(tmp_path, (".jsonl", "b.txt")) == ["b.txt"]


def test_pipes_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.txt").write_text("a")
    assert names(tmp_path) == ["a.txt"]
    assert f"{tmp_path}/pipe is no regular file; it is left out" in caplog.text
    with pytest.raises(ValueError, match=f"{tmp_path}/pipe is neither a file nor a folder"):
        names(tmp_path / "pipe")


def test_unreadable_files_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.txt").write_text("a")
    # Root may read everything.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=rf"the file {tmp_path}/a\.txt may not be read"):
        names(tmp_path)


def test_an_unreadable_folder_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def forbidden(top, **options):
        options["onerror"](PermissionError(13, "Permission denied", f"{tmp_path}/closed"))
        return iter(())

    monkeypatch.setattr(os, "walk", forbidden)
    with pytest.raises(ValueError, match=rf"the folder {tmp_path}/closed cannot be read \(Permission denied\)"):
        list(files_below(tmp_path))


def test_hidden_files_are_left_out(tmp_path: Path):
    for name in (".git/config", "a/.hidden", "a/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert names(tmp_path) == ["b.txt"]


def test_the_standard_library_has_neither_tests_nor_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("b.py", "a/a.py", "a/data.txt", "a/tests/test_a.py", "test/c.py", "site-packages/torch/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert standard_library() == [str(tmp_path / "a" / "a.py"), str(tmp_path / "b.py")]

from pathlib import Path

import pytest

from fsae.publishing.new_folder import new_folder


def test_a_folder_appears_as_a_whole_and_replaces_an_earlier_one(tmp_path: Path):
    for content in ("first", "second"):
        with new_folder(tmp_path / "above" / "export", "mark") as unfinished:
            (unfinished / "mark").write_text(content)
            (unfinished / "inner").mkdir()
            (unfinished / "inner" / content).write_text(content)
    assert (tmp_path / "above" / "export" / "mark").read_text() == "second"
    assert [path.name for path in (tmp_path / "above" / "export" / "inner").iterdir()] == ["second"]
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["export"]


def test_an_earlier_export_survives_a_failure(tmp_path: Path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mark").write_text("first")
    with pytest.raises(IsADirectoryError), new_folder(tmp_path / "export", "mark") as unfinished:
        unfinished.write_text("second")
    assert (tmp_path / "export" / "mark").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_other_files_are_left_alone(tmp_path: Path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "thesis").write_text("long")
    with pytest.raises(ValueError, match="has no mark"), new_folder(tmp_path / "export", "mark"):
        pass
    assert (tmp_path / "export" / "thesis").read_text() == "long"

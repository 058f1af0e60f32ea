"""Names that a folder can have, made of paths."""

from pathlib import Path

import pytest

from fsae.naming import last_part, word


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("gpt2", "gpt2"),
        ("google/gemma-2-2b", "gemma-2-2b"),
        ("/models/mine/", "mine"),
        ("/models/mine/../other", "other"),
        ("/data/corpus.jsonl.gz", "corpus.jsonl.gz"),
        ("/code/**/*.java", "code_.java"),
        ("/code/a?/b.txt", "code_a_b.txt"),
        ("/a/it's 100 %20 #1;$(rm)", "it_s_100_20_1_rm_"),
        ("/a/.hidden", "hidden"),
        ("/a/--help", "help"),
        ("/a/été", "été"),
        ("/a/%%", "_"),
        ("/", "_"),
        ("/a/" + "x" * 200, "x" * 80),
        ("/a/" + "漢" * 50, "漢" * 26),
    ],
)
def test_last_part_names_a_path(path: str, name: str):
    assert last_part(path) == name


def test_last_part_resolves_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model" / "odd [1]").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [last_part(path) for path in (".", "..", "~/model", "odd [1]", "../link")] == [
        "model",
        tmp_path.name,
        "model",
        "odd_1_",
        "link",
    ]


def test_word_replaces_separators_of_folders():
    assert word("data/java") == "data_java"

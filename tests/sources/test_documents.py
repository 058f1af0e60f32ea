"""Documents from files and from local copies in the hub's layout: what is read, how it is split, how it resumes."""

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fsae.sources.documents import DatasetFormat, DatasetSettings, Document, open_documents
from fsae.sources.shard import Part
from tests.language_models.fake_hub import fake_hub

STORIES = [f"Story {i}: once upon a time there were {i} tokens." for i in range(200)]


def contents(settings: DatasetSettings, part: Part) -> list:
    return [document.content for document in open_documents(settings, part)]


def write_parquet(path: Path, columns: dict) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_text(folder: Path) -> DatasetSettings:
    for i, story in enumerate(STORIES):
        path = folder / ("even" if i % 2 == 0 else "odd") / f"{i:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(story)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "secret.txt").write_text("not a document")
    return DatasetSettings(format=DatasetFormat.text, path=str(folder))


def write_json(folder: Path) -> DatasetSettings:
    lines = [json.dumps({"text": story, "kind": i % 3}) + "\n" for i, story in enumerate(STORIES)]
    (folder / "a.jsonl").write_text("".join(lines[:90]))
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.write("".join(lines[90:]))
    (folder / "notes.md").write_text("not a document")
    return DatasetSettings(format=DatasetFormat.json, path=str(folder), label_column="kind")


def write_parquet_files(folder: Path) -> DatasetSettings:
    for i in range(4):
        part = STORIES[50 * i : 50 * (i + 1)]
        write_parquet(folder / f"{i}.parquet", {"text": part, "kind": [len(text) for text in part]})
    return DatasetSettings(format=DatasetFormat.parquet, path=str(folder), label_column="kind")


def write_hub_copy(folder: Path) -> DatasetSettings:
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", {"text": STORIES[:120]})
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", {"text": STORIES[120:]})
    write_parquet(folder / "data" / "validation-00000-of-00001.parquet", {"text": ["only for validation"]})
    return DatasetSettings(format=DatasetFormat.hub, path=str(folder))


@pytest.fixture(params=[write_text, write_json, write_parquet_files, write_hub_copy])
def stories(request, tmp_path) -> DatasetSettings:
    return request.param(tmp_path)


def test_every_document_is_in_exactly_one_part(stories):
    train, held_out = contents(stories, Part.train), contents(stories, Part.held_out)
    assert Counter(train + held_out) == Counter(STORIES)
    # A tenth of 200, give or take three standard deviations: sqrt(200 * 0.1 * 0.9) = 4.2.
    assert 20 - 13 <= len(held_out) <= 20 + 13


def test_the_part_does_not_depend_on_the_format(tmp_path):
    formats = [write_text, write_json, write_parquet_files, write_hub_copy]
    held_out = []
    for write in formats:
        (tmp_path / write.__name__).mkdir()
        held_out.append(set(contents(write(tmp_path / write.__name__), Part.held_out)))
    assert all(part == held_out[0] for part in held_out)


def test_copies_of_a_document_are_in_the_same_part(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": STORIES[:50] * 3})
    settings = DatasetSettings(format=DatasetFormat.parquet, path=str(tmp_path), held_out=0.3)
    train, held_out = contents(settings, Part.train), contents(settings, Part.held_out)
    assert not set(train) & set(held_out)
    assert set(Counter(train + held_out).values()) == {3}


def test_the_share_grows_the_held_out_part(tmp_path):
    settings = write_text(tmp_path)
    parts = [
        set(contents(DatasetSettings(format=settings.format, path=settings.path, held_out=share), Part.held_out))
        for share in (0.1, 0.5, 0.9)
    ]
    assert parts[0] < parts[1] < parts[2]


def test_files_come_in_a_fixed_random_order(tmp_path):
    settings = write_text(tmp_path)
    first, again = (contents(settings, Part.train) for _ in range(2))
    assert first == again
    assert first != sorted(first)


def test_documents_continue_from_a_saved_position(stories):
    documents = open_documents(stories, Part.train)
    for _ in range(70):
        next(documents)
    state = json.loads(json.dumps(documents.state_dict()))
    rest = list(documents)
    resumed = open_documents(stories, Part.train)
    resumed.load_state_dict(state)
    assert list(resumed) == rest
    assert len(rest) > 70


def test_rewinding_returns_to_the_first_document(stories):
    documents = open_documents(stories, Part.held_out)
    first = list(documents)
    assert next(documents, None) is None
    documents.rewind()
    next(documents)
    documents.rewind()
    assert list(documents) == first


def test_reading_files_opens_no_connection(stories, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    next(open_documents(stories, Part.train))
    assert asked == []


def test_closing_early_takes_no_time(tmp_path, monkeypatch):
    """datasets sleeps 5 s when a shuffled parquet stream is closed; fsae does not shuffle by datasets."""
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    documents = open_documents(write_parquet_files(tmp_path), Part.train)
    next(documents)
    documents.rewind()
    next(documents)
    del documents
    assert slept == []


def test_labels_are_kept(tmp_path):
    write_parquet(
        tmp_path / "data" / "train-0.parquet", {"func": STORIES, "target": [len(s) % 2 == 0 for s in STORIES]}
    )
    settings = DatasetSettings(format=DatasetFormat.hub, path=str(tmp_path), text_column="func", label_column="target")
    documents = list(open_documents(settings, Part.train))
    assert documents
    assert all(document.label is (len(document.content) % 2 == 0) for document in documents)


def test_token_ids_are_read_unchanged(tmp_path):
    rows = [[i, i + 1, i + 2] for i in range(40)]
    write_parquet(tmp_path / "train.parquet", {"input_ids": rows})
    settings = DatasetSettings(
        format=DatasetFormat.hub,
        path=str(tmp_path),
        text_column=None,
        tokens_column="input_ids",
        held_out=0.25,
    )
    documents = open_documents(settings, Part.train)
    assert documents.tokenised
    train, held_out = list(documents), list(open_documents(settings, Part.held_out))
    assert sorted(document.content for document in train + held_out) == rows
    assert train[0] == Document(content=train[0].content, label=None)


def test_a_local_copy_has_splits_configurations_and_data_folders(tmp_path):
    """The same settings as on the hub: `split`, `config` (the card names its files) and `data_dir`."""
    settings = write_hub_copy(tmp_path / "plain")
    validation = DatasetSettings(format=settings.format, path=settings.path, split="validation", held_out=0.999999)
    assert contents(validation, Part.held_out) == ["only for validation"]

    files = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("java", "c"))
    card = f"---\nconfigs:\n{files}---\n"
    write_parquet(tmp_path / "two" / "java" / "0.parquet", {"text": ["class A {}"]})
    write_parquet(tmp_path / "two" / "c" / "0.parquet", {"text": ["int a;"]})
    (tmp_path / "two" / "README.md").write_text(card)
    java = DatasetSettings(format=DatasetFormat.hub, path=str(tmp_path / "two"), config="java", held_out=0.999999)
    assert contents(java, Part.held_out) == ["class A {}"]

    write_parquet(tmp_path / "stack" / "data" / "python" / "train-0.parquet", {"content": ["a = 1"]})
    write_parquet(tmp_path / "stack" / "data" / "java" / "train-0.parquet", {"content": ["int a;"]})
    python = DatasetSettings(
        format=DatasetFormat.hub,
        path=str(tmp_path / "stack"),
        data_dir="data/python",
        text_column="content",
        held_out=0.999999,
    )
    assert contents(python, Part.held_out) == ["a = 1"]


def test_python_source_reads_the_running_python():
    settings = DatasetSettings(format=DatasetFormat.python_source)
    documents = contents(settings, Part.train) + contents(settings, Part.held_out)
    assert len(documents) > 300
    assert any("class Random(_random.Random)" in text for text in documents)
    # No installed packages, no tests.
    assert not any("class PreTrainedModel(" in text or "class GrammarTests(" in text for text in documents)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"format": DatasetFormat.python_source}, "python_source"),
        ({"format": DatasetFormat.text, "path": "/code/**/*.java"}, "code_.java"),
        ({"format": DatasetFormat.hub, "path": "roneneldan/TinyStories"}, "TinyStories"),
        ({"format": DatasetFormat.hub, "path": "big/stack", "data_dir": "data/java"}, "stack-data_java"),
        ({"format": DatasetFormat.hub, "path": "big/stack", "config": "v2", "data_dir": "c"}, "stack-v2-c"),
    ],
)
def test_a_data_set_is_named_after_its_path(settings, name):
    assert DatasetSettings(**settings).name == name
    with pytest.raises(TypeError):
        DatasetSettings(**(settings | {"name": "tinystories"}))


def test_globs_single_files_and_strange_names_are_read(tmp_path):
    write_text(tmp_path)
    (tmp_path / "odd [1].txt").write_text("brackets")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")

    def read(path: str) -> list[str]:
        settings = DatasetSettings(format=DatasetFormat.text, path=path, held_out=1e-9)
        return contents(settings, Part.train)

    assert sorted(read(str(tmp_path / "even" / "*.txt"))) == sorted(STORIES[::2])
    assert len(read(str(tmp_path / "**" / "*.txt"))) == len(STORIES) + 2
    assert read(str(tmp_path / "odd [1].txt")) == ["brackets"]
    assert read(str(tmp_path / "latin.txt")) == ["caf\N{REPLACEMENT CHARACTER}"]


def failure(**settings) -> str:
    with pytest.raises(ValueError) as caught:
        list(open_documents(DatasetSettings(**settings), Part.train))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_paths_that_lead_nowhere_are_refused(tmp_path):
    missing = str(tmp_path / "missing")
    for format in (DatasetFormat.text, DatasetFormat.json, DatasetFormat.parquet):
        assert failure(format=format, path=missing).startswith(f"dataset.path: there is no file or folder {missing}")
        assert "matches no" in failure(format=format, path=f"{missing}/*.x")
        assert "matches no" in failure(format=format, path=str(tmp_path))
    assert "is no folder on this machine" in failure(format=DatasetFormat.hub, path=missing)
    assert f"{tmp_path.name} could not be opened from" in failure(format=DatasetFormat.hub, path=str(tmp_path))


def write_gzipped(path: Path, text: str) -> None:
    with gzip.open(path, "wt") as file:
        file.write(text)


BROKEN = {
    "a.parquet": (lambda path: path.write_bytes(b"PAR1 and no more"), "parquet", "as parquet: "),
    "empty.parquet": (lambda path: path.write_bytes(b""), "parquet", "as parquet: "),
    "a.jsonl": (lambda path: path.write_text('{"text": "whole"}\n{"text": "cut'), "json", "as json: line 2 is no JSON"),
    "b.jsonl": (lambda path: path.write_text('{"text": "cut'), "json", "as json: line 1 is no JSON"),
    "list.json": (lambda path: path.write_text('[{"text": "a"}, 3]'), "json", "item 2 is a number, not an object"),
    "lines.jsonl": (lambda path: path.write_text('{"text": "a"}\n[1]\n'), "json", "line 2 is a list, not an object"),
    "deep.jsonl": (lambda path: path.write_text('{"a":' * 100_000), "json", "line 1 is nested too deeply"),
    "latin.jsonl": (lambda path: path.write_bytes(b'{"text": "caf\xe9"}'), "json", "as json: 'utf-8' codec can't"),
    "no.jsonl.gz": (lambda path: path.write_text("{}"), "json", "as json: Not a gzipped file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_is_refused_by_name(name: str, tmp_path: Path):
    write, format, reason = BROKEN[name]
    write(tmp_path / name)
    message = failure(format=DatasetFormat(format), path=str(tmp_path))
    assert message.startswith(f"data set {tmp_path.name}: {tmp_path / name} cannot be read {reason}"[: -len(reason)])
    assert reason in message
    assert "repair the file, or name others by dataset.path" in message


def test_a_compressed_file_that_was_cut_is_refused_by_name(tmp_path: Path):
    write_gzipped(tmp_path / "a.jsonl.gz", "".join(json.dumps({"text": story}) + "\n" for story in STORIES))
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "a.jsonl.gz cannot be read as json: Compressed file ended" in failure(
        format=DatasetFormat.json, path=str(tmp_path)
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"text": "one"}\n\n{"text": "two"}\n', ["one", "two"]),
        ('\ufeff{"text": "one"}', ["one"]),
        ('{\n  "text": "one",\n  "more": [1]\n}\n', ["one"]),
        ('[{"text": "one"},\n {"text": "two"}]', ["one", "two"]),
        ('["one", "two", "three"]', ["one", "two", "three"]),
    ],
)
def test_json_is_read_by_line_as_one_list_or_as_one_object(text: str, wanted: list[str], tmp_path: Path):
    (tmp_path / "a.json").write_text(text)
    settings = DatasetSettings(format=DatasetFormat.json, path=str(tmp_path), held_out=1e-9)
    documents = open_documents(settings, Part.train)
    assert next(documents).content == wanted[0]
    state = documents.state_dict()
    assert [document.content for document in documents] == wanted[1:]
    resumed = open_documents(settings, Part.train)
    resumed.load_state_dict(state)
    assert [document.content for document in resumed] == wanted[1:]


def test_an_object_without_the_column_is_refused_with_its_keys(tmp_path: Path):
    (tmp_path / "a.json").write_text('{\n "version": 1,\n "data": [{"text": "a"}]\n}')
    message = failure(format=DatasetFormat.json, path=str(tmp_path))
    assert "has no column 'text'; it has version, data: set dataset.text_column" in message
    assert "a.json, line 1" in message


def test_columns_that_are_not_wanted_may_differ_between_files(tmp_path: Path):
    lines = [
        [{"text": "one", "meta": {"x": 1}}, {"text": "two", "meta": None}],
        [{"text": "three", "meta": "none", "more": 1}, {"more": [2], "text": "four"}],
    ]
    for name, rows in zip("ab", lines, strict=True):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = {"path": str(tmp_path), "held_out": 1e-9}
    settings = DatasetSettings(format=DatasetFormat.json, **where)
    assert sorted(contents(settings, Part.train)) == ["four", "one", "three", "two"]
    write_parquet(tmp_path / "a.parquet", {"text": ["one"], "meta": [1]})
    write_parquet(tmp_path / "b.parquet", {"meta": ["x"], "text": ["two"], "more": [None]})
    settings = DatasetSettings(format=DatasetFormat.parquet, **where)
    assert sorted(contents(settings, Part.train)) == ["one", "two"]
    # One file without the column is found before any is read.
    write_parquet(tmp_path / "c.parquet", {"content": ["three"]})
    with pytest.raises(ValueError, match=r"has no column 'text'; it has content: .*c\.parquet"):
        open_documents(settings, Part.train)


def write_lines(folder: Path, rows: list[dict]) -> DatasetSettings:
    (folder / "n.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetSettings(format=DatasetFormat.json, path=str(folder), held_out=1e-9)


def test_rows_without_a_document_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows: list[dict] = [{"text": story} for story in STORIES]
    rows[100], rows[150] = {"text": None}, {"other": "late"}
    settings = write_lines(tmp_path, rows)
    documents = open_documents(settings, Part.train)
    assert [document.content for document in documents] == STORIES[:100] + STORIES[101:150] + STORIES[151:]
    assert documents.skipped == 2
    assert caplog.text.count("n.jsonl, line 101: column 'text' is null. The row is left out") == 1
    # The count belongs to one pass: a saved position keeps it, and the next pass begins at 0.
    resumed = open_documents(settings, Part.train)
    resumed.load_state_dict(documents.state_dict())
    assert resumed.skipped == 2
    documents.rewind()
    assert documents.skipped == 0


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_more_invalid_rows_than_allowed_end_the_pass(allowed: int, tmp_path: Path):
    rows = [{"text": story} for story in STORIES[:20]] + [{"content": story} for story in STORIES[20:]]
    settings = replace(write_lines(tmp_path, rows), max_invalid_rows=allowed)
    message = (
        rf"n\.jsonl, line {21 + allowed}: there is no 'text', it has content\. That makes {allowed + 1} rows of "
        rf"{21 + allowed} without a usable document, and dataset.max_invalid_rows is {allowed}"
    )
    with pytest.raises(ValueError, match=message):
        contents(settings, Part.train)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([[1, 2], [3]], "holds a list of lists, not one list of token ids a row"),
        ([1, None], "has null among its token ids"),
        ([1.0, 2.0], r"holds float \(1\.0\) among its token ids"),
        ([True], r"holds bool \(True\)"),
        (["1"], r"holds str \('1'\)"),
        ("12", "holds str, not a list of token ids"),
        (5, "holds int, not a list"),
    ],
)
def test_values_that_are_no_lists_of_token_ids_are_refused(value, reason: str, tmp_path: Path):
    # In the first row at once: the column is wrong, and not the row.
    settings = replace(write_lines(tmp_path, [{"ids": value}]), tokens_column="ids")
    with pytest.raises(ValueError, match=rf"data set \S+, .*n\.jsonl, line 1: column 'ids' {reason}"):
        contents(settings, Part.train)
    # Later it is one row.
    settings = replace(write_lines(tmp_path, [{"ids": [1]}, {"ids": value}, {"ids": [2]}]), tokens_column="ids")
    assert contents(settings, Part.train) == [[1], [2]]


PADDED = [
    {"ids": [1, 2, 3, 9, 9], "attention_mask": [1, 1, 1, 0, 0]},
    {"ids": [9, 9, 9, 4, 5], "attention_mask": [0, 0, 0, 1, 1]},
    {"ids": [6, 9, 7, 9, 9], "attention_mask": [True, True, True, False, False]},
    {"ids": [9, 9], "attention_mask": [0, 0]},
]


@pytest.mark.parametrize("named", ["attention_mask", "my_mask"])
def test_padding_is_dropped_by_the_mask(named: str, tmp_path: Path):
    rows = [{"ids": row["ids"], named: row["attention_mask"]} for row in PADDED]
    settings = replace(write_lines(tmp_path, rows), tokens_column="ids")
    settings = settings if named == "attention_mask" else replace(settings, mask_column=named)
    # 9 is an ordinary id if it is not masked.
    assert contents(settings, Part.train) == [[1, 2, 3], [4, 5], [6, 9, 7], []]
    write_parquet(tmp_path / "p.parquet", {name: [list(map(int, row[name])) for row in rows] for name in rows[0]})
    settings = replace(settings, format=DatasetFormat.parquet)
    assert contents(settings, Part.train) == [[1, 2, 3], [4, 5], [6, 9, 7], []]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"ids": [1, 2], "m": [1]}, "has a mask in 'm' that is not a list of 2 zeros and ones"),
        ({"ids": [1, 2], "m": [1, 2]}, "has a mask in 'm'"),
        ({"ids": [1, 2], "m": [1, None]}, "has a mask in 'm'"),
        ({"ids": [1, 2], "m": [[1], [1]]}, "has a mask in 'm'"),
        ({"ids": [1, 2], "m": "11"}, "has a mask in 'm'"),
        ({"ids": [1, 2], "m": None}, "has no mask: 'm' is null"),
        ({"ids": [1, 2]}, "no column 'm'; it has ids: set dataset.mask_column to one of these"),
    ],
)
def test_an_invalid_mask_is_refused(row: dict, reason: str, tmp_path: Path):
    settings = replace(write_lines(tmp_path, [row]), tokens_column="ids", mask_column="m")
    with pytest.raises(ValueError, match=reason):
        contents(settings, Part.train)


def test_a_padded_copy_of_a_row_is_in_the_same_part(tmp_path: Path):
    rows = [{"ids": [i, i + 1], "attention_mask": [1, 1]} for i in range(50)]
    padded = [{"ids": [0, *row["ids"], 0], "attention_mask": [0, 1, 1, 0]} for row in rows]
    settings = replace(write_lines(tmp_path, rows + padded), tokens_column="ids", held_out=0.3)
    train, held_out = contents(settings, Part.train), contents(settings, Part.held_out)
    assert len(train) + len(held_out) == 100
    assert not {tuple(ids) for ids in train} & {tuple(ids) for ids in held_out}


CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hey"}]


@pytest.mark.parametrize(
    ("chat", "wanted"),
    [
        (CHAT, CHAT),
        ([{"role": "user", "content": "a", "name": None, "n": 1}], [{"role": "user", "content": "a", "n": 1}]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            [{"role": "user", "content": "a\nb"}],
        ),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}],
            [{"role": "assistant", "tool_calls": [{"name": "f"}]}],
        ),
    ],
)
def test_chats_are_lists_of_messages(chat: list, wanted: list, tmp_path: Path):
    settings = replace(write_lines(tmp_path, [{"messages": chat}]), chat_column="messages")
    assert contents(settings, Part.train) == [wanted]


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ("hello", "holds str, not a list of messages with role and content"),
        ([], "holds a chat without messages"),
        (["hello"], "holds str as message 1, not an object"),
        ([CHAT[0], {"content": "x"}], "has no role in message 2, which has content"),
        ([{"from": "human", "value": "x"}], "has no role in message 1, which has from, value"),
        ([{"role": "user"}], "has no content in message 1, of the role user"),
        ([{"role": "user", "content": 3}], "holds int as the content of message 1, not text"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"has a part that is no text \(image\) in message 1"),
    ],
)
def test_values_that_are_no_chats_are_refused(chat, reason: str, tmp_path: Path):
    settings = replace(write_lines(tmp_path, [{"messages": chat}]), chat_column="messages")
    with pytest.raises(ValueError, match=rf"data set \S+, .*n\.jsonl, line 1: column 'messages' {reason}"):
        contents(settings, Part.train)


def test_a_file_that_is_no_text_is_left_out_and_counted(tmp_path: Path):
    settings = write_text(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0\0")
    (tmp_path / "empty.txt").write_text("")
    documents = open_documents(replace(settings, held_out=1e-9), Part.train)
    assert Counter(document.content for document in documents) == Counter([*STORIES, ""])
    assert documents.skipped == 1


def test_missing_columns_are_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", {"func": STORIES, "target": [0] * len(STORIES)})
    where = {"format": DatasetFormat.parquet, "path": str(tmp_path)}
    assert f"{tmp_path.name} has no column 'text'; it has func, target" in failure(**where)
    assert "no column 'cwe'; it has func, target" in failure(**where, text_column="func", label_column="cwe")
    assert "column 'target' holds int, not text" in failure(**where, text_column="target")
    assert "column 'func' holds str, not a list of token ids" in failure(
        **where, text_column=None, tokens_column="func"
    )


def test_missing_splits_and_configurations_are_refused(tmp_path):
    where = {"format": DatasetFormat.hub, "path": write_hub_copy(tmp_path).path}
    assert "Bad split: test" in failure(**where, split="test")
    assert "python" in failure(**where, config="python")


def test_data_sets_without_documents_are_refused(tmp_path):
    write_parquet(tmp_path / "none" / "train.parquet", {"text": []})
    assert "none is empty: no document in" in failure(format=DatasetFormat.parquet, path=str(tmp_path / "none"))
    write_parquet(tmp_path / "one" / "train.parquet", {"text": ["alone"]})
    one = {"format": DatasetFormat.parquet, "path": str(tmp_path / "one")}
    # All but certainly in the held-out part.
    assert "none of its 1 documents is in the part train" in failure(**one, held_out=1 - 1e-12)


def test_a_resumed_run_may_see_only_a_later_pass(tmp_path):
    """Resuming at the very end finds no further document, and that is no empty data set."""
    settings = write_text(tmp_path)
    documents = open_documents(settings, Part.train)
    list(documents)
    resumed = open_documents(settings, Part.train)
    resumed.load_state_dict(documents.state_dict())
    assert list(resumed) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": DatasetFormat.python_source, "path": "/code"}, "use dataset=text_files"),
        ({"format": DatasetFormat.text}, "dataset.path is not set; dataset.format=text needs a folder or a glob"),
        ({"format": DatasetFormat.hub}, "needs a hub name or a folder"),
        ({"format": DatasetFormat.python_source, "tokens_column": "ids"}, "files of text have the one column 'text'"),
        (
            {"format": DatasetFormat.json, "path": "/x", "text_column": "a", "chat_column": "b"},
            "dataset.text_column is 'a' and dataset.chat_column is 'b'; documents come from one column",
        ),
        ({"format": DatasetFormat.json, "path": "/x", "mask_column": "m"}, "dataset.mask_column is 'm', which is for"),
        (
            {"format": DatasetFormat.json, "path": "/x", "chat_roles": ["user"]},
            r"dataset.chat_roles is \['user'\], which is",
        ),
        (
            {"format": DatasetFormat.json, "path": "/x", "chat_column": "m", "chat_roles": []},
            "dataset.chat_roles is empty",
        ),
        ({"format": DatasetFormat.json, "path": "/x", "max_invalid_rows": -1}, "dataset.max_invalid_rows is -1"),
        (
            {"format": DatasetFormat.json, "path": "/x", "exclude_tokens": [3, -1]},
            "exclude_tokens is -1",
        ),
        ({"format": DatasetFormat.python_source, "held_out": 0.0}, "dataset.held_out is 0;"),
        ({"format": DatasetFormat.python_source, "held_out": 1.0}, "dataset.held_out is 1;"),
        ({"format": DatasetFormat.python_source, "context": 1}, "dataset.context is 1"),
    ],
)
def test_contradictory_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DatasetSettings(**settings)


OPEN_HUB_DATASET = """
import sys, time
slept = []
time.sleep = slept.append
from fsae.sources.documents import *
settings = DatasetSettings(format=DatasetFormat.hub, path=sys.argv[1])
try:
    next(open_documents(settings, Part.train))
except ValueError as error:
    print(error)
print("datasets" in sys.modules, slept)
"""


def open_on_hub(path: str, endpoint: str, home: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint}
    result = subprocess.run(
        [sys.executable, "-c", OPEN_HUB_DATASET, path], env=environment, cwd=home, capture_output=True, text=True
    )
    answer, waits = result.stdout.splitlines()
    # The answer waits neither for an import of datasets nor between attempts.
    assert waits == "False []"
    return answer


def test_a_hub_data_set_without_a_network_is_refused_at_once(tmp_path):
    answer = open_on_hub("roneneldan/TinyStories", "http://127.0.0.1:9", tmp_path)
    assert answer.startswith(
        "dataset.path: roneneldan/TinyStories is not on this machine and http://127.0.0.1:9 cannot"
    )


def test_a_gated_data_set_is_refused(tmp_path):
    with fake_hub() as hub:
        answer = open_on_hub("owner/gated", hub, tmp_path)
    assert answer.startswith("dataset.path: owner/gated is gated; accept its terms at")

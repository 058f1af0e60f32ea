"""Documents from files and from local copies in the hub's layout: what is read, how it is split, how it resumes."""

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from fsae.sources.documents import DatasetFormat, DatasetSettings, Document, Part, open_documents
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


def test_copies_of_a_document_fall_on_the_same_side(tmp_path):
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


def test_files_come_in_a_random_order_that_is_always_the_same(tmp_path):
    settings = write_text(tmp_path)
    first, again = (contents(settings, Part.train) for _ in range(2))
    assert first == again
    assert first != sorted(first)


def test_going_on_from_a_saved_position(stories):
    documents = open_documents(stories, Part.train)
    for _ in range(70):
        next(documents)
    state = json.loads(json.dumps(documents.state_dict()))
    rest = list(documents)
    resumed = open_documents(stories, Part.train)
    resumed.load_state_dict(state)
    assert list(resumed) == rest
    assert len(rest) > 70


def test_rewinding(stories):
    documents = open_documents(stories, Part.held_out)
    first = list(documents)
    assert next(documents, None) is None
    documents.rewind()
    next(documents)
    documents.rewind()
    assert list(documents) == first


def test_reading_files_asks_nobody(stories, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    next(open_documents(stories, Part.train))
    assert asked == []


def test_closing_in_the_middle_takes_no_time(tmp_path):
    """datasets sleeps 5 s when a shuffled parquet stream is closed; ours is not shuffled that way."""
    documents = open_documents(write_parquet_files(tmp_path), Part.train)
    next(documents)
    began = time.monotonic()
    documents.rewind()
    next(documents)
    del documents
    assert time.monotonic() - began < 2


def test_labels_are_kept(tmp_path):
    write_parquet(
        tmp_path / "data" / "train-0.parquet", {"func": STORIES, "target": [len(s) % 2 == 0 for s in STORIES]}
    )
    settings = DatasetSettings(format=DatasetFormat.hub, path=str(tmp_path), text_column="func", label_column="target")
    documents = list(open_documents(settings, Part.train))
    assert documents
    assert all(document.label is (len(document.content) % 2 == 0) for document in documents)


def test_token_ids_are_read_as_they_are(tmp_path):
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


def test_a_split_a_configuration_and_a_data_folder_of_a_local_copy(tmp_path):
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


def test_the_running_pythons_source():
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
def test_a_data_set_is_called_by_what_it_is(settings, name):
    assert DatasetSettings(**settings).name == name
    with pytest.raises(TypeError):
        DatasetSettings(**settings, name="tinystories")


def test_a_glob_a_single_file_and_strange_names(tmp_path):
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


def test_paths_that_lead_nowhere(tmp_path):
    missing = str(tmp_path / "missing")
    for format in (DatasetFormat.text, DatasetFormat.json, DatasetFormat.parquet):
        assert failure(format=format, path=missing).startswith(f"dataset.path: there is no file or folder {missing}")
        assert "matches no" in failure(format=format, path=f"{missing}/*.x")
        assert "matches no" in failure(format=format, path=str(tmp_path))
    assert "is no folder on this machine" in failure(format=DatasetFormat.hub, path=missing)
    assert f"{tmp_path.name} could not be opened from" in failure(format=DatasetFormat.hub, path=str(tmp_path))


def test_files_that_are_broken(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    assert f"{tmp_path.name} could not be opened from" in failure(format=DatasetFormat.parquet, path=str(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"text": "whole"}\n{"text": "cut')
    assert f"{tmp_path.name} could not be read on after row" in failure(format=DatasetFormat.json, path=str(tmp_path))


def test_columns_that_are_not_there(tmp_path):
    write_parquet(tmp_path / "train.parquet", {"func": STORIES, "target": [0] * len(STORIES)})
    where = {"format": DatasetFormat.parquet, "path": str(tmp_path)}
    assert f"{tmp_path.name} has no column 'text'; it has func, target" in failure(**where)
    assert "no column 'cwe'; it has func, target" in failure(**where, text_column="func", label_column="cwe")
    assert "column 'target' holds int, not text" in failure(**where, text_column="target")
    assert "column 'func' holds str, not token ids" in failure(**where, text_column=None, tokens_column="func")


def test_splits_and_configurations_that_are_not_there(tmp_path):
    where = {"format": DatasetFormat.hub, "path": write_hub_copy(tmp_path).path}
    assert "Bad split: test" in failure(**where, split="test")
    assert "python" in failure(**where, config="python")


def test_data_sets_without_documents(tmp_path):
    write_parquet(tmp_path / "none" / "train.parquet", {"text": []})
    assert "none is empty: no document in" in failure(format=DatasetFormat.parquet, path=str(tmp_path / "none"))
    write_parquet(tmp_path / "one" / "train.parquet", {"text": ["alone"]})
    one = {"format": DatasetFormat.parquet, "path": str(tmp_path / "one")}
    # All but certainly in the held-out part.
    assert "none of its 1 documents is in the part train" in failure(**one, held_out=1 - 1e-12)


def test_a_later_pass_may_be_all_that_a_resumed_run_sees(tmp_path):
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
        ({"format": DatasetFormat.python_source, "tokens_column": "ids"}, "name exactly one"),
        ({"format": DatasetFormat.python_source, "text_column": None}, "name exactly one"),
        ({"format": DatasetFormat.python_source, "held_out": 0.0}, "dataset.held_out is 0.0"),
        ({"format": DatasetFormat.python_source, "held_out": 1.0}, "dataset.held_out is 1.0"),
        ({"format": DatasetFormat.python_source, "context": 1}, "dataset.context is 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DatasetSettings(**settings)


OPEN_HUB_DATASET = """
import sys
from fsae.sources.documents import *
settings = DatasetSettings(format=DatasetFormat.hub, path=sys.argv[1])
try:
    next(open_documents(settings, Part.train))
except ValueError as error:
    print(error)
print("datasets" in sys.modules)
"""


def open_on_hub(path: str, endpoint: str, home: Path) -> tuple[str, float]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint}
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", OPEN_HUB_DATASET, path], env=environment, cwd=home, capture_output=True, text=True
    )
    answer, imported = result.stdout.splitlines()
    # The answer does not wait for that import either.
    assert imported == "False"
    return answer, time.monotonic() - began


def test_a_hub_data_set_without_a_network_is_refused_at_once(tmp_path):
    answer, seconds = open_on_hub("roneneldan/TinyStories", "http://127.0.0.1:9", tmp_path)
    assert answer.startswith(
        "dataset.path: roneneldan/TinyStories is not on this machine and http://127.0.0.1:9 cannot"
    )
    assert seconds < 15


def test_a_gated_data_set_is_refused(tmp_path):
    with fake_hub() as hub:
        answer, _ = open_on_hub("owner/gated", hub, tmp_path)
    assert answer.startswith("dataset.path: owner/gated is gated; accept its terms at")

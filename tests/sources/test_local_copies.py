"""The text data sets by their own names and columns: from local copies in the hub's layout, and streamed from a hub."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from experiments.data.local_copies import (
    Function,
    c_functions,
    labelled,
    python_files,
    write_devign,
    write_openwebtext,
    write_stack,
    write_tinystories,
    write_tokenised,
)
from fsae.configuration.schema import settings_of
from fsae.sources.documents import DatasetSettings, Document, open_documents
from fsae.sources.shard import Part
from tests.composition import composed
from tests.sources.file_hub import file_hub

PYTHON = dict(islice(python_files().items(), 60))
JAVA = {f"{name}.java": f"final class {name} {{ int twice(int i) {{ return 2 * i; }} }}\n" for name in "ABCDEFGHIJ"}
TEXTS = [paragraph for content in PYTHON.values() for paragraph in content.split("\n\n") if paragraph.strip()][:2500]
FUNCTIONS = [
    Function(f"int f(int *p)\n{{\n  return p[{i}];\n}}", defective=i % 3 == 0, file=f"{i // 4}.c") for i in range(200)
]
HUB_NAMES = {
    "devign": "google/code_x_glue_cc_defect_detection",
    "stack": "bigcode/the-stack-dedup",
    "tinystories": "roneneldan/TinyStories",
    "openwebtext": "Skylion007/openwebtext",
}
CHOICES = {
    "devign": ("devign", "func"),
    "stack_java": ("stack", "content"),
    "stack_python": ("stack", "content"),
    "tinystories": ("tinystories", "text"),
    "openwebtext": ("openwebtext", "text"),
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copies")
    write_devign(folder / "devign", FUNCTIONS)
    write_stack(folder / "stack", {"java": JAVA, "python": PYTHON})
    write_tinystories(folder / "tinystories", TEXTS)
    write_openwebtext(folder / "openwebtext", TEXTS)
    return folder


def in_the_files(folder: Path, choice: str) -> list:
    """What the train split's files of a choice hold, read without the loader."""
    data = folder / "data" / choice.removeprefix("stack_") if choice.startswith("stack") else folder / "data"
    files = sorted(path for path in data.glob("*.parquet") if not path.name.startswith(("validation", "test")))
    return [content for file in files for content in pq.read_table(file)[CHOICES[choice][1]].to_pylist()]


def chosen(choice: str, *overrides: str) -> DatasetSettings:
    return settings_of(composed(f"dataset={choice}", *overrides)).place()[2]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_local_copy_reads_with_nothing_but_its_path_changed(copies, choice):
    folder = copies / CHOICES[choice][0]
    settings = chosen(choice, f"dataset.path={folder}")
    read = [[document.content for document in open_documents(settings, part)] for part in Part]
    expected = in_the_files(folder, choice)
    assert sorted(read[0] + read[1]) == sorted(expected)
    assert read[0] == [content for content in expected if content in set(read[0])]
    assert expected


def test_devigns_labels_stay_with_their_functions(copies):
    defective = {function.text: function.defective for function in FUNCTIONS}
    settings = chosen("devign", f"dataset.path={copies / 'devign'}")
    documents = [document for part in Part for document in open_documents(settings, part)]
    assert {document.label for document in documents} == {False, True}
    assert all(document.label is defective[str(document.content)] for document in documents)


def test_devigns_splits_are_files_of_their_own(copies):
    files = {function.text: function.file for function in FUNCTIONS}
    seen = []
    for split in ("train", "validation", "test"):
        settings = chosen("devign", f"dataset.path={copies / 'devign'}", f"dataset.split={split}")
        seen.append({files[str(document.content)] for part in Part for document in open_documents(settings, part)})
    assert sum(map(len, seen)) == len(set.union(*seen)) == 50


@pytest.mark.parametrize("choice", ["devign_gpt2", "tinystories_gpt2", "stack_python_gpt2", "stack_java_gpt2"])
def test_tokenised_data_sets_are_read(tmp_path, choice):
    rows = [[(7 * i + j) % 257 for j in range(512)] for i in range(30)]
    write_tokenised(tmp_path, rows, context=512)
    settings = chosen(choice, f"dataset.path={tmp_path}")
    assert settings.context == 512
    documents = [document for part in Part for document in open_documents(settings, part)]
    assert sorted(document.content for document in documents) == sorted(rows)
    assert open_documents(settings, Part.train).tokenised


def test_a_folder_that_hides_a_hub_data_set_causes_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    write_openwebtext(tmp_path / "Skylion007" / "openwebtext", TEXTS[:50])
    with caplog.at_level(logging.WARNING):
        next(open_documents(chosen("openwebtext"), Part.train))
    assert f"read from the folder {tmp_path}/Skylion007/openwebtext, not from the hub" in caplog.text


STREAM = """
import json, sys
from fsae.configuration.schema import settings_of
from fsae.sources.documents import open_documents
from fsae.sources.shard import Part
from tests.composition import composed
from hashlib import sha256
for choice in sys.argv[1:]:
    settings = settings_of(composed(f"dataset={choice}")).dataset
    documents = open_documents(settings, Part.train)
    first = [next(documents) for _ in range(5)]
    resumed = open_documents(settings, Part.train)
    resumed.load_state_dict(json.loads(json.dumps(documents.state_dict())))
    rest = list(resumed)
    digest = sha256(repr([(d.content, d.label) for d in first + rest]).encode()).hexdigest()
    print(json.dumps([choice, digest]), flush=True)
"""


def environment(endpoint: str, home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return kept | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint}


def digest_of(documents: list[Document]) -> str:
    return sha256(repr([(document.content, document.label) for document in documents]).encode()).hexdigest()


def test_streaming_from_a_hub_gives_the_same_documents(copies, tmp_path):
    """A partly read stream continues from its saved position; other splits are not downloaded."""
    with file_hub({name: copies / folder for folder, name in HUB_NAMES.items()}) as hub:
        result = subprocess.run(
            [sys.executable, "-c", STREAM, *CHOICES],
            env=environment(hub.address, tmp_path),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        streamed = dict(map(json.loads, result.stdout.splitlines()))
        handed_out = [line for line in hub.asked if line.startswith("GET") and line.endswith(".parquet")]
    for choice, (folder, _) in CHOICES.items():
        local = chosen(choice, f"dataset.path={copies / folder}")
        assert streamed[choice] == digest_of(list(open_documents(local, Part.train))), choice
    assert handed_out
    assert not any("validation" in line or "test-" in line for line in handed_out)


DIE = """
import sys, time
from fsae.configuration.schema import settings_of
from fsae.sources.documents import open_documents
from fsae.sources.shard import Part
from tests.composition import composed
documents = open_documents(settings_of(composed("dataset=openwebtext")).dataset, Part.train)
next(documents)
print("reading", flush=True)
sys.stdin.readline()
time.sleep = lambda seconds: None  # between the libraries' many tries
try:
    print(sum(1 for _ in documents))
except ValueError as error:
    print(error)
"""


def test_a_hub_that_fails_midway_is_reported(copies, tmp_path):
    with file_hub({HUB_NAMES["openwebtext"]: copies / "openwebtext"}) as hub:
        reader = subprocess.Popen(
            [sys.executable, "-c", DIE],
            env=environment(hub.address, tmp_path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        hub.dead = True
        output, _ = reader.communicate("go on\n", timeout=60)
    assert output.startswith("data set openwebtext: Skylion007/openwebtext (split=train) cannot be read on after row ")


C_FILE = r"""
/* { dg-do compile } */
#include <stdlib.h>
struct pair { int a, b; };
static int table[] = { 1, 2, 3 };
extern void declared (void);
#define BLOCK(x) do { if (x) { } } while (0)

/* A comment with a brace { and "a string". */
int
reads_freed (int *p)
{
  free (p);
  char c = '}';            // a brace } that is none
  return *p + (int) "}{"[0]; /* { dg-warning "use after 'free' of 'p'" } */
}

void nowarn_reads (int *p) { if (p) { table[0] = *p; } nowarn_reads (p); }
void probes (int *p) { __analyzer_eval (p == 0); /* { dg-warning "UNKNOWN" } */ }
"""


def test_c_functions_are_found_whole():
    functions = dict(c_functions(C_FILE))
    assert list(functions) == ["reads_freed", "nowarn_reads", "probes"]
    assert functions["reads_freed"].startswith("int\nreads_freed (int *p)\n{")
    assert functions["reads_freed"].endswith("dg-warning \"use after 'free' of 'p'\" } */\n}")


def test_neither_comment_nor_name_reveals_the_label():
    defective, clean = labelled(C_FILE, "file.c")
    assert (defective.defective, clean.defective) == (True, False)
    for function in (defective, clean):
        assert "function (int *p)" in function.text
        assert not any(telling in function.text for telling in ("warn", "/*", "//", "freed"))
    assert clean.text == "void function (int *p) { if (p) { table[0] = *p; } function (p); }"


COLUMNS: dict[str, Callable[[dict], bool]] = {
    "devign": lambda row: (
        {"id", "func", "target", "project", "commit_id"} == set(row) and row["target"] in (True, False)
    ),
    "stack/data/java": lambda row: {"hexsha", "ext", "lang", "content"} < set(row) and row["lang"] == "Java",
    "tinystories": lambda row: set(row) == {"text"},
    "openwebtext": lambda row: set(row) == {"text"},
}


@pytest.mark.parametrize("name", COLUMNS)
def test_the_copies_have_the_originals_columns(copies, name):
    rows = [row for file in (copies / name).rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert rows
    assert all(map(COLUMNS[name], rows))

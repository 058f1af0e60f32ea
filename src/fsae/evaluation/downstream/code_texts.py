"""Labelled source code of this machine: which language a passage is in, and which C functions have a defect."""

import re
import sysconfig
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from fsae.evaluation.downstream.labelled_texts import LabelledTexts, labelled
from fsae.sources.files import standard_library

# Lines of a passage, and passages of one file at most, so that no file fills the sample.
_LINES = 12
_OF_A_FILE = 8
# Where packages of Debian have sources.
_JAVA = ("/usr/lib/jvm", "*/lib/src.zip")
_GCC = ("/usr/src", "gcc-*/gcc-*.tar.xz")
# Tests of GCC's analyzer and of its warnings about memory.
_TESTS = re.compile(
    r"/gcc/testsuite/gcc\.dg/(analyzer/[^/]+|(Wuse-after-free|Wfree|Warray-bounds|Wstringop|Wuninit|Wnull)[^/]*)\.c$"
)
# In GNU's style a function's braces are in the first column.
_FUNCTION = re.compile(r"^[A-Za-z_][^;{}#]*?\b(\w+) ?\([^;{}]*\)\s*^\{.*?^\}", re.MULTILINE | re.DOTALL)
# The number of a file in its series, as in malloc-1 and Warray-bounds-23a.
_NUMBER = re.compile(r"-?\d+[a-z]?$")
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


def python_or_c(headers: Sequence[Path] = ()) -> LabelledTexts:
    """Return passages of Python's standard library and of C headers.

    Args:
        headers: C headers; empty for Python's own and the system's.

    Raises:
        ValueError: there is no header.
    """
    places = (Path(sysconfig.get_path("include")), Path("/usr/include"))
    found = headers or sorted(path for place in places for path in place.glob("*.h"))
    if not found:
        raise ValueError("there is no C header on this machine: apt-get install libc6-dev, or leave out python_or_c")
    c = (text for path in found for text in _passages(path.read_text(errors="replace")))
    return labelled("python_or_c", [*((text, "python") for text in _python()), *((text, "c") for text in c)])


def python_or_java(archive: Path | None = None) -> LabelledTexts:
    """Return passages of Python's standard library and of Java's.

    Args:
        archive: the sources of Java; None for those of the package openjdk-17-source, or of another version.

    Raises:
        ValueError: there are no sources of Java.
    """
    found = archive or _first(*_JAVA, "openjdk-17-source", "python_or_java")
    with ZipFile(found) as opened:
        names = [name for name in opened.namelist() if re.search(r"(^|/)java/\w+/\w+\.java$", name)]
        java = [text for name in names for text in _passages(opened.read(name).decode(errors="replace"))]
    return labelled("python_or_java", [*((text, "python") for text in _python()), *((text, "java") for text in java)])


def c_defects(archive: Path | None = None) -> LabelledTexts:
    """Return C functions of GCC's tests, with a defect that GCC must warn of, and without.

    They are short and made for a compiler, and no project's code as Devign's are. Comments, which hold the expected
    warnings, are removed, and a function's name, which may give the answer, is `f`. Tests of the analyzer's own state
    are left out. The files of a series, such as malloc-1.c and malloc-2.c, are a group: their functions share names, by
    which a probe would know the file.

    Args:
        archive: the sources of GCC; None for those of the package gcc-12-source, or of another version.

    Raises:
        ValueError: there are no sources of GCC.
    """
    found = archive or _first(*_GCC, "gcc-12-source", "c_defects")
    pairs, series = [], []
    with tarfile.open(found) as opened:
        for member in opened:
            if not _TESTS.search(f"/{member.name}") or (stream := opened.extractfile(member)) is None:
                continue
            own = _NUMBER.sub("", Path(member.name).stem)
            for function in _FUNCTION.finditer(stream.read().decode(errors="replace")):
                text = function[0]
                if "__analyzer_" in text or "xfail" in text:
                    continue
                has_defect = "dg-warning" in text
                text = re.sub(rf"\b{function[1]}\b", "f", _COMMENT.sub("", text))
                pairs.append((re.sub(r"[ \t]+\n", "\n", text), "defect" if has_defect else "clean"))
                series.append(own)
    return replace(labelled("c_defects", pairs), groups=np.unique(series, return_inverse=True)[1])


CODE_TEXTS: dict[str, Callable[[], LabelledTexts]] = {
    "python_or_c": python_or_c,
    "python_or_java": python_or_java,
    "c_defects": c_defects,
}


def _python() -> Iterator[str]:
    for path in standard_library():
        yield from _passages(Path(path).read_text(errors="replace"))


def _passages(text: str) -> list[str]:
    """Return passages of a file, evenly spread over it."""
    lines = text.splitlines()
    found = ["\n".join(lines[begin : begin + _LINES]) for begin in range(0, len(lines) - _LINES + 1, _LINES)]
    return found[:: max(1, len(found) // _OF_A_FILE)][:_OF_A_FILE]


def _first(folder: str, pattern: str, package: str, name: str) -> Path:
    found = sorted(Path(folder).glob(pattern))
    if not found:
        raise ValueError(
            f"there is no {folder}/{pattern} on this machine: apt-get install {package}, or leave out {name}"
        )
    return found[0]

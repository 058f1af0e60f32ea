import io
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from fsae.evaluation.downstream import code_texts
from fsae.evaluation.downstream.code_texts import c_defects, python_or_c, python_or_java

TESTS = """#include <stdlib.h>
void test_leak (int n)
{
  void *p = malloc (n); /* { dg-message "allocated here" } */
} /* { dg-warning "leak of 'p'" } */

void
other (void *p)
{
  free (p);
  free (p); /* { dg-warning "double-'free' of 'p'" } */
}

static int nowarn_1 (int x)
{
  // nothing is wrong here
  return x ? nowarn_1 (x - 1) : 0;
}

void state (void)
{
  __analyzer_eval (1); /* { dg-warning "TRUE" } */
}
"""


def test_functions_of_compiler_tests_have_the_label_and_do_not_show_it(tmp_path: Path):
    archive = tmp_path / "gcc.tar.xz"
    with tarfile.open(archive, "w:xz") as opened:
        names = ("analyzer/leak-1.c", "analyzer/leak-12a.c", "analyzer/double-free.c", "Wfree-2.c", "other.c")
        for number, name in enumerate(f"gcc-12/gcc/testsuite/gcc.dg/{each}" for each in names):
            # The first file has all functions, and each other one has a function of its own.
            data = (TESTS if number == 0 else f"int g{number} (void)\n{{\n  return {number};\n}}\n").encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    found = c_defects(archive)
    assert (found.counts, found.classes) == ([5, 1], ["clean", "defect"])
    assert found.texts[1].startswith("void\nf (void *p)\n{\n  free (p);")
    # leak-1 and leak-12a are one series, and other.c is no test of memory.
    assert found.groups is not None
    assert found.groups.tolist() == [2, 2, 2, 2, 1, 0]
    assert found.texts[2] == "static int f (int x)\n{\n\n  return x ? f (x - 1) : 0;\n}"
    assert not [text for text in found.texts if "warn" in text or "/*" in text or "__analyzer" in text]


def test_passages_of_two_languages(tmp_path: Path):
    header, java = tmp_path / "a.h", "\n".join(f"int j{line};" for line in range(500))
    header.write_text("\n".join(f"int c{line};" for line in range(30)))
    found = python_or_c([header])
    assert (found.classes, found.counts[0]) == (["c", "python"], 2)
    assert found.counts[1] > 1000
    with ZipFile(tmp_path / "src.zip", "w") as archive:
        archive.writestr("java.base/java/util/List.java", java)
        archive.writestr("java.base/sun/misc/Unsafe.java", java)
    found = python_or_java(tmp_path / "src.zip")
    assert (found.classes, found.counts[0]) == (["java", "python"], 8)


def test_sources_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(code_texts, "_GCC", (str(tmp_path), "gcc-*"))
    with pytest.raises(ValueError, match="apt-get install gcc-12-source, or leave out c_defects"):
        c_defects()

"""The source's syntax trees: outside its package, no code depends on which class of it an object has."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsae

PACKAGE = Path(fsae.__file__).parent
# Packages whose choices others may add to: nothing outside may depend on which class one is. Whether an object is one
# at all, a class of the second column, may be asked: of a user's YAML, for instance.
OPEN = {
    "autoencoders": set(),
    "sources": set(),
    "training": set(),
    "losses": {"LossTerm"},
    "evaluation": {"Evaluation"},
}


def trees(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text())


def classes_of(package: str) -> set[str]:
    """Return the names of a package's classes, except for its exceptions."""
    found = [node for _, tree in trees(PACKAGE / package) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {node.name for node in found if not any("Exception" in ast.unparse(base) for base in node.bases)}


def questions(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """Yield each isinstance or issubclass, and each comparison of a type, that names one of the classes."""
    for node in ast.walk(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked = node.args[1:]
        elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node.left):
            asked = node.comparators
        elif isinstance(node, ast.match_case) and isinstance(node.pattern, ast.MatchClass):
            asked = [node.pattern.cls]
        named = {name.id for each in asked for name in ast.walk(each) if isinstance(name, ast.Name)}
        if named & names:
            yield ast.unparse(node)


@pytest.mark.parametrize("package", OPEN)
def test_nothing_outside_a_package_asks_which_of_its_classes_one_is(package: str):
    names = classes_of(package) - OPEN[package]
    assert names
    outside = [(path, tree) for path, tree in trees(PACKAGE) if not path.startswith(f"{package}/")]
    assert [f"{path}, {found}" for path, tree in outside for found in questions(tree, names)] == []


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(x, TopK)",
        "isinstance(x, Gated | TopK)",
        "issubclass(kind, (Gated, TopK))",
        "type(x) is TopK",
        "match x:\n    case TopK():\n        pass",
    ],
)
def test_a_question_is_found(code: str):
    assert len(list(questions(ast.parse(code), {"TopK"}))) == 1
    assert not list(questions(ast.parse(code), {"Other"}))

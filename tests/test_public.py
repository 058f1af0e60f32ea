"""`import fsae`: the public names, what importing costs, and what type checkers see."""

import importlib
import importlib.metadata
import inspect
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType

import pytest

import fsae

HEAVY = {"torch", "numpy", "pandas", "hydra", "omegaconf", "transformers", "transformer_lens", "mlflow", "matplotlib"}


def fresh(code: str) -> str:
    """What a new process prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_it_imports_nothing_heavy():
    code = f"import sys, fsae; fsae.__version__; print(*sorted({HEAVY!r} & set(sys.modules)))"
    assert fresh(code) == ""


def test_collecting_imports_no_torch():
    assert fresh("import sys, fsae; fsae.collect; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize("name", fsae.__all__)
def test_every_public_name_is_there_and_listed(name: str):
    assert getattr(fsae, name) is not None
    assert name in dir(fsae)


@pytest.mark.parametrize("name", sorted(set(fsae.__all__) - {"__version__"}))
def test_every_public_name_is_documented_and_typed(name: str):
    thing = getattr(fsae, name)
    assert inspect.getdoc(thing)
    members = [each for key, each in vars(thing).items() if not key.startswith("_")] if inspect.isclass(thing) else []
    functions = [each for each in members if inspect.isfunction(each)]
    if inspect.isfunction(thing):
        functions.append(thing)
    for function in functions:
        assert function.__doc__, function
        signature = inspect.signature(function)
        parameters = [each for each in signature.parameters.values() if each.name != "self"]
        untyped = [each.name for each in parameters if each.annotation is inspect.Parameter.empty]
        assert untyped == [], function
        assert signature.return_annotation is not inspect.Signature.empty, function


def test_the_version_is_the_package_s():
    assert fsae.__version__ == importlib.metadata.version("fsae")


def test_an_unknown_name_is_refused_with_those_that_there_are():
    with pytest.raises(AttributeError, match=r"has no attribute 'lod'; it has .*load"):
        getattr(fsae, "lod")  # noqa: B009


def test_no_module_takes_the_place_of_a_public_name():
    """As Python does when it imports the command's module fsae/evaluate.py."""
    fsae.evaluate = ModuleType("fsae.evaluate")
    assert inspect.isfunction(fsae.evaluate)


def test_the_functions_stay_functions_when_every_command_is_imported():
    package = Path(fsae.__file__).parent
    for path in sorted(package.glob("*.py")):
        if path.stem != "__init__":
            importlib.import_module(f"fsae.{path.stem}")
    assert all(inspect.isfunction(getattr(fsae, name)) for name in ("load", "save", "train", "evaluate", "collect"))


def test_other_attributes_of_the_package_can_be_set():
    """As tests that patch modules do."""
    module = ModuleType("fsae.something")
    setattr(fsae, "something", module)  # noqa: B010
    try:
        assert typing.cast(typing.Any, fsae).something is module
    finally:
        delattr(fsae, "something")


def test_the_package_is_marked_as_typed():
    assert (Path(fsae.__file__).parent / "py.typed").is_file()

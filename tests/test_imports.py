"""The source's syntax trees: who may import whom, one home for each foreign package, and nothing slow at import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

import fsae

PACKAGE = Path(fsae.__file__).parent

# A module imports from earlier layers and from its own package, not from its neighbours in the layer. It belongs to the
# longest name here that it begins with.
LAYERS = [
    {"credentials"},
    {"console", "ranges"},
    {
        "progress",
        "plugins",
        "seeds",
        "naming",
        "wording",
        "files",
        "errors",
        "memory",
        "matching",
        "threads",
    },
    {"language_models.settings"},
    {"devices", "language_models.sites"},
    {"sparse"},
    {"autoencoders", "language_models"},
    {"losses", "language_models.interventions"},
    {"couplings"},
    {"sources", "export"},
    {"outputs"},
    {"latents"},
    {"evaluation"},
    {"training"},
    {"tracking"},
    {"configuration"},
    {"runs"},
    {"surface"},
    {"publishing"},
    {"sweeps"},
    {"commands"},
    {"__main__"},
    {"run", "evaluate", "publish", "report", "resume", "steer", "store", "sync", "latents.__main__"},
]
# Outside the layers: it reads what runs leave behind, through the readers of tracking, and knows no torch.
APART = "analysis"
# Who has it make pictures and pages.
SHOWING = (
    "evaluation",
    "runs",
    "surface.collection",
    "sweeps",
    "commands.report",
    "commands.latents",
    "surface.prompt",
)

# Where a foreign package may be imported at all; a folder ends with a dot.
HOMES = {
    "hydra": {"commands.run", "configuration.", "sweeps."},
    "omegaconf": {"commands.run", "configuration.", "sweeps."},
    "submitit": {"sweeps."},
    "joblib": {"sweeps.joblib_launcher"},
    "ray": {"sweeps.ray_launcher"},
    "mlflow": {"tracking.", "analysis."},
    "transformer_lens": {"language_models.transformer_lens"},
    "datasets": {"sources.documents"},
    "fsspec": {"sources.rows"},
    "pyarrow": {"sources.rows", "outputs.latent_store", "latents.findings"},
    "transformers": {"language_models."},
    "httpx2": {"latents.endpoint"},
    "huggingface_hub": {"language_models.hub", "publishing."},
    "matplotlib": {"analysis."},
    "pandas": {"analysis.", "latents.", "outputs.latent_store"},
    "jinja2": {"analysis.", "latents.prompts", "publishing.model_card"},
    "safetensors": {
        "evaluation.kept",
        "export.",
        "latents.unfinished",
        "language_models.transformer_lens",
        "sources.activation_store",
    },
    "xxhash": {"sources.activation_store"},
    "tqdm": {"console"},
    "scipy": {"analysis.intervals", "evaluation.", "matching", "latents.cofiring", "training.least_squares"},
    "sklearn": {"autoencoders.initialisation", "evaluation.", "training.fitted_learner", "sources.mnist"},
    "mne": {"sources.eeg"},
    "triton": {"sparse.triton_products"},
    "psutil": {"sweeps.joblib_launcher", "outputs.status", "memory"},
    "sae_lens": set(),
    "pickle": set(),
    "dill": set(),
}

# Each takes seconds: imported only inside the functions that use them, so that wrong settings are reported at once.
SLOW = {"transformer_lens", "transformers", "datasets", "mlflow", "huggingface_hub", "sae_lens", "scipy", "sklearn"}
SLOW |= {"ray", "submitit"}


@dataclass(frozen=True)
class Import:
    """One import statement: in which of our modules, of what, at which line, and whether it runs at import."""

    module: str
    imported: str
    line: int
    at_module_level: bool

    def __str__(self) -> str:
        return f"fsae.{self.module}, line {self.line}: {self.imported}"


def imports_in(module: str, tree: ast.AST) -> Iterator[Import]:
    """Those at module level and those inside functions; not those that only type checkers see."""
    nodes = [(tree, True)]
    while nodes:
        node, at_module_level = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, node.lineno, at_module_level) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"fsae.{module}, line {node.lineno}: a relative import"
            assert node.module
            # `from package import module` names a module too.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            ours = [name for name in names if name.removeprefix("fsae.") in MODULES]
            yield from (Import(module, name, node.lineno, at_module_level) for name in ours or [node.module])
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        inside = at_module_level and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        # No expression has an import.
        nodes += [(child, inside) for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_name(path): path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"
}


@cache
def all_imports() -> list[Import]:
    """Return every import statement of the package."""
    return [found for name, path in MODULES.items() for found in imports_in(name, ast.parse(path.read_text()))]


def place_of(module: str) -> tuple[int, str]:
    """A module's layer, and its package (or itself) within."""
    fitting = [(name, i) for i, layer in enumerate(LAYERS) for name in layer if _within(module, name)]
    assert fitting, f"fsae.{module} is in no layer; give it one in this file"
    name, layer = max(fitting, key=lambda found: len(found[0]))
    return layer, name


def _within(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def layer_breaches(imports: list[Import]) -> list[Import]:
    """Imports from later layers, and any between the layers and analysis that is not allowed."""
    found = []
    for each in imports:
        if not each.imported.startswith("fsae."):
            continue
        target = each.imported.removeprefix("fsae.")
        if _within(each.module, APART):
            if not any(_within(target, name) for name in (APART, "tracking", "outputs", "files", "wording")):
                found.append(each)
        elif _within(target, APART):
            if not any(_within(each.module, name) for name in SHOWING):
                found.append(each)
        else:
            (layer, package), (target_layer, target_package) = place_of(each.module), place_of(target)
            if target_layer > layer or (target_layer == layer and target_package != package):
                found.append(each)
    return found


def home_breaches(imports: list[Import]) -> list[Import]:
    def at_home(each: Import, homes: set[str]) -> bool:
        return any(f"{each.module}.".startswith(home) if home.endswith(".") else each.module == home for home in homes)

    packages = [(each, HOMES.get(each.imported.partition(".")[0])) for each in imports]
    return [each for each, homes in packages if homes is not None and not at_home(each, homes)]


def slow_imports(imports: list[Import]) -> list[Import]:
    return [each for each in imports if each.at_module_level and each.imported.partition(".")[0] in SLOW]


def test_layers_import_from_earlier_ones_only():
    assert [str(breach) for breach in layer_breaches(all_imports())] == []


def test_each_foreign_package_has_one_home():
    assert [str(breach) for breach in home_breaches(all_imports())] == []


def test_nothing_slow_is_imported_at_module_level():
    assert [str(breach) for breach in slow_imports(all_imports())] == []


def test_analysis_knows_no_torch():
    assert [
        str(each) for each in all_imports() if _within(each.module, APART) and each.imported.startswith("torch")
    ] == []


@pytest.mark.parametrize(
    ("module", "code", "breached"),
    [
        ("losses.term", "from fsae.training.loop import Training", layer_breaches),
        ("losses.term", "def f():\n    import fsae.sources.documents", layer_breaches),
        ("sparse.codes", "from fsae.autoencoders import gated", layer_breaches),
        ("autoencoders.gated", "from fsae.losses.term import LossTerm", layer_breaches),
        ("training.loop", "from fsae.analysis.run_plots import plot_training", layer_breaches),
        ("analysis.run_plots", "from fsae.autoencoders.autoencoder import Autoencoder", layer_breaches),
        ("training.loop", "import omegaconf", home_breaches),
        ("evaluation.splice", "def f():\n    from transformer_lens import HookedTransformer", home_breaches),
        ("export.saelens", "def f():\n    import sae_lens", home_breaches),
        ("tracking.server", "import mlflow.tracking", slow_imports),
        ("tracking.server", "class A:\n    from transformers import AutoModel", slow_imports),
    ],
)
def test_a_breach_is_found(module: str, code: str, breached):
    assert len(breached(list(imports_in(module, ast.parse(code))))) == 1


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("tracking.server", "def f():\n    import mlflow"),
        ("sources.documents", "if TYPE_CHECKING:\n    from datasets import IterableDataset"),
        ("training.loop", "from fsae.sources.source import Source\nfrom fsae.training import settings"),
        ("runs.outcome", "from fsae.analysis.run_plots import plot_training"),
    ],
)
def test_what_is_allowed_is_not_called_a_breach(module: str, code: str):
    imports = list(imports_in(module, ast.parse(code)))
    assert [*layer_breaches(imports), *home_breaches(imports), *slow_imports(imports)] == []


def test_every_module_imports_without_what_is_slow():
    """An import through another module is as slow as a direct one."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(f'fsae.{name}')\n"
        f"print(*sorted({SLOW - {'scipy', 'sklearn'}!r} & set(sys.modules)))\n"
    )
    # Triton comes with torch for GPUs, and elsewhere on Linux only.
    modules = [name for name in MODULES if find_spec("triton") or name != "sparse.triton_products"]
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

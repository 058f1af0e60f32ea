"""Sparse autoencoders on language-model activations and other vectors: the names below are the public surface.

    import fsae

    dictionary = fsae.train(vectors, "topk", k=32)      # or fsae.load("outputs/runs/RUN")
    codes = dictionary.encode(vectors)

Each name is imported when it is first used, so that `import fsae` is quick; everything else in the package is internal.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsae.export.provenance import Provenance
    from fsae.language_models.interventions import Ablate, Add, Clamp, Scale
    from fsae.surface.collection import collect
    from fsae.surface.dictionary import Dictionary, load, save
    from fsae.surface.evaluation import Numbers, evaluate
    from fsae.surface.language_model import Activations, LanguageModel, language_model
    from fsae.surface.steering import Steered, Steering, steer
    from fsae.surface.training import train

    __version__: str

__all__ = [
    "Ablate",
    "Activations",
    "Add",
    "Clamp",
    "Dictionary",
    "LanguageModel",
    "Numbers",
    "Provenance",
    "Scale",
    "Steered",
    "Steering",
    "__version__",
    "collect",
    "evaluate",
    "language_model",
    "load",
    "save",
    "steer",
    "train",
]

_HOMES = {
    "Ablate": "fsae.language_models.interventions",
    "Activations": "fsae.surface.language_model",
    "Add": "fsae.language_models.interventions",
    "Clamp": "fsae.language_models.interventions",
    "Dictionary": "fsae.surface.dictionary",
    "LanguageModel": "fsae.surface.language_model",
    "Numbers": "fsae.surface.evaluation",
    "Provenance": "fsae.export.provenance",
    "Scale": "fsae.language_models.interventions",
    "Steered": "fsae.surface.steering",
    "Steering": "fsae.surface.steering",
    "collect": "fsae.surface.collection",
    "evaluate": "fsae.surface.evaluation",
    "language_model": "fsae.surface.language_model",
    "load": "fsae.surface.dictionary",
    "save": "fsae.surface.dictionary",
    "steer": "fsae.surface.steering",
    "train": "fsae.surface.training",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fsae")
    if name not in _HOMES:
        raise AttributeError(f"module 'fsae' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package, in which no module takes the place of a public name."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Python sets a module as an attribute of its package: fsae.evaluate is also the module of a command.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that pictures were written of."""
    written: list[Figure] = []
    save = Figure.savefig

    def savefig(self: Figure, picture: Path, **settings: Any) -> None:
        save(self, picture, **settings)
        written.append(self)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return written

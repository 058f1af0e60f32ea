"""Finished runs, trained once: one on a language model, one of a population without a language model."""

from functools import cache
from pathlib import Path

import pytest

from tests.processes import finished


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs' folders: `text`, whose latents are examined, and `population`."""
    return _trained(tmp_path_factory.getbasetemp() / "finished_runs")


# Two packages of tests have the fixture, each as its own.
@cache
def _trained(outputs: Path) -> dict[str, Path]:
    text = ["debug=tiny", "arch=topk", "arch.d_sae=48", "arch.k=4", "trainer.samples=4096", "source.tokens=4096"]
    text += ["source.shard_tokens=4096", "eval=[vectors,latents]", "eval.latents.tokens=4000", "eval.latents.control=0"]
    population = ["source=sparse_sources", "population.size=2", "arch=kmeans", "arch.d_sae=8", "trainer.samples=4096"]
    population += [
        "eval.latents.control=0",
        "suite=quick",
        "tracking=none",
        "eval=[vectors,latents]",
        "eval.latents.tokens=500",
    ]
    for name, words in (("text", text), ("population", population)):
        done = finished(f"name={name}", *words, outputs=outputs)
        assert done.returncode == 0, done.stdout
    return {name: next((outputs / "runs").glob(f"{name}-*")) for name in ("text", "population")}

"""Run folders as runs write them, with numbers that are a known function of their settings."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsae.files import write_json
from fsae.outputs.metric_log import MetricLog
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import Failure, RunState, mark
from fsae.tracking.mlflow_upload import describe_run
from tests.evaluation.meanings import MEANINGS

# Active latents at sparsity weight 1 without a penalty; the weight divides it.
L0 = {"standard": 90.0, "gated": 60.0, "jumprelu": 40.0}


def results_of(arch: str, theta: float, weight: float, seed: int, *, effect: float, noise: float) -> dict[str, Any]:
    """Return held-out numbers: fvu is 0.5 - 0.07 ln(l0), plus `effect` with a penalty of any weight, which also lowers
    l0 by a fifth. The noise differs by seed and treatment."""
    draw = np.random.default_rng([seed, sorted(L0).index(arch), int(1e6 * theta), int(1000 * weight)])
    of_seed = np.random.default_rng([seed, sorted(L0).index(arch), int(1e6 * theta)]).normal() * noise
    l0 = L0[arch] / weight * (0.8 if theta else 1.0) * float(np.exp(0.02 * draw.normal()))
    fvu = 0.5 - 0.07 * np.log(l0) + (effect if theta else 0.0) + of_seed
    edges = np.linspace(-6, 0, 61)
    centre = np.log10(l0 / 2048)
    latents = 400 * np.exp(-0.5 * ((edges[:-1] - centre) / (0.5 if theta else 0.7)) ** 2)
    return {
        "eval/fvu": float(fvu),
        "eval/l0": float(l0),
        "eval/description_length": float(10 * l0),
        "eval/ce_recovered_zero": float(1 - 0.3 * fvu),
        "eval/dead_share": float(0.02 + 0.01 * draw.random()),
        "eval/dense_share": 0.01,
        "eval/code_correlation_excess": float((0.002 if theta else 0.004) + 2e-4 * draw.normal()),
        "eval/decoder_max_cosine": float(0.3 + 0.01 * draw.normal()),
        "eval/fisher_ratio": 0.5,
        "eval/fisher_batch": 1024.0,
        "density_histogram": {"log10_edges": edges.tolist(), "latents": latents.round().tolist()},
    }


def write_run(
    folder: Path,
    settings: Mapping[str, Any],
    results: Mapping[str, Any] | None,
    *,
    uri: str = "sqlite:////nowhere/mlflow.db",
    tags: Mapping[str, str] | None = None,
    state: RunState = RunState.finished,
    failure: Failure | None = None,
) -> None:
    """Write a run's folder, with all files that a report reads."""
    folder.mkdir(parents=True)
    describe_run(
        folder,
        uri=uri,
        outputs=folder.parent,
        experiment="fsae",
        run_name=folder.name,
        params={key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()},
        tags=tags or {},
    )
    mark(folder, RunState.running)
    if results is not None:
        names = {name.removeprefix("eval/") for name in results}
        meanings = {f"eval/{name}": meaning.as_json() for name, meaning in MEANINGS.items() if name in names}
        write_json(RunFolder(folder).results, {**results, "meanings": meanings})
        log = MetricLog(RunFolder(folder).metrics)
        log.append({name: math.nan if x is None else x for name, x in results.items() if name.startswith("eval/")}, 100)
        log.close()
    mark(folder, state, failure)


def settings_of(arch: str, theta: float, weight: float, seed: int, **more: Any) -> dict[str, Any]:
    """Return some of the flat settings that runs record."""
    own = {"arch.bandwidth": 0.1} if arch == "jumprelu" else {}
    return {
        "task": "train",
        "name": None,
        "seed": seed,
        "paths.outputs": "/somewhere",
        "model.name": "smollm2_135m_instruct_q4_1",
        "site.name": "resid_mid",
        "site.layer": 5,
        "arch": arch,
        "arch.d_sae": 2048,
        **own,
        "loss.penalty.weight": float(theta),
        "loss.penalty.form": "reconstruction",
        "loss.sparsity.weight": float(weight),
        "source.seed": seed,
        "trainer.samples": 500_000,
        **more,
    }


def write_sweep(
    folder: Path,
    *,
    archs: Sequence[str] = ("gated", "jumprelu"),
    thetas: Sequence[float] = (0.0, 0.01),
    weights: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    effect: float = -0.02,
    noise: float = 0.003,
    uri: str = "sqlite:////nowhere/mlflow.db",
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a sweep's folder with one finished run per combination, and `more` settings in all of them."""
    for number, (arch, theta, weight, seed) in enumerate(itertools.product(archs, thetas, weights, seeds)):
        write_run(
            folder / str(number),
            settings_of(arch, theta, weight, seed, **(more or {})),
            results_of(arch, theta, weight, seed, effect=effect, noise=noise),
            uri=uri,
            tags={"fsae.sweep": "2026-11-21/14-00-00", "fsae.kind": "train", "mlflow.source.git.commit": "0" * 40},
        )

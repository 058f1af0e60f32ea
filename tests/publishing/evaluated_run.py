"""The folder of a run with one file per evaluation that SAEBench has, too, as a suite writes them."""

from pathlib import Path
from typing import Any

from fsae.evaluation.absorption import Absorption
from fsae.evaluation.downstream.k_sparse import Protocol
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.probing import Probing
from fsae.evaluation.ravel import Ravel
from fsae.evaluation.scr import Scr
from fsae.evaluation.splice import Splice
from fsae.evaluation.suite import Findings
from fsae.evaluation.tpp import Tpp
from fsae.evaluation.vectors import Vectors
from fsae.files import write_json
from fsae.outputs.run_folder import RunFolder
from fsae.sources.supply import Supply

SAE = {
    "model_name": "tiny",
    "hook_name": "blocks.1.hook_resid_mid",
    "architecture": "batch_topk",
    "d_in": 16,
    "d_sae": 4608,
    "training_tokens": 100_000,
    "dataset_path": "text",
    "context_size": 128,
    "exclude_special_tokens": True,
}
VECTORS = {"l0": 32.5, "cosine": 0.9, "l2_ratio": 0.95, "dead_share": 0.25, "fvu": 0.1, "mse": 3.0}
SPLICE = {"ce_base": 3.0, "ce_spliced": 3.2, "ce_zero": 7.0, "ce_recovered_zero": 0.95, "kl": 0.2}


def scores(*names: str, counts: tuple[int, ...] = (2, 20)) -> dict[str, dict[str, float]]:
    """Return scores that are the number of latents over 100, plus the place of the name."""
    return {name: {str(count): place + count / 100 for count in counts} for place, name in enumerate(names)}


def questions() -> dict[str, Any]:
    """Return the scores of two classes of one data set and of one question, for k of 1 and 16."""
    return {
        name: {"latents": {"normal": [value, 0.9]}, "neurons": {"normal": [value - 0.2, 0.8]}, "words": {"normal": [1]}}
        for name, value in (("ag_news: 0", 0.6), ("ag_news: 1", 0.8), ("spam", 0.75))
    }


def write_run(folder: Path, protocol: Protocol = Protocol.saebench) -> Path:
    """Write the evaluations of a run into its folder, and return the folder."""
    metric = protocol.metric
    evaluations: dict[str, tuple[Evaluation, Measured]] = {
        "vectors": (Vectors(samples=4096), Measured([VECTORS])),
        "splice": (Splice(tokens=2048), Measured([SPLICE])),
        "absorption": (
            Absorption(),
            Measured([{"absorption": 0.3, "absorption_full": 0.2, "absorption_splits": 1.5, "absorption_noise": 0.01}]),
        ),
        "ravel": (
            Ravel(),
            Measured([{"ravel_disentanglement": 0.5, "ravel_cause": 0.6, "ravel_isolation": 0.4}]),
        ),
        "probing": (
            Probing(protocol=protocol, k=[1, 16]),
            Measured(
                [{f"probing_{metric}_k1": 0.7, f"probing_{metric}_k1_neurons": 0.5, f"probing_{metric}_k16": 0.9}],
                content={"probing_sets": [questions()]},
            ),
        ),
        "scr": (
            Scr(n=[2, 20]),
            Measured([{"scr_n2": 0.5}], content={"scr_pairs": [{"science": scores("scr", "dir1", "dir2")}]}),
        ),
        "tpp": (
            Tpp(n=[2, 20]),
            Measured(
                [{"tpp_n2": 0.5}],
                content={"tpp_sets": [{name: scores("tpp", "intended", "unintended") for name in ("news", "disease")}]},
            ),
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: measured for name, (_, measured) in evaluations.items()}
    files = RunFolder(folder)
    Findings({name: each for name, (each, _) in evaluations.items()}, found, Supply()).write(files)
    judged = {"autointerp_saebench_raw": 0.8, "autointerp_latents": 100}
    write_json(files.evaluations / "autointerp.json", {"settings": {"seed": 0}, "numbers": judged, "meanings": {}})
    return folder

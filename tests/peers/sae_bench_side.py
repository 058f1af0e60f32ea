"""The side of sae-probes and SAEBench in these tests: run with a Python that has them, and never imported.

sae_bench_side.py probes INPUTS OUT     rankings and probes of INPUTS' train, train_labels, test, test_labels
sae_bench_side.py files FOLDER OUT      result files of FOLDER, by SAEBench's classes and plots
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

KS = (1, 5, 16)
# Training rows: pairs are left out, six parts validate in turn, and the last fifth validates.
SIZES = (10, 60, 200)
SEED = 42


def probes(inputs: str, out: str) -> None:
    """Write the rankings, and the probes of each number of rows and latents, as JSON."""
    from sae_bench.evals.sparse_probing.probe_training import get_top_k_mean_diff_mask, train_sklearn_probe
    from sae_probes.run_sae_evals import get_sorted_indices, mean_act_normalization
    from sae_probes.utils_training import find_best_reg

    data = load_file(inputs)
    train, labels, test, test_labels = (data[name] for name in ("train", "train_labels", "test", "test_labels"))
    scaled = mean_act_normalization(train)
    found: dict[str, Any] = {
        "normalised": (scaled[labels == 1].mean(0) - scaled[labels == 0].mean(0)).tolist(),
        "order": get_sorted_indices(train, labels.numpy(), mean_act_normalization).tolist(),
        "probes": {},
        "saebench": {},
    }
    for k in KS:
        chosen = found["order"][:k]
        for rows in SIZES:
            for penalty in ("l1", "l2"):
                if (rows, penalty) == (10, "l1"):
                    continue
                result = find_best_reg(
                    train[:rows, chosen].numpy(), labels[:rows].numpy(), test[:, chosen].numpy(), test_labels.numpy(),
                    penalty=penalty, seed=SEED,
                )  # fmt: skip
                found["probes"][f"{k} {rows} {penalty}"] = {
                    "test_auc": result.metrics.test_auc,
                    "val_auc": result.metrics.val_auc,
                    "weights": result.classifier.coef_[0].tolist(),
                    "strength": float(result.classifier.C),
                }
        mask = get_top_k_mean_diff_mask(train, labels.int(), k)
        _, accuracy = train_sklearn_probe(
            train[:, ~mask], labels.int(), test[:, ~mask], test_labels.int(), verbose=False
        )
        found["saebench"][str(k)] = {"chosen": (~mask).nonzero().flatten().tolist(), "accuracy": float(accuracy)}
    Path(out).write_text(json.dumps(found))


def files(folder: str, out: str) -> None:
    """Validate every file, read all by the functions of the plots, draw them, and write what was read as JSON."""
    import matplotlib

    matplotlib.use("agg")
    from pydantic import TypeAdapter
    from sae_bench.evals.absorption.eval_output import AbsorptionEvalOutput
    from sae_bench.evals.autointerp.eval_output import AutoInterpEvalOutput
    from sae_bench.evals.core.eval_output import CoreEvalOutput
    from sae_bench.evals.ravel.eval_output import RAVELEvalOutput
    from sae_bench.evals.scr_and_tpp.eval_output import ScrEvalOutput, TppEvalOutput
    from sae_bench.evals.sparse_probing.eval_output import SparseProbingEvalOutput
    from sae_bench.evals.sparse_probing_sae_probes.eval_output import SparseProbingSaeProbesEvalOutput
    from sae_bench.sae_bench_utils import graphing_utils

    classes = {
        "core": CoreEvalOutput,
        "sparse_probing": SparseProbingEvalOutput,
        "sparse_probing_sae_probes": SparseProbingSaeProbesEvalOutput,
        "absorption_first_letter": AbsorptionEvalOutput,
        "ravel": RAVELEvalOutput,
        "autointerp": AutoInterpEvalOutput,
        "scr": ScrEvalOutput,
        "tpp": TppEvalOutput,
    }
    # Paths below the folder, because SAEBench reads the kind of a file from its whole path.
    os.chdir(folder)
    found: dict[str, Any] = {"accepted": {}, "unknown": {}, "results": {}, "drawn": []}
    core_files = sorted(map(str, Path("core").glob("*.json")))
    found["core"] = graphing_utils.get_core_results(core_files)
    for kind, output in classes.items():
        paths = sorted(map(str, Path(kind).glob("*.json")))
        for path in paths:
            text = Path(path).read_text()
            accepted = json.loads(TypeAdapter(output).dump_json(TypeAdapter(output).validate_json(text)))
            written = json.loads(text)
            for part in ("eval_config", "eval_result_metrics"):
                unknown = keys(written[part]) - keys(accepted[part]) - {"fsae"} - keys(written[part].get("fsae", {}))
                if unknown:
                    found["unknown"][f"{kind} {part}"] = sorted(unknown)
        found["accepted"][kind] = len(paths)
        if kind in ("core", "ravel"):
            continue
        results = graphing_utils.get_eval_results(paths)
        found["results"][kind] = next(iter(results.values()))
        if kind != "sparse_probing_sae_probes":
            cores = [path.replace(kind, "core", 1) for path in paths]
            graphing_utils.plot_results(
                paths, cores, kind, str(Path(out).with_name(kind)), k=1 if "probing" in kind else 20
            )
            found["drawn"].append(kind)
    found["drawn"].sort()
    Path(out).write_text(json.dumps(found))


def keys(content: dict[str, Any]) -> set[str]:
    """Return the names in nested JSON."""
    return set(content) | {name for value in content.values() if isinstance(value, dict) for name in keys(value)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"probes": probes, "files": files}[sys.argv[1]](*sys.argv[2:])

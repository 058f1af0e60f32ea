"""The side of sae-probes and SAEBench in these tests: run with a Python that has them, and never imported.

sae_bench_side.py probes INPUTS OUT     rankings and probes of INPUTS' train, train_labels, test, test_labels
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import json
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"probes": probes}[sys.argv[1]](*sys.argv[2:])

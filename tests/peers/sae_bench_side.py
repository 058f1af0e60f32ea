"""The side of sae-probes and SAEBench in these tests: run with a Python that has them, and never imported.

sae_bench_side.py probes INPUTS OUT     rankings and probes of INPUTS' train, train_labels, test, test_labels
sae_bench_side.py evaluations FOLDER OUT   whole evaluations on FOLDER's activations and dictionaries
sae_bench_side.py files FOLDER OUT      result files of FOLDER, by SAEBench's classes and plots
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import json
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

KS = (1, 5, 16)
# Training rows: pairs are left out, six parts validate in turn, and the last fifth validates.
SIZES = (10, 60, 200)
SEED = 42
# Whole evaluations: data sets of sae-probes, values of k, training rows of its scarce setting, and seeds of that.
MODEL, HOOK = "letters", "blocks.2.hook_resid_post"
SETS = ("105_click_bait", "159_code_Python")
TOP, SCARCE, SEEDS = (1, 5, 16), 256, (42, 43)
TOP_OF_SAEBENCH = (1, 2, 5)
# SAEBench's classes of its first data set, and numbers of ablated latents.
CLASSES = ("0", "1", "2", "6", "9")
ABLATED = (5, 10, 20)
# Texts per quadrant that train and test probes of SCR.
TRAIN, TEST = 400, 200
# Latents of a letter, at most.
MOST_LATENTS = 3


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


class Sae:
    """A ReLU dictionary as SAEBench asks for one."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, path: Path):
        weights = load_file(path)
        self.W_enc, self.W_dec, self.b_enc, self.b_dec = (
            weights[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")
        )
        self.cfg = SimpleNamespace(d_sae=len(self.W_dec), hook_layer=2, hook_name=HOOK)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes @ self.W_dec + self.b_dec


def evaluations(folder: str, out: str) -> None:
    """Write the results of whole evaluations as JSON."""
    # With versions of jaxtyping newer than SAEBench's, names of dimensions in nested functions exclude each other.
    os.environ["JAXTYPING_DISABLE"] = "1"
    root = Path(folder)
    sae = Sae(root / "sae.safetensors")
    found: dict[str, Any] = {
        "sae_probes": of_sae_probes(sae, root),
        "sparse_probing": of_sparse_probing(sae, root),
        "absorption": of_absorption(Sae(root / "words_sae.safetensors"), root),
        "tpp": of_tpp(sae, root),
    }
    found["scr"], found["scr_probes"] = of_scr(Sae(root / "pairs_sae.safetensors"), root)
    Path(out).write_text(json.dumps(found))


def of_sae_probes(sae: Sae, root: Path) -> dict[str, Any]:
    """Return areas under ROC: a list over k in the normal setting, and with few rows the mean over seeds at k=16."""
    from sae_probes.run_sae_evals import run_sae_eval

    def run(name: str, setting: Any, **more: Any) -> list[float]:
        results = root / f"results {name} {setting} {more.get('seed', '')}"
        run_sae_eval(
            sae, name, HOOK, "l1", setting, MODEL, root / "cache", device="cpu", results_path=results, **more
        )  # fmt: skip
        (path,) = results.rglob("*.json")
        return [each["test_auc"] for each in json.loads(path.read_text())]

    return {
        name: {
            "normal": run(name, "normal", ks=list(TOP)),
            "scarcity": float(
                np.mean([run(name, "scarcity", ks=[16], num_train=SCARCE, seed=seed)[0] for seed in SEEDS])
            ),
        }
        for name in SETS
    }


def of_sparse_probing(sae: Sae, root: Path) -> dict[str, float]:
    from sae_bench.evals.sparse_probing import main
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

    (root / "letters_activations.pt").write_bytes((root / "letters.pt").read_bytes())
    config = SparseProbingEvalConfig(k_values=list(TOP_OF_SAEBENCH), lower_vram_usage=True)
    # The language model is only moved between devices.
    model = SimpleNamespace(to=lambda device: None)
    torch.manual_seed(SEED)
    results, _ = main.run_eval_single_dataset("letters", config, sae, model, 2, HOOK, "cpu", str(root), False)
    return results


def ablations(sae: Sae, root: Path, parts: list[dict[str, torch.Tensor]], scr: bool) -> tuple[Any, Any, Any]:
    """Run SCR or TPP with its own probes on given activations; return accuracies, clean ones and the probes."""
    from sae_bench.evals.scr_and_tpp import main
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    main.get_dataset_activations = lambda *_, **__: parts
    config = ScrAndTppEvalConfig(perform_scr=scr, n_values=list(ABLATED))
    artifacts = root / f"artifacts {scr}"
    artifacts.mkdir()
    torch.manual_seed(SEED)
    raw, clean = main.run_eval_single_dataset(
        "LabHC/bias_in_bios_class_set1", config, sae, SimpleNamespace(), 2, HOOK, "cpu", str(artifacts), True,
        ("professor", "nurse"),
    )  # fmt: skip
    (path,) = artifacts.glob("*.pkl")
    return raw, clean, pickle.loads(path.read_bytes())["llm_probes"]


def of_tpp(sae: Sae, root: Path) -> dict[str, float]:
    from sae_bench.evals.scr_and_tpp import main

    raw, clean, _ = ablations(sae, root, torch.load(root / "classes.pt"), False)
    return main.create_tpp_plotting_dict(raw, clean)[0]


def of_scr(sae: Sae, root: Path) -> tuple[dict[str, float], dict[str, Any]]:
    from sae_bench.evals.scr_and_tpp import main

    activations, attributes = torch.load(root / "pairs.pt")
    quadrants = {
        (first, second): activations[(attributes == torch.tensor([first, second])).all(1)]
        for first in (0, 1)
        for second in (0, 1)
    }
    parts = []
    for size, is_test in ((TRAIN, False), (TEST, True)):
        # The first rows train, and the last ones test.
        def some(own: torch.Tensor, count: int, last: bool = is_test) -> torch.Tensor:
            return own[-count:] if last else own[:count]

        half = {quadrant: some(own, size) for quadrant, own in quadrants.items()}
        parts.append({
            "male / female": torch.cat([half[1, 1], half[0, 1]]),
            "female_data_only": torch.cat([half[1, 0], half[0, 0]]),
            "professor / nurse": torch.cat([half[1, 1], half[1, 0]]),
            "nurse_data_only": torch.cat([half[0, 1], half[0, 0]]),
            "male_professor / female_nurse": some(quadrants[1, 1], 2 * size),
            "female_nurse_data_only": some(quadrants[0, 0], 2 * size),
        })  # fmt: skip
    raw, clean, probes = ablations(sae, root, parts, True)
    names = {"first": "professor / nurse", "second": "male / female", "biased": "male_professor / female_nurse"}
    weights = {name: (probes[own].net.weight[0].tolist(), probes[own].net.bias.item()) for name, own in names.items()}
    return main.get_scr_plotting_dict(raw, clean), weights


def of_absorption(sae: Sae, root: Path) -> dict[str, float]:
    from sae_bench.evals.absorption import feature_absorption, k_sparse_probing, probing
    from sae_bench.evals.absorption.feature_absorption_calculator import FeatureAbsorptionCalculator
    from sae_bench.evals.absorption.main import _aggregate_results_df
    from sae_bench.evals.absorption.vocab import LETTERS

    class FromZero(probing.LinearProbe):
        """A probe that begins at zero, as fsae's does: 50 small steps hardly change SAEBench's random first weights."""

        def __init__(self, *arguments: Any, **more: Any):
            super().__init__(*arguments, **more)
            for each in self.parameters():
                torch.nn.init.zeros_(each)

    probing.LinearProbe = FromZero
    torch.manual_seed(SEED)
    vectors, letters, *parts = torch.load(root / "words.pt")
    words = [f"{LETTERS[letter]}{number}" for number, letter in enumerate(letters.tolist())]
    train, test = ([(words[row], int(letters[row])) for row in part] for part in parts)
    of_train, of_test = (vectors[part] for part in parts)
    true = torch.nn.functional.one_hot(letters[parts[0]])
    probe = probing.train_multi_probe(
        of_train, true, batch_size=64, num_epochs=50, weight_decay=1e-4, device=sae.device, show_progress=False
    )
    sparse = k_sparse_probing.train_k_sparse_probes(
        sae, train, of_train, list(range(1, MOST_LATENTS + 1)), precalc_sae_acts=True
    )
    raw = k_sparse_probing.eval_probe_and_sae_k_sparse_raw_scores(sae, probe, sparse, test, of_test)
    metadata = k_sparse_probing.sae_k_sparse_metadata(sae, probe, sparse, "sae", 2)
    metrics = k_sparse_probing.build_metrics_df(raw, metadata, MOST_LATENTS)
    k_sparse_probing.add_feature_splits_to_metrics_df(metrics, MOST_LATENTS)
    raw.to_parquet(root / k_sparse_probing.get_sparse_probing_raw_results_filename("sae", 2))
    likely = feature_absorption.get_stats_and_likely_false_negative_tokens(metrics, "sae", 2, root)

    def run_with_cache(prompts: list[str], names_filter: list[str]) -> tuple[None, dict[str, torch.Tensor]]:
        rows = [words.index(prompt.strip().rstrip(":")) for prompt in prompts]
        # The word is at the last position but one.
        return None, {names_filter[0]: vectors[rows][:, None].expand(-1, 2, -1)}

    model = SimpleNamespace(run_with_cache=run_with_cache, tokenizer=True, to_tokens=lambda _: torch.zeros(1, 1))
    calculator = FeatureAbsorptionCalculator(model, icl_word_list=[])
    table = feature_absorption.calculate_projection_and_cos_sims(calculator, sae, probe, 2, likely)
    letters_found = _aggregate_results_df(table)
    good = metrics[metrics["f1_probe"] > 0.6]["letter"]
    means = letters_found[letters_found["letter"].isin(good)]
    return {
        "fraction": float(means["mean_absorption_fraction"].mean()),
        "full": float(means["full_absorption_rate"].mean()),
        "splits": float(means["num_split_feats"].mean()),
    }


def keys(content: dict[str, Any]) -> set[str]:
    """Return the names in nested JSON."""
    return set(content) | {name for value in content.values() if isinstance(value, dict) for name in keys(value)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"probes": probes, "files": files, "evaluations": evaluations}[sys.argv[1]](*sys.argv[2:])

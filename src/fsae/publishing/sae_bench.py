"""A run's numbers in the files of SAEBench, which its plots and tables read.

{evaluation}/{run}_custom_sae_eval_results.json     one file per evaluation, in SAEBench's layout of version 0.6

A number has SAEBench's name only if it has SAEBench's definition. SAEBench writes -1 for a number that it does not
have, and so do these files. `eval_config` has SAEBench's settings, as far as they apply, and under "fsae" the
differences from SAEBench's evaluation.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import fsae
from fsae.configuration.resolvers import choice_names
from fsae.files import write_json
from fsae.outputs.run_folder import RunFolder
from fsae.surface.dictionary import Dictionary

# SAEBench finds the kind of a file by these parts of its whole path, the first ones first.
_READ_FROM_PATHS = ("tpp", "scr")
_MISSING = -1
# SAEBench's names of ablated latents and of k.
_ABLATED = (2, 5, 10, 20, 50, 100, 500)
_TOP = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Measurement:
    """An evaluation of one dictionary.

    Attributes:
        settings: of the evaluation.
        numbers: by name.
        content: further findings.
        millis: the time at which it was written, in milliseconds since 1970.
    """

    settings: Mapping[str, Any]
    numbers: Mapping[str, float | None]
    content: Mapping[str, Any]
    millis: int

    def number(self, name: str) -> float | int:
        """Return a number; SAEBench's -1 if it was not measured."""
        value = self.numbers.get(name)
        return _MISSING if value is None else value


@dataclass(frozen=True)
class SaeBenchFile:
    """The parts of a file that depend on the evaluation.

    Attributes:
        kind: SAEBench's name of the evaluation.
        config: SAEBench's settings.
        metrics: by category and name.
        details: rows, as of a data set.
        differences: from SAEBench's definition or data.
    """

    kind: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float | int | None]]
    details: list[dict[str, Any]]
    differences: tuple[str, ...]


def write_sae_bench(run: Path, sae: Mapping[str, Any], folder: Path, member: int | None = None) -> list[Path]:
    """Write a file for each of the run's evaluations that SAEBench has, too, and return their paths.

    Args:
        run: the folder of a run that was evaluated.
        sae: the dictionary's configuration, of `configuration_of`.
        folder: above SAEBench's folders.
        member: of a population.

    Raises:
        ValueError: the run has none of these evaluations.
        OSError: no space is left, or the folder cannot be written.
    """
    found = _measurements(RunFolder(run), member or 0)
    files = [made for make in _KINDS for made in make(found, sae)]
    if not files:
        raise ValueError(
            f"{run} has no evaluation that SAEBench has, too; measure some first, as in python -m fsae.evaluate {run} "
            "'eval=[vectors,splice,absorption]'"
        )
    name = run.resolve().name if member is None else f"{run.resolve().name}_{member}"
    latest = max(each.millis for each in found.values())
    paths = []
    for file in files:
        path = folder / file.kind / f"{name}_custom_sae_eval_results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _content(file, sae, name, latest))
        paths.append(path)
    return paths


def configuration_of(dictionary: Dictionary) -> dict[str, Any]:
    """Return a dictionary's configuration as SAEBench's plots read it, with SAELens' names of its origin."""
    settings = dictionary.settings
    found: dict[str, Any] = {name: value for name, value in asdict(dictionary.provenance).items() if value is not None}
    found |= {"architecture": dictionary.architecture, "d_in": dictionary.d_in, "d_sae": dictionary.d_sae}
    if dictionary.site is not None:
        found["hook_layer"] = dictionary.site.layer
    if settings is not None:
        # SAELens' format has fewer architectures than can be trained.
        found |= {"architecture": choice_names()[type(settings.arch)], "training_tokens": settings.trainer.samples}
    return found


def misread(folder: Path) -> str | None:
    """Return the part of a folder's path by which SAEBench would take every file in it for one of another kind."""
    return next((part for part in _READ_FROM_PATHS if part in str(folder.resolve())), None)


def _content(file: SaeBenchFile, sae: Mapping[str, Any], name: str, millis: int) -> dict[str, Any]:
    missing = sorted(
        metric for category in file.metrics.values() for metric, value in category.items() if value == _MISSING
    )
    own = {"version": fsae.__version__, "differences": list(file.differences), "not_measured": missing}
    content = {
        "eval_type_id": file.kind,
        "eval_config": {**file.config, "model_name": sae.get("model_name") or "", "fsae": own},
        "datetime_epoch_millis": millis,
        "eval_result_metrics": file.metrics,
        "eval_result_details": file.details,
        "sae_bench_commit_hash": f"measured by fsae {fsae.__version__}, not by SAEBench",
        "sae_lens_id": "custom_sae",
        "sae_lens_release_id": name,
        "sae_lens_version": None,
        "sae_cfg_dict": dict(sae),
    }
    # The same numbers have the same name.
    return content | {"eval_id": str(uuid5(NAMESPACE_URL, json.dumps(content, sort_keys=True)))}


def _measurements(files: RunFolder, member: int) -> dict[str, Measurement]:
    """Return the run's evaluations by name."""
    found = {}
    for path in sorted(files.evaluations.glob("*.json")):
        written = json.loads(path.read_text(encoding="utf-8"))
        numbers = written["members"][member] if "members" in written else written["numbers"]
        found[path.stem] = Measurement(
            written["settings"],
            numbers,
            {
                name: value[member] if isinstance(value, list) and len(value) > member else value
                for name, value in written.items()
                if name not in ("settings", "numbers", "members", "meanings")
            },
            int(path.stat().st_mtime * 1000),
        )
    return found


def _core(found: Mapping[str, Measurement], sae: Mapping[str, Any]) -> Iterator[SaeBenchFile]:
    if not {"vectors", "splice"} <= found.keys():
        return
    vectors, splice = found["vectors"], found["splice"]
    dead = vectors.numbers.get("dead_share")
    yield SaeBenchFile(
        "core",
        {
            "dataset": sae.get("dataset_path") or "",
            "context_size": sae.get("context_size") or 128,
            "exclude_special_tokens_from_reconstruction": bool(sae.get("exclude_special_tokens")),
            "compute_kl": True,
            "compute_ce_loss": True,
            "compute_l2_norms": True,
            "compute_sparsity_metrics": True,
            "compute_variance_metrics": True,
        },
        {
            "model_behavior_preservation": {
                "kl_div_score": _MISSING,
                "kl_div_with_ablation": _MISSING,
                "kl_div_with_sae": splice.number("kl"),
            },
            "model_performance_preservation": {
                "ce_loss_score": splice.number("ce_recovered_zero"),
                "ce_loss_with_ablation": splice.number("ce_zero"),
                "ce_loss_with_sae": splice.number("ce_spliced"),
                "ce_loss_without_sae": splice.number("ce_base"),
            },
            "reconstruction_quality": {
                "explained_variance": _MISSING,
                "explained_variance_legacy": _MISSING,
                "mse": _MISSING,
                "cossim": vectors.number("cosine"),
            },
            "shrinkage": {
                "l2_norm_in": _MISSING,
                "l2_norm_out": _MISSING,
                "l2_ratio": vectors.number("l2_ratio"),
                "relative_reconstruction_bias": _MISSING,
            },
            "sparsity": {"l0": vectors.number("l0"), "l1": _MISSING},
            "token_stats": {
                "total_tokens_eval_reconstruction": int(splice.settings.get("tokens", _MISSING)),
                "total_tokens_eval_sparsity_variance": int(vectors.settings.get("samples", _MISSING)),
            },
            "misc_metrics": {
                "freq_over_1_percent": _MISSING,
                "freq_over_10_percent": _MISSING,
                "normalized_freq_over_1_percent": _MISSING,
                "normalized_freq_over_10_percent": _MISSING,
                "average_max_encoder_cosine_sim": _MISSING,
                "average_max_decoder_cosine_sim": _MISSING,
                "frac_alive": _MISSING if dead is None else 1 - dead,
            },
        },
        [],
        (
            "the run's own held-out text",
            "positions that training leaves out are neither replaced, nor ablated, nor counted",
            "explained variance and mse have other definitions in SAEBench; fsae's are fvu and mse in results.json",
        ),
    )


def _probing(found: Mapping[str, Measurement], sae: Mapping[str, Any]) -> Iterator[SaeBenchFile]:
    if "probing" not in found:
        return
    own = found["probing"]
    settings = own.settings
    of_saebench = settings["protocol"] == "saebench"
    metric = "accuracy" if of_saebench else "auc"
    columns = {"sae": "latents", "llm": "neurons"} if of_saebench else {"sae": "latents"}
    details = []
    by_set: dict[str, list[Mapping[str, Any]]] = {}
    for question, scores in own.content["probing_sets"].items():
        by_set.setdefault(question.partition(": ")[0], []).append(scores)
    for name, questions in by_set.items():
        row: dict[str, Any] = (
            {"dataset_name": name, "llm_test_accuracy": _MISSING} if of_saebench else {"dataset_name": name}
        )
        for prefix, column in columns.items():
            for place, k in enumerate(settings["k"]):
                if k in _TOP:
                    values = [each[column]["normal"][place] for each in questions]
                    row[f"{prefix}_top_{k}_test_{metric}"] = sum(values) / len(values)
        details.append(row)
    numbers = {
        prefix: {
            f"{prefix}_top_{k}_test_{metric}": own.number(f"probing_{metric}_k{k}{suffix}")
            for k in _TOP
            if f"probing_{metric}_k{k}" in own.numbers
        }
        for prefix, suffix in (("llm", "_neurons"), ("sae", ""))
        if prefix in columns
    }
    common = {"random_seed": settings["seed"], "dataset_names": list(by_set)}
    differences = (
        "the data sets, rows and tokens of a text that eval_config names, and several splits",
        "texts that occur twice or with both labels are left out",
    )
    if of_saebench:
        yield SaeBenchFile(
            "sparse_probing",
            {
                **common,
                "probe_train_set_size": settings["train"],
                "probe_test_set_size": settings["test"],
                "context_length": settings["text_tokens"],
                "k_values": settings["k"],
                "lower_vram_usage": True,
            },
            {"llm": {"llm_test_accuracy": _MISSING, **numbers["llm"]}, "sae": numbers["sae"]},
            details,
            (*differences, "probes of all dimensions are trained in another way, and are not among the metrics"),
        )
        return
    yield SaeBenchFile(
        "sparse_probing_sae_probes",
        {**common, "ks": settings["k"], "reg_type": "l1", "setting": "normal", "include_llm_baseline": False},
        {"llm": {}, "sae": numbers["sae"]},
        details,
        (*differences, f"the solver is {settings['fit']}"),
    )


def _absorption(found: Mapping[str, Measurement], sae: Mapping[str, Any]) -> Iterator[SaeBenchFile]:
    if "absorption" not in found:
        return
    own = found["absorption"]
    yield SaeBenchFile(
        "absorption_first_letter",
        {
            "random_seed": own.settings["seed"],
            "f1_jump_threshold": own.settings["f1_jump"],
            "max_k_value": own.settings["max_k"],
            "min_GT_probe_f1": own.settings["min_probe_f1"],
            "min_feats_for_eval": 1,
        },
        {
            "mean": {
                "mean_absorption_fraction_score": own.number("absorption"),
                "mean_full_absorption_score": own.number("absorption_full"),
                "mean_num_split_features": own.number("absorption_splits"),
                "std_dev_absorption_fraction_score": _MISSING,
                "std_dev_full_absorption_score": _MISSING,
                "std_dev_num_split_features": _MISSING,
            }
        },
        [],
        (
            f"{own.settings['words']} words of the vocabulary, and not all",
            f"activations at the dictionary's own site, {sae.get('hook_name')}",
            "each word is read in one prompt; the sparse probe begins at zero; means over several splits of the words",
            "standard deviations over letters are not measured",
        ),
    )


def _ravel(found: Mapping[str, Measurement], sae: Mapping[str, Any]) -> Iterator[SaeBenchFile]:
    if "ravel" not in found:
        return
    own = found["ravel"]
    yield SaeBenchFile(
        "ravel",
        {
            "random_seed": own.settings["seed"],
            "top_n_entities": own.settings["entities"],
            "top_n_templates": own.settings["templates"],
            "num_pairs_per_attribute": own.settings["pairs"],
            "learning_rate": own.settings["lr"],
            "n_generated_tokens": 1,
        },
        {
            "ravel": {
                "disentanglement_score": own.number("ravel_disentanglement"),
                "cause_score": own.number("ravel_cause"),
                "isolation_score": own.number("ravel_isolation"),
            }
        },
        [],
        (
            f"entities of the kind {own.settings['entity']}, from {own.settings['path'] or 'a package'}",
            "an answer after an interchange is its first token; pairs of different values differ in it",
            "fewer steps of learning a mask, with a larger learning rate; several drawings of pairs",
        ),
    )


def _autointerp(found: Mapping[str, Measurement], sae: Mapping[str, Any]) -> Iterator[SaeBenchFile]:
    if "autointerp" not in found or "autointerp_saebench_raw" not in found["autointerp"].numbers:
        return
    own = found["autointerp"]
    latents = int(own.number("autointerp_latents"))
    yield SaeBenchFile(
        "autointerp",
        {"n_latents": latents, "random_seed": own.settings.get("seed", _MISSING)},
        {"autointerp": {"autointerp_score": own.number("autointerp_saebench_raw"), "autointerp_std_dev": _MISSING}},
        [],
        ("prompts, judge and text of its own", "the standard deviation over latents is not measured"),
    )


def _scr(found: Mapping[str, Measurement], sae: Mapping[str, Any]) -> Iterator[SaeBenchFile]:
    names = {"scr": "scr_metric_threshold_{}", "dir1": "scr_dir1_threshold_{}", "dir2": "scr_dir2_threshold_{}"}
    yield from _ablated(found, "scr", "scr_pairs", names)


def _tpp(found: Mapping[str, Measurement], sae: Mapping[str, Any]) -> Iterator[SaeBenchFile]:
    names = {
        "tpp": "tpp_threshold_{}_total_metric",
        "intended": "tpp_threshold_{}_intended_diff_only",
        "unintended": "tpp_threshold_{}_unintended_diff_only",
    }
    yield from _ablated(found, "tpp", "tpp_sets", names)


def _ablated(
    found: Mapping[str, Measurement], kind: str, content: str, names: Mapping[str, str]
) -> Iterator[SaeBenchFile]:
    if kind not in found:
        return
    own = found[kind]
    details = [
        {
            "dataset_name": f"{task}_results",
            **{
                name.format(count): scores[score][str(count)]
                for count in own.settings["n"]
                if count in _ABLATED
                for score, name in names.items()
            },
        }
        for task, scores in own.content[content].items()
    ]
    means = {name: sum(row[name] for row in details) / len(details) for name in details[0] if name != "dataset_name"}
    yield SaeBenchFile(
        kind,
        {
            "random_seed": own.settings["seed"],
            "dataset_names": list(own.content[content]),
            "perform_scr": kind == "scr",
            "train_set_size": own.settings["train"],
            "test_set_size": own.settings["test"],
            "context_length": own.settings["text_tokens"],
            "n_values": own.settings["n"],
        },
        {f"{kind}_metrics": means},
        details,
        (
            "the data sets, rows and tokens of a text that eval_config names, and several draws",
            "an audit found this measure unfit (arXiv 2605.18229)",
            "latents without a positive effect are not ablated",
        ),
    )


# Each yields a file if the run has the evaluation.
_KINDS: tuple[Callable[[Mapping[str, Measurement], Mapping[str, Any]], Iterator[SaeBenchFile]], ...] = (
    _core,
    _probing,
    _absorption,
    _ravel,
    _autointerp,
    _scr,
    _tpp,
)

"""A run's held-out results: as a table to read and as flat names to compare."""

import math
from collections.abc import Mapping
from typing import Any

# Every metric of the evaluation, in the order in which they are shown.
MEANINGS = {
    "fvu": "fraction of variance unexplained",
    "fvu_of_inputs": "of the inputs as they are, where they are not what is wanted",
    "mse": "squared error, summed over dimensions",
    "cosine": "cosine of reconstruction and input",
    "l2_ratio": "|reconstruction| / |input|",
    "top_variance_share": "variance in the 0.1 % of samples with the largest norms",
    "massive_share": "samples left out for their norm (source.max_norm_multiple)",
    "l0": "active latents a sample",
    "l1": "sum of |code| x |decoder row|",
    "description_length": "bits of a sample's codes",
    "dead_share": "latents that never fire",
    "dense_share": "latents on for more than 10 % of samples",
    "fisher": "off-diagonal squares of the Fisher matrix, summed, in raw units",
    "fisher_ratio": "the same over the diagonal's squares",
    "fisher_batch": "samples a batch, for these two",
    "code_correlation": "mean squared correlation of two latents",
    "code_correlation_excess": "the same less its value by chance",
    "decoder_max_cosine": "cosine of a decoder row and its nearest other",
    "pw_mcc": "cosine of matched latents of two members",
    "mmcs": "cosine of a latent and the nearest in another member",
    "shared_share": "latents that every member has, of those that fire",
    "best_fvu": "fvu of the member that was best in training",
    "best_member": "which one that is",
    "mcc": "cosine of true features and the latents matched to them",
    "mmcs_truth": "cosine of a true feature and the nearest latent",
    "mmcs_latents": "cosine of a latent and the nearest true feature",
    "uniqueness": "distinct nearest true features, over latents",
    "precision": "of latents as detectors of the true feature nearest to them",
    "recall": "likewise",
    "f1": "likewise",
    "true_l0": "true features of a sample",
    "truth_of_shared": "cosine of latents that all members have and a true feature",
    "truth_of_single": "the same of latents that one member has alone",
    "truth_rank_correlation": "of that cosine and the closest partner's in another member",
    "regions": "distinct supports among the held-out samples",
    "points_per_region": "samples over these",
    "largest_region": "share of samples in the fullest one",
    "region_radius": "from a sample to its region's end, over the samples' spread",
    "segment_regions": "regions along a segment between two samples",
    "same_region_share": "of these segments, those in one region",
    "adjacent_share": "of these segments, those across one boundary",
    "diagram_agreement": "samples whose support is the power diagram's",
    "diagram_ties": "samples where rounding may decide",
    "ce_recovered_zero": "cross-entropy recovered, against zeros at the site",
    "ce_recovered_mean": "cross-entropy recovered, against the mean activation",
    "kl": "KL(model || model with reconstruction), nats a token",
    "ce_base": "cross-entropy of the model, nats a token",
    "ce_spliced": "with the reconstruction at the site",
    "ce_zero": "with zeros at the site",
    "ce_mean": "with the mean activation at the site",
}
# What there was to train and evaluate on; in `results.json` as data/<name>.
SUPPLY = {
    "train_samples_distinct": "different training samples; of text, the positions of one pass over it",
    "train_samples_wanted": "how many there would be if there were text enough",
    "text_rounds": "the latter over the former: how often the text was read; 1 if there was enough",
    "training_rounds": "how often training saw each distinct sample",
    "held_out_samples": "samples that there were to evaluate on",
    "held_out_samples_wanted": "samples that it asked for (eval.tokens)",
    "skipped_rows": "rows of the data set without a usable document, left out",
}


def results_table(scalars: Mapping[str, float]) -> str:
    """Aligned lines of name, value and meaning, in the order of `MEANINGS`, without a newline at the end."""
    assert scalars.keys() <= MEANINGS.keys()
    rows = [(name, f"{scalars[name]:.4g}", meaning) for name, meaning in MEANINGS.items() if name in scalars]
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:<{names}}  {value:>{values}}  {meaning}" for name, value, meaning in rows)


def flat_results(scalars: Mapping[str, float]) -> dict[str, Any]:
    """`eval/<metric>` to its value, as strict JSON can hold it.

    What is not finite becomes null, and `notes` says under the same name what it was; without such a value there is no
    `notes`.
    """
    results: dict[str, Any] = {f"eval/{name}": value for name, value in scalars.items()}
    notes = {name: f"not finite: {value}" for name, value in results.items() if not math.isfinite(value)}
    results |= dict.fromkeys(notes)
    return results | {"notes": notes} if notes else results

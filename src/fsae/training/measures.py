"""Measures that training logs: their meanings, and those of a batch that are logged in addition to its losses."""

import torch
from torch import Tensor

from fsae.autoencoders.layout import Factor
from fsae.autoencoders.record import ForwardRecord

# Every measure that training logs as train/<name>, and its meaning. Measures are means over the steps since the last
# logging, unless the meaning is another; over the members, if there are several. TERM stands for the name of a loss
# term, NUMBER for that of a level, MEMBER for the number of a population's member, and UNIT for the plural noun of the
# source's vectors.
MEANINGS = {
    "loss": "the objective, the sum of all weighted terms",
    "TERM": "the loss term of this name (reconstruction, sparsity, auxiliary, norm, penalty, ...), before its weight",
    "TERM_weighted": "the loss term multiplied by its weight",
    "fisher": "off-diagonal squares of the Fisher matrix of a batch, summed, in scaled units",
    "fisher_ratio": "off-diagonal over diagonal squares of the Fisher matrix",
    "level_NUMBER": "squared error of a Matryoshka loss's level, the narrowest first, in scaled units",
    "sparsity_p": "the exponent p of the codes' sizes (loss=p_anneal)",
    "stable_rank": "dimension of a group's subspace, from 1 to arch.rank (loss=group_topk_nuclear)",
    "sparsity_l0": "l0 that a loss with a target l0 compares with its target (loss=jumprelu_target_l0)",
    "fvu": "squared error over the variance of the batch",
    "explained_variance": "1 - fvu",
    "l0": "active latents per sample",
    "l1": "sum of |code| x |decoder row|, in raw units",
    "mse": "squared error, summed over dimensions, in raw units",
    "l2_ratio": "|reconstruction| / |input|, best at 1",
    "dead_share": "share of latents that were not active for trainer.dead_after samples, at the logging",
    "lr": "learning rate at the logging",
    "resampled": "dead latents that were resampled so far (trainer.resample_every)",
    "reinitialised": "latents that were resampled by their rate so far (population.reinitialise)",
    "condition": "condition number of the system that trainer=pam solves for the decoder",
    "mutual": "1 - MMCS, the mean over all pairs of members",
    "mutual_weighted": "the mutual term multiplied by its weight",
    "jacobian": "mean size of the Jacobian's elements between active latents of a pair, in scaled units",
    "jacobian_weighted": "the Jacobian term multiplied by its weight",
    "matching_seconds": "seconds of matching latents between members since the last logging",
    "UNIT_per_second": "samples of training per second; UNIT is tokens for text, else samples",
    "MEMBER/loss": "the objective of one member; MEMBER/fvu, MEMBER/l0 and MEMBER/dead_share in the same way",
}


@torch.no_grad()
def batch_measures(record: ForwardRecord, scale: Factor) -> dict[str, Tensor]:
    """Return scalars of one training batch in raw activation units, by the names of the held-out metrics.

    l0: active latents per sample. l1: sum_i |f_i| |W_dec_i|. mse: squared error summed over dimensions.
    l2_ratio: mean |x_hat| / |x|. fvu: squared error over the batch's variance.
    explained_variance: 1 - fvu.

    Args:
        scale: the factor by which raw targets were multiplied, or one per dimension.
    """
    codes, x, x_hat = record.codes, record.wanted, record.reconstruction
    sizes = codes.map(torch.abs)
    error = record.error.square().sum()
    batch = x.shape[0]
    if isinstance(scale, Tensor):
        # No factor is common to all dimensions, so both are measured in raw units.
        l1 = sizes.column_sums() @ (record.W_dec / scale).norm(dim=1) / batch
        mse = (record.error / scale).square().sum() / batch
    else:
        l1 = sizes.values.sum() if record.code_weights is None else sizes.column_sums() @ record.code_weights
        l1, mse = l1 / (batch * scale), error / (batch * scale**2)
    fvu = error / (x - x.mean(0)).square().sum().clamp_min(1e-12)
    return {
        "l0": codes.firing_counts.sum() / batch,
        "l1": l1,
        "mse": mse,
        "l2_ratio": (x_hat.norm(dim=1) / x.norm(dim=1).clamp_min(1e-12)).mean(),
        "fvu": fvu,
        "explained_variance": 1 - fvu,
    }

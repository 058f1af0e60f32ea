"""Measures of a training batch that are logged in addition to its losses."""

import torch
from torch import Tensor

from fsae.autoencoders.record import ForwardRecord


@torch.no_grad()
def batch_measures(record: ForwardRecord, scale: float) -> dict[str, Tensor]:
    """Return scalars of one training batch in raw activation units, by the names of the held-out metrics.

    l0: active latents per sample. l1: sum_i |f_i| |W_dec_i|. mse: squared error summed over dimensions.
    l2_ratio: mean |x_hat| / |x|. fvu: squared error over the batch's variance.
    explained_variance: 1 - fvu.

    Args:
        scale: the factor by which raw activations were multiplied.
    """
    codes, x, x_hat = record.codes, record.wanted, record.reconstruction
    sizes = codes.map(torch.abs)
    l1 = sizes.values.sum() if record.code_weights is None else sizes.column_sums() @ record.code_weights
    error = record.error.square().sum()
    batch = x.shape[0]
    fvu = error / (x - x.mean(0)).square().sum().clamp_min(1e-12)
    return {
        "l0": codes.firing_counts.sum() / batch,
        "l1": l1 / (batch * scale),
        "mse": error / (batch * scale**2),
        "l2_ratio": (x_hat.norm(dim=1) / x.norm(dim=1).clamp_min(1e-12)).mean(),
        "fvu": fvu,
        "explained_variance": 1 - fvu,
    }

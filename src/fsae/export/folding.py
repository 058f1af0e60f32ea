"""Folding: the scale of training, and the decoder's norms, put into the weights."""

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.abs_topk import AbsTopK
from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder
from fsae.autoencoders.batch_topk import BatchTopK
from fsae.autoencoders.gated import Gated
from fsae.autoencoders.jumprelu import JumpReLU
from fsae.autoencoders.local_pca import LocalPCA
from fsae.autoencoders.pca import PCA
from fsae.autoencoders.standard import Standard
from fsae.autoencoders.topk import TopK

# Each latent is switched on by itself, or latents compete. A subclass may choose its codes in another way, so that an
# architecture is one of these or is not known.
_ALONE = (Standard, Gated, JumpReLU)
_COMPETING = (TopK, AbsTopK, PCA, BatchTopK)


def check_foldable(autoencoder: Autoencoder) -> None:
    """Raise ValueError for an architecture of which it is not known how its codes change with the input's unit."""
    if type(autoencoder) not in (*_ALONE, *_COMPETING, LocalPCA):
        raise ValueError(
            f"{type(autoencoder).__name__} is an architecture that fsae.export.folding does not know: what a change of "
            "unit does to its codes must be said there before it can be trained or evaluated"
        )


@torch.no_grad()
def fold(autoencoder: Autoencoder, scale: float) -> Autoencoder:
    """An equal autoencoder for raw activations: x in, and what `autoencoder` makes of x * scale, over scale, out.

    Which latents are on does not change, and code_i * |W_dec_i| is the length of latent i's contribution in raw units.
    Where each latent is switched on its own (standard, gated, jumprelu) the decoder's rows become unit vectors, so the
    code alone is that length. Where latents compete (topk, abs_topk, batch_topk) only a factor common to all keeps the
    winners: every code is divided by `scale` and the rows stay as they were, unit under `decoder_norm: unit`. The
    code of a centre (kmeans, local_pca) stays 1.

    Args:
        autoencoder: trained on activations multiplied by `scale`; not changed.
        scale: positive.

    Returns:
        A copy, in evaluation mode; tied weights are tied no more.

    Raises:
        ValueError: an architecture that is not known here.
    """
    assert 0 < scale < math.inf
    check_foldable(autoencoder)
    folded = copy.deepcopy(autoencoder).eval()
    if isinstance(folded, LocalPCA):
        folded.place(folded.centres / scale, folded.components, folded.means / scale)
        return folded
    assert isinstance(folded, SparseAutoencoder)
    folded.untie()
    # With x' = scale * x, the code's unit may be chosen per latent: unit_i = norm_i / scale turns c'_i into
    # c_i = unit_i * c'_i. Encoder columns then carry scale * unit_i = norm_i, decoder rows 1 / norm_i.
    competing = type(folded) in _COMPETING
    norm = folded.W_dec.new_ones(folded.d_sae) if competing else _row_norms(folded.W_dec)
    folded.W_enc.mul_(norm)
    folded.W_dec.div_(norm[:, None])
    folded.b_dec.div_(scale)
    _change_unit(folded, norm / scale)
    return folded


def _row_norms(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " d_sae"]:
    """Norms, with 1 for a row of zeros: that latent contributes nothing at any length."""
    norms = W_dec.norm(dim=1)
    return torch.where(norms > 0, norms, 1.0)


def _change_unit(autoencoder: Autoencoder, unit: Float[Tensor, " d_sae"]) -> None:
    """Multiply what is added to, or compared with, pre-activations (products with W_enc are the caller's).

    relu(unit * a) = unit * relu(a), and a step at a threshold does not move if both sides are multiplied. A gated
    latent needs no change of r_mag: exp(r_mag) multiplies the product with W_enc, which has the new unit already.
    """
    if isinstance(autoencoder, Gated):
        autoencoder.b_gate.mul_(unit)
        autoencoder.b_mag.mul_(unit)
        return
    autoencoder.get_parameter("b_enc").mul_(unit)
    if isinstance(autoencoder, JumpReLU):
        autoencoder.log_threshold.add_(unit.log())
    if isinstance(autoencoder, BatchTopK):
        autoencoder.threshold.mul_(unit[0])

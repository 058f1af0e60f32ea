"""A control: random directions that are on as often as a dictionary's latents."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.jumprelu import JumpReLU, JumpReLUSettings
from fsae.autoencoders.settings import BiasInit, DecoderNorm
from fsae.seeds import generator_for

# Directions whose products with all vectors are held at once.
_AT_ONCE = 256


@torch.no_grad()
def control_of(
    densities: Float[np.ndarray, " latents"],
    vectors: Float[Tensor, "vectors d_in"],
    d_in: int,
    count: int,
    seed: int,
    at_once: int = _AT_ONCE,
) -> JumpReLU:
    """Return a dictionary of random directions with the densities of a dictionary's latents that are alive.

    Direction i is a random unit vector w_i, in the encoder and in the decoder. Its density p_i is the quantile
    (i + 1/2) / count of the positive densities. Its code is w_i . (x - mean) where this exceeds its 1 - p_i quantile
    over the vectors, and 0 elsewhere: exactly round(p_i vectors) of these vectors, and at least one, are on. A code is
    positive: if the quantile is not, all of the direction's products are raised by the same amount.

    Numbers of a dictionary, such as token purity, mean little by themselves, because text has common tokens; the same
    numbers of the control show how much they owe to that.

    Args:
        densities: of a dictionary; those of dead latents are left out.
        vectors: raw vectors; the more, the better a small density is met.
        d_in: width of the vectors.
        count: directions.
        seed: of the directions.
        at_once: directions whose products with all vectors are held at once.

    Returns:
        An autoencoder in evaluation mode, in raw units.

    Raises:
        ValueError: no latent is alive, or there are fewer than two vectors.
    """
    alive = densities[densities > 0]
    if not len(alive) or len(vectors) < 2:
        raise ValueError(
            f"a control needs a latent that is alive and two vectors, and there are {len(alive)} and {len(vectors)}; "
            "train for longer, or read more data"
        )
    settings = JumpReLUSettings(d_sae=count, decoder_norm=DecoderNorm.unit, b_dec_init=BiasInit.zeros)
    control = JumpReLU(d_in, settings, generator_for(seed, "control")).to(vectors.device)
    vectors = vectors.float()
    control.b_dec.copy_(vectors.mean(0))
    share = np.quantile(alive, (np.arange(count) + 0.5) / count)
    on = np.clip(np.round(share * len(vectors)), 1, len(vectors) - 1).astype(int)
    centred = vectors - control.b_dec
    for begin in range(0, count, at_once):
        directions = slice(begin, begin + at_once)
        # numpy sorts many times faster than torch on a CPU.
        products = np.sort((control.W_enc[:, directions].T @ centred.T).cpu().numpy(), axis=1)
        each, first = np.arange(len(products)), len(vectors) - on[directions]
        # Between the least product that is on and the next one, so that rounding moves none across.
        threshold = (products[each, first] + products[each, first - 1]) / 2
        least = 1e-3 * np.abs(products[:, [0, -1]]).max(1).clip(1e-6)
        control.b_enc[directions] = torch.from_numpy((least - threshold).clip(0)).to(control.b_enc)
        control.log_threshold[directions] = torch.from_numpy(np.log(np.maximum(threshold, least))).to(control.b_enc)
    return control.eval()

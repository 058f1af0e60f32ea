"""The similarity of the dictionary's directions."""

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def decoder_max_cosine(W_dec: Float[Tensor, "d_sae d_in"], chunk: int = 1024) -> float:
    """Return mean_i max_{j != i} cos(W_dec_i, W_dec_j): near 1 if latents come in copies, NaN for a single latent.

    `chunk` rows at a time are compared with all others, so no d_sae x d_sae matrix is built.
    """
    d_sae = W_dec.shape[0]
    if d_sae == 1:
        return float("nan")
    directions = torch.nn.functional.normalize(W_dec.float(), dim=1)
    total = torch.zeros((), dtype=torch.float64, device=W_dec.device)
    for begin in range(0, d_sae, chunk):
        cosines = directions[begin : begin + chunk] @ directions.T
        cosines.diagonal(begin).fill_(-torch.inf)
        total += cosines.amax(1).sum(dtype=torch.float64)
    return (total / d_sae).item()

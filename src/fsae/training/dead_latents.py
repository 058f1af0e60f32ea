"""Dead latents: the number of samples since each latent last fired."""

import torch
from torch import Tensor, nn

from fsae.sparse.codes import Codes


class DeadLatents(nn.Module):
    """The number of samples since each latent last fired, and the indices of dead latents at the last refresh.

    The indices are refreshed only when the loop reads values from the device anyway, so that no step waits for it.

    Args:
        d_sae: number of latents.
        after: number of samples without firing after which a latent is dead.
    """

    samples_since_fired: Tensor
    indices: Tensor

    def __init__(self, d_sae: int, after: int):
        super().__init__()
        self.after = after
        self.register_buffer("samples_since_fired", torch.zeros(d_sae, dtype=torch.long))
        self.indices = torch.zeros(0, dtype=torch.long)

    @torch.no_grad()
    def update(self, codes: Codes) -> None:
        """Count one batch."""
        fired = codes.firing_counts > 0
        self.samples_since_fired += codes.shape[0]
        self.samples_since_fired.masked_fill_(fired, 0)

    def refresh(self) -> None:
        """Find the latents that are dead now. Waits for the device."""
        self.indices = (self.samples_since_fired >= self.after).nonzero().squeeze(1)

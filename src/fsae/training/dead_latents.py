"""Latents that have stopped firing: counted in tokens, and drawn anew where that is asked for."""

import torch
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.record import ForwardRecord
from fsae.autoencoders.topk import KSettings
from fsae.sparse.codes import Codes


class DeadLatents(nn.Module):
    """Tokens since each latent last fired, and which latents counted as dead when last looked.

    The list is refreshed only where the loop reads values from the device anyway, so no step waits for it.

    Args:
        d_sae: number of latents.
        after: tokens without firing after which a latent is dead.
    """

    tokens_since_fired: Tensor
    indices: Tensor

    def __init__(self, d_sae: int, after: int):
        super().__init__()
        self.after = after
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.long))
        self.indices = torch.zeros(0, dtype=torch.long)

    @torch.no_grad()
    def update(self, codes: Codes) -> None:
        """Count one batch."""
        fired = codes.firing_counts > 0
        self.tokens_since_fired += codes.shape[0]
        self.tokens_since_fired.masked_fill_(fired, 0)

    def refresh(self) -> None:
        """Look which latents are dead now. Waits for the device."""
        self.indices = (self.tokens_since_fired >= self.after).nonzero().squeeze(1)


@torch.no_grad()
def resample(
    autoencoder: SparseAutoencoder,
    optimiser: torch.optim.Optimizer,
    dead: DeadLatents,
    record: ForwardRecord,
    generator: torch.Generator,
) -> int:
    """Point dead latents at what is reconstructed worst (Bricken et al. 2023, appendix "Neuron Resampling").

    Each takes a sample of the batch, drawn with probability proportional to its squared loss; its decoder row becomes
    the direction of what is wanted of it, its encoder column that of the input at a fifth of the live latents' mean
    norm, its biases zero; a jumprelu's threshold becomes the live ones' mean. Adam's moments of all of these start
    over. Where latents compete for k places the encoder column has the whole mean norm: at a fifth it would win none.

    Returns:
        How many latents were drawn anew.
    """
    dead.refresh()
    count = dead.indices.numel()
    if count == 0:
        return 0
    alive = torch.ones(autoencoder.d_sae, dtype=torch.bool, device=dead.indices.device)
    alive[dead.indices] = False
    losses = record.error.square().sum(1)
    chosen = torch.multinomial(losses.square().cpu() + 1e-12, count, replacement=True, generator=generator)
    chosen = chosen.to(record.inputs.device)
    # What is wanted is what the decoder is to write; it differs from the inputs where these have noise.
    read, written = (
        torch.nn.functional.normalize(autoencoder.encoder_input(vectors[chosen]), dim=1, eps=1e-8)
        for vectors in (record.inputs, record.wanted)
    )
    encoder_norm = autoencoder.W_enc.norm(dim=0)[alive].mean() if alive.any() else torch.ones(())
    decoder_norm = autoencoder.W_dec.norm(dim=1)[alive].mean() if alive.any() else torch.ones(())
    share = 1.0 if isinstance(autoencoder.settings, KSettings) else 0.2
    for name, parameter in autoencoder.named_parameters():
        if name == "b_dec":
            continue
        if name == "W_dec":
            parameter[dead.indices] = written * decoder_norm
        elif name == "W_enc":
            parameter[:, dead.indices] = read.T * encoder_norm * share
        elif name == "log_threshold":
            parameter[dead.indices] = parameter[alive].mean() if alive.any() else parameter.mean()
        else:
            parameter[dead.indices] = 0.0
        for moment in ("exp_avg", "exp_avg_sq"):
            state = optimiser.state[parameter].get(moment)
            if state is not None:
                if name == "W_enc":
                    state[:, dead.indices] = 0.0
                else:
                    state[dead.indices] = 0.0
    dead.tokens_since_fired[dead.indices] = 0
    dead.refresh()
    return count

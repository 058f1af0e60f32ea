"""What one process of the comparison trains; read by our Python and by the peers' own, so it imports nothing."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Job:
    """One library training one autoencoder on vectors in a file.

    Attributes:
        library: which; the module `<library>_steps` trains with it.
        mode: how that library computes: fp32, bf16 (autocast for the peers) and what else it offers.
        rules: whose objective and optimiser settings ours follows; the peers have only their own.
        architecture: standard, gated, jumprelu, topk or batch_topk.
        d_in, d_sae, k, batch: shapes; k is also the target of objectives that have one.
        density: share of the codes that are on at the start; None for biases of zero, which leave about half on.
            Of the architectures that choose k latents it is k / d_sae in any case.
        lr: learning rate, constant.
        sparsity: weight of the sparsity term.
        bandwidth: of jumprelu's kernel.
        dead_after: steps without firing after which a latent counts as dead.
        device: where to compute.
        threads: of one process.
        weights: file with the starting weights, by our names.
        vectors: file whose `x` (vectors, d_in) is trained on, batch after batch and round again.
        held_out: file whose `x` the autoencoder is measured on.
    """

    library: str
    mode: str
    rules: str
    architecture: str
    d_in: int
    d_sae: int
    k: int
    batch: int
    density: float | None
    lr: float
    sparsity: float
    bandwidth: float
    dead_after: int
    device: str
    threads: int
    weights: str
    vectors: str
    held_out: str

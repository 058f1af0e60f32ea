"""The job of one process of the comparison. All libraries' Pythons read this module, so it imports nothing of fsae."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Job:
    """One library training one autoencoder on vectors in a file.

    Attributes:
        library: the library; the module `<library>_steps` trains with it.
        mode: how that library computes: fp32, fp64, bf16 (autocast for the peers) and its other modes.
        rules: the peer whose objective and optimiser settings fsae follows; each peer has only its own.
        architecture: standard, gated, jumprelu, topk or batch_topk, or one of these under the name of another loss or
            layout.
        d_in, d_sae, k, batch: shapes; k is also the target of objectives that have one.
        density: share of active codes at the start; None for biases of zero, with about half of the codes active.
            For architectures that choose k latents it is k / d_sae in any case.
        lr: learning rate, constant.
        sparsity: weight of the sparsity term.
        bandwidth: of jumprelu's kernel.
        dead_after: steps without an active code after which a latent counts as dead.
        device: the device.
        threads: threads per process.
        weights: file with the starting weights, by fsae's names.
        vectors: file whose `x` (vectors, d_in) is trained on, batch after batch, repeatedly; `y` are a transcoder's
            targets.
        held_out: file whose `x`, and `y`, the autoencoder is measured on.
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

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the levels of a Matryoshka loss."""
        return self.d_sae // 16, self.d_sae // 8, self.d_sae // 4, self.d_sae

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and vectors."""
        return torch.float64 if self.mode == "fp64" else torch.float32

    @property
    def transcodes(self) -> bool:
        """True if `y` in the files is what the vectors `x` should become, instead of x."""
        return self.architecture in ("transcoder", "skip_transcoder")

    @classmethod
    def of_fsae(
        cls, folder: Path, *, d_in: int, d_sae: int, k: int, batch: int, lr: float, device: str, threads: int
    ) -> "Job":
        """Return the job that others are made of: topk of fsae in float32, with its files in a folder."""
        return cls(
            library="fsae",
            mode="fp32",
            rules="sae_lens",
            architecture="topk",
            d_in=d_in,
            d_sae=d_sae,
            k=k,
            batch=batch,
            density=k / d_sae,
            lr=lr,
            sparsity=1.0,
            bandwidth=0.1,
            dead_after=1000,
            device=device,
            threads=threads,
            weights=str(folder / "weights.safetensors"),
            vectors=str(folder / "vectors.safetensors"),
            held_out=str(folder / "held_out.safetensors"),
        )

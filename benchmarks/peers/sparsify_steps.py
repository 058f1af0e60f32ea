"""Training steps of sparsify: its `SparseCoder`, stepped as in its trainer, whose loop also runs a language model."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import torch
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

from benchmarks.peers.job import Job

DISTRIBUTION = "eai-sparsify"


class Training:
    """Steps of Adam, its only optimiser that the other libraries have too. Its only mode is fp32 on a CPU, and bf16 on
    a GPU, where it turns on autocast."""

    def __init__(self, job: Job, weights: dict[str, Tensor]):
        skips = job.architecture == "skip_transcoder"
        config = SparseCoderConfig(num_latents=job.d_sae, k=job.k, transcode=job.transcodes, skip_connection=skips)
        # Its trainer leaves a transcoder's rows at any norm.
        self.normalises = config.normalize_decoder and not config.transcode
        self.coder = SparseCoder(job.d_in, config, device=job.device, dtype=torch.float32)
        with torch.no_grad():
            self.coder.encoder.weight.copy_(weights["W_enc"].T)
            self.coder.encoder.bias.copy_(weights["b_enc"])
            self.coder.W_dec.copy_(weights["W_dec"])
            self.coder.b_dec.copy_(weights["b_dec"])
            if skips:
                self.coder.W_skip.copy_(weights["W_skip"])
        self.optimiser = torch.optim.Adam(self.coder.parameters(), lr=job.lr)
        self.since_fired = torch.zeros(job.d_sae, dtype=torch.long, device=job.device)

    def step(self, x: Tensor, y: Tensor, number: int) -> None:
        if self.normalises:
            self.coder.set_decoder_norm_to_unit_norm()
        out = self.coder(x, y)
        fired = torch.zeros_like(self.since_fired, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        if self.normalises:
            self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.since_fired += len(x)
        self.since_fired[fired] = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Its trainer does this at the beginning of a step, fsae at the end.
        if self.normalises:
            self.coder.set_decoder_norm_to_unit_norm()
        out = self.coder(x)
        return out.sae_out, (out.latent_acts != 0).sum()

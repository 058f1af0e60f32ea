"""Training steps of dictionary_learning: `update` of its trainers."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import sys
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.peers.job import Job

# It imports nnsight, which brings a torchvision that only fits torch's CUDA builds; nothing here needs it.
sys.modules["torchvision"] = None  # pyright: ignore[reportArgumentType]

from dictionary_learning.trainers import (  # noqa: E402
    BatchTopKTrainer,
    GatedSAETrainer,
    JumpReluTrainer,
    PAnnealTrainer,
    StandardTrainer,
    TopKTrainer,
)
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer  # noqa: E402

DISTRIBUTION = "dictionary-learning"
# fsae's name of each parameter by dictionary_learning's; its linear layers hold the transposes.
LINEAR = {"encoder.weight": "W_enc", "decoder.weight": "W_dec"}
PARAMETERS = {
    "standard": LINEAR | {"encoder.bias": "b_enc", "bias": "b_dec"},
    "gated": LINEAR | {"r_mag": "r_mag", "gate_bias": "b_gate", "mag_bias": "b_mag", "decoder_bias": "b_dec"},
    "jumprelu": {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")},
    "topk": LINEAR | {"encoder.bias": "b_enc", "b_dec": "b_dec"},
    "batch_topk": LINEAR | {"encoder.bias": "b_enc", "b_dec": "b_dec"},
    "matryoshka": {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")},
    "p_anneal": LINEAR | {"encoder.bias": "b_enc", "bias": "b_dec"},
}


class Training:
    """Steps of a trainer; modes: fp32, bf16 (autocast around the step, as its training loop does)."""

    def __init__(self, job: Job, weights: dict[str, Tensor]):
        self.job = job
        common = {
            "steps": 10**9,
            "activation_dim": job.d_in,
            "dict_size": job.d_sae,
            "layer": 0,
            "lm_name": "",
            "lr": job.lr,
            "warmup_steps": 0,
            "device": job.device,
        }
        penalised = common | {"sparsity_warmup_steps": 0}
        match job.architecture:
            case "standard":
                self.trainer = StandardTrainer(**penalised, l1_penalty=job.sparsity)
            case "gated":
                self.trainer = GatedSAETrainer(**penalised, l1_penalty=job.sparsity)
            case "jumprelu":
                self.trainer = JumpReluTrainer(
                    **penalised, sparsity_penalty=job.sparsity, target_l0=job.k, bandwidth=job.bandwidth
                )
            case "topk":
                self.trainer = TopKTrainer(**common, k=job.k)
            case "batch_topk":
                self.trainer = BatchTopKTrainer(**common, k=job.k)
            case "matryoshka":
                shares = [(end - begin) / job.d_sae for begin, end in pairwise((0, *job.widths))]
                self.trainer = MatryoshkaBatchTopKTrainer(**common, k=job.k, group_fractions=shares)
            case "p_anneal":
                self.trainer = PAnnealTrainer(
                    **penalised,
                    initial_sparsity_penalty=job.sparsity,
                    sparsity_function="Lp^p",
                    # From its second step on it also measures the next p.
                    anneal_start=1,
                    p_end=0.2,
                )
        if job.architecture == "jumprelu":
            weights = weights | {"threshold": weights["log_threshold"].exp()}
        with torch.no_grad():
            for name, parameter in self.trainer.ae.named_parameters():
                value = weights[PARAMETERS[job.architecture][name]]
                parameter.copy_(value.T if name in LINEAR else value)

    def step(self, x: Tensor, y: Tensor, number: int) -> None:
        # Numbers count from 1: at 0 the trainer would set the decoder's bias itself.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.job.mode == "bf16"):
            self.trainer.update(number, x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        autoencoder = self.trainer.ae
        chooses_in_batch = self.job.architecture in ("batch_topk", "matryoshka")
        in_training = {"use_threshold": False} if chooses_in_batch else {}
        codes = autoencoder.encode(x, **in_training)
        return autoencoder.decode(codes), (codes != 0).sum()

"""Training steps of SAELens: `SAETrainer.step`, as its runner calls it."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import torch
from sae_lens import TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from benchmarks.peers.job import Job

DISTRIBUTION = "sae-lens"
NAMES = {"batch_topk": "batchtopk", "matryoshka": "matryoshka_batchtopk"}


def settings_of(job: Job) -> dict:
    """Return the settings of the architecture's configuration, without the shapes."""
    match job.architecture:
        case "standard" | "gated":
            return {"l1_coefficient": job.sparsity}
        case "jumprelu":
            return {"l0_coefficient": job.sparsity, "jumprelu_bandwidth": job.bandwidth}
        case "matching_pursuit":
            return {"max_iterations": job.k}
        case _:
            levels = {"matryoshka_widths": list(job.widths)} if job.architecture == "matryoshka" else {}
            # Codes are chosen by their values, as in the paper; SAELens' default weighs them by decoder norms.
            return {
                "k": job.k,
                "rescale_acts_by_decoder_norm": False,
                "use_sparse_activations": job.mode == "sparse",
                "aux_loss_coefficient": 1 / 32,
                **levels,
            }


class Training:
    """Steps of `SAETrainer`; modes: fp32, fp64, bf16 (its autocast), sparse (topk's sparse activations), compiled."""

    def __init__(self, job: Job, weights: dict[str, Tensor]):
        architecture = NAMES.get(job.architecture, job.architecture)
        shapes = {"d_in": job.d_in, "d_sae": job.d_sae, "device": job.device}
        shapes["dtype"] = str(job.dtype).removeprefix("torch.")
        self.sae = TrainingSAE.from_dict({"architecture": architecture, **shapes, **settings_of(job)})
        weights = dict(weights)
        if job.architecture == "jumprelu":
            weights["threshold"] = weights.pop("log_threshold").exp()
        with torch.no_grad():
            for name, parameter in self.sae.named_parameters():
                parameter.copy_(weights[name])
        if job.mode == "compiled":
            self.sae.training_forward_pass = torch.compile(self.sae.training_forward_pass)
        config = SAETrainerConfig(
            total_training_samples=10**12,
            train_batch_size_samples=job.batch,
            lr=job.lr,
            # The end of its constant schedule; its runner sets a tenth of lr.
            lr_end=job.lr,
            device=job.device,
            autocast=job.mode in ("bf16", "compiled"),
            dead_feature_window=job.dead_after,
        )
        self.trainer = SAETrainer(config, self.sae, data_provider=iter(()))
        self.keeps_rows = job.architecture == "matching_pursuit"
        if self.keeps_rows:
            self.sae.W_dec.register_post_accumulate_grad_hook(_remove_growth)

    def step(self, x: Tensor, y: Tensor, number: int) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1
        if self.keeps_rows:
            with torch.no_grad():
                self.sae.W_dec /= self.sae.W_dec.norm(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.sae.encode(x)
        values = codes.coalesce().values() if codes.is_sparse else codes
        return self.sae.decode(codes), (values != 0).sum()


def _remove_growth(rows: Tensor) -> None:
    """Remove the part of the gradient that would only change the norms of rows."""
    assert rows.grad is not None
    rows.grad -= (rows.grad * rows).sum(1, keepdim=True) * rows

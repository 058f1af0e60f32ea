"""Settings of training by gradient steps."""

import math
from dataclasses import dataclass
from enum import Enum

from fsae.training.scaling import Scale


class Precision(Enum):
    """What the products over batch x d_sae are computed in. With `bf16` they are rounded to bfloat16; weights, sparse
    batches' codes and gradients, losses and thresholds stay in float32."""

    fp32 = "fp32"
    bf16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """Training with Adam.

    Attributes:
        tokens: training vectors in all (tokens of a language model).
        batch_size: vectors a step.
        lr: learning rate after warm-up.
        beta1, beta2: Adam's decay rates.
        warm_up: share of training over which the learning rate rises linearly.
        decay: share of training, at its end, over which it falls linearly to 0.
        clip_norm: largest norm of the whole gradient, or null.
        precision: of the products over batch x d_sae.
        compile: have torch.compile fuse the forward pass of dense codes. Its first step takes up to a minute, and where
            codes are sparse from the start there is nothing for it to do.
        activation_scale: what activations are multiplied by.
        dead_after: vectors without firing after which a latent counts as dead.
        resample_every: vectors after which dead latents are drawn anew, or null for never; not in the last fifth of
            training, where they would have no time to learn.
        log_every: steps between logged values; each is a mean over the steps since the last.
        checkpoint_seconds: time between checkpoints.
    """

    tokens: int = 100_000_000
    batch_size: int = 4096
    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.999
    warm_up: float = 0.01
    decay: float = 0.2
    clip_norm: float | None = 1.0
    precision: Precision = Precision.fp32
    compile: bool = False
    activation_scale: Scale = Scale.sqrt_d
    dead_after: int = 1_000_000
    resample_every: int | None = None
    log_every: int = 50
    checkpoint_seconds: float = 300.0

    def __post_init__(self):
        for name in ("tokens", "batch_size", "lr", "dead_after", "log_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must be positive and finite")
        for name in ("warm_up", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it is a share of training, 0 to 1")
        if self.warm_up + self.decay > 1:
            raise ValueError(
                f"trainer.warm_up + trainer.decay is {self.warm_up + self.decay}; together they must not exceed 1"
            )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name in ("clip_norm", "resample_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"trainer.{name} is {value}; it must be positive, or null")
        if not self.checkpoint_seconds >= 0:
            raise ValueError(f"trainer.checkpoint_seconds is {self.checkpoint_seconds}; it must not be negative")
        if self.tokens < self.batch_size:
            raise ValueError(f"trainer.tokens ({self.tokens}) is less than one batch ({self.batch_size})")

    @property
    def steps(self) -> int:
        """Whole batches within `tokens`."""
        return self.tokens // self.batch_size

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm_up, decay = self.warm_up * self.steps, self.decay * self.steps
        rising = min(1.0, (step + 1) / warm_up) if warm_up > 0 else 1.0
        falling = min(1.0, (self.steps - step) / decay) if decay > 0 else 1.0
        return self.lr * rising * falling

    def logs_after(self, step: int) -> bool:
        """Whether a step, counted from 0, is the last of a logging interval."""
        return (step + 1) % self.log_every == 0 or step + 1 == self.steps

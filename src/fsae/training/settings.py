"""Settings of training: what every trainer lets one choose, gradient steps, and fitting."""

from dataclasses import dataclass, field
from enum import Enum

from fsae.ranges import COUNT, DECAY, INNER_SHARE, POSITIVE, SHARE, WEIGHT, Ranged, between
from fsae.training.scaling import Scale


class Precision(Enum):
    """What the products over batch x d_sae are computed in. With `bf16` they are rounded to bfloat16; weights, sparse
    batches' codes and gradients, losses and thresholds stay in float32."""

    fp32 = "fp32"
    bf16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class TrainerSettings(Ranged, group="trainer"):
    """What every trainer lets one choose.

    Attributes:
        samples: training vectors in all (tokens of a language model).
        batch_size: vectors a step.
        activation_scale: what activations are multiplied by.
        dead_after: vectors without firing after which a latent counts as dead.
        log_every: steps between logged values; each is a mean over the steps since the last.
        checkpoint_seconds: time between checkpoints.
    """

    samples: int = field(default=100_000_000, metadata=COUNT)
    batch_size: int = field(default=4096, metadata=COUNT)
    activation_scale: Scale = Scale.sqrt_d
    dead_after: int = field(default=1_000_000, metadata=COUNT)
    log_every: int = field(default=50, metadata=COUNT)
    checkpoint_seconds: float = field(default=300.0, metadata=between(least=0, most=10**9))

    def __post_init__(self):
        super().__post_init__()
        if self.samples < self.batch_size:
            raise ValueError(f"trainer.samples ({self.samples}) is less than one batch ({self.batch_size})")

    @property
    def steps(self) -> int:
        """Whole batches within `samples`."""
        return self.samples // self.batch_size

    def logs_after(self, step: int) -> bool:
        """Whether a step, counted from 0, is the last of a logging interval."""
        return (step + 1) % self.log_every == 0 or step + 1 == self.steps

    def updates_at(self, step: int) -> int:
        """How often the weights are moved on a step's batch; steps count from 0."""
        return 1

    def moves_encoder_at(self, step: int) -> bool:
        """Whether the encoder is moved on a step's batch; steps count from 0."""
        return True


@dataclass(frozen=True, kw_only=True)
class FitSettings(TrainerSettings):
    """Fitting without gradients: the cells' centres first, the principal components in each cell afterwards.

    Attributes:
        centre_fraction: share of training over which the centres are sought, for an architecture that has components
            too. The centres do not move afterwards.
    """

    centre_fraction: float = field(default=0.5, metadata=INNER_SHARE)

    def check_cells(self, cells: int, components: int) -> None:
        """Raise ValueError where a batch has no sample for each first centre, or no step is left for components."""
        if self.batch_size < cells:
            fewer = "lower arch.d_sae, or raise arch.rank" if components > 0 else "lower arch.d_sae"
            raise ValueError(
                f"trainer.batch_size is {self.batch_size}, but the first batch is to give {cells} centres; raise it, "
                f"{fewer}, for fewer cells"
            )
        if components > 0 and self.steps < 2:
            raise ValueError(
                f"trainer.samples={self.samples} is a single batch; centres and components need one each, so raise it, "
                "or lower trainer.batch_size"
            )


@dataclass(frozen=True, kw_only=True)
class AdamSettings(TrainerSettings):
    """Training with Adam.

    Attributes:
        updates_per_batch: steps of the optimiser on each batch.
        lr: learning rate after warm-up.
        beta1, beta2: Adam's decay rates.
        weight_decay: weight of half the squares of all weights, added to the gradient (Adam's own, not AdamW's).
        warm_up: share of training over which the learning rate rises linearly.
        decay: share of training, at its end, over which it falls linearly to 0.
        clip_norm: largest norm of the whole gradient, or null.
        precision: of the products over batch x d_sae.
        compile: have torch.compile fuse the forward pass of dense codes. Its first step takes up to a minute, and where
            codes are sparse from the start there is nothing for it to do.
        resample_every: vectors after which dead latents are drawn anew, or null for never; not in the last fifth of
            training, where they would have no time to learn.
    """

    updates_per_batch: int = field(default=1, metadata=COUNT)
    lr: float = field(default=3e-4, metadata=between(above=0, most=1e30))
    beta1: float = field(default=0.9, metadata=DECAY)
    beta2: float = field(default=0.999, metadata=DECAY)
    weight_decay: float = field(default=0.0, metadata=WEIGHT)
    warm_up: float = field(default=0.01, metadata=SHARE)
    decay: float = field(default=0.2, metadata=SHARE)
    clip_norm: float | None = field(default=1.0, metadata=POSITIVE)
    precision: Precision = Precision.fp32
    compile: bool = False
    resample_every: int | None = field(default=None, metadata=COUNT)

    def __post_init__(self):
        super().__post_init__()
        if self.warm_up + self.decay > 1:
            raise ValueError(
                f"trainer.warm_up + trainer.decay is {self.warm_up + self.decay}; together they must not exceed 1"
            )

    def updates_at(self, step: int) -> int:
        return self.updates_per_batch

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm_up, decay = self.warm_up * self.steps, self.decay * self.steps
        rising = min(1.0, (step + 1) / warm_up) if warm_up > 0 else 1.0
        falling = min(1.0, (self.steps - step) / decay) if decay > 0 else 1.0
        return self.lr * rising * falling

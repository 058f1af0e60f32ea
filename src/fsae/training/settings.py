"""Settings of training: of every trainer, of gradient steps, and of fitting. They build their learners."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, cast

from fsae.autoencoders.fitted import FittedAutoencoder, FittedSettings
from fsae.autoencoders.layout import Ends, Factor
from fsae.autoencoders.settings import AutoencoderSettings, DecoderInit, SparseAutoencoderSettings
from fsae.couplings.mutual import Directions
from fsae.losses.objective import Objective
from fsae.losses.term import LossTerm
from fsae.ranges import COUNT, DECAY, INNER_SHARE, POSITIVE, SHARE, WEIGHT, Ranged, between
from fsae.training.frozen import Frozen
from fsae.training.population import PopulationSettings
from fsae.training.resample import Scope
from fsae.training.room import RoomCheck, check_moments, check_second_moments
from fsae.training.scaling import Scale

if TYPE_CHECKING:
    from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder
    from fsae.training.learner import Learner


class Precision(Enum):
    """The type in which products over batch x d_sae are computed.

    With `bf16` their factors are rounded to bfloat16. Weights, the codes and gradients of sparse batches, losses and
    thresholds stay in float32.
    """

    fp32 = "fp32"
    bf16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class TrainerSettings(Ranged, ABC, group="trainer"):
    """Settings of every trainer.

    Attributes:
        samples: number of training vectors (tokens of a language model).
        batch_size: vectors per step.
        activation_scale: the scale of activations in training.
        dead_after: vectors without firing after which a latent counts as dead.
        log_every: steps between logged values; each value is a mean over the steps since the last.
        checkpoint_seconds: time between checkpoints.
    """

    samples: int = field(default=100_000_000, metadata=COUNT)
    batch_size: int = field(default=4096, metadata=COUNT)
    activation_scale: Scale = Scale.sqrt_d
    dead_after: int = field(default=1_000_000, metadata=COUNT)
    log_every: int = field(default=50, metadata=COUNT)
    checkpoint_seconds: float = field(default=300.0, metadata=between(least=0, most=10**9))

    # Memory that must be free before training begins.
    room_checks: ClassVar[tuple[RoomCheck, ...]] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.samples < self.batch_size:
            raise ValueError(f"trainer.samples ({self.samples}) is less than one batch ({self.batch_size})")

    @property
    def steps(self) -> int:
        """The number of whole batches within `samples`."""
        return self.samples // self.batch_size

    @property
    def compiles(self) -> bool:
        """True if training uses torch.compile, which traces one function at a time."""
        return False

    @property
    def rounds_products(self) -> bool:
        """True if training computes its products in bfloat16."""
        return False

    def logs_after(self, step: int) -> bool:
        """Return whether a step, counted from 0, is the last of a logging interval."""
        return (step + 1) % self.log_every == 0 or step + 1 == self.steps

    def updates_at(self, step: int) -> int:
        """Return how often the weights are updated on the batch of a step; steps count from 0."""
        return 1

    def has_gradients_at(self, step: int) -> bool:
        """Return whether a step moves weights by gradients, to which a coupling may add; steps count from 0."""
        return True

    @abstractmethod
    def check(self, arch: AutoencoderSettings, loss: Mapping[str, LossTerm], population: PopulationSettings) -> None:
        """Raise ValueError if this trainer cannot train such autoencoders."""

    def check_ends(self, arch: AutoencoderSettings, ends: Ends) -> None:
        """Raise ValueError if this trainer cannot train such an autoencoder between these ends."""

    @abstractmethod
    def build_learner(self, autoencoder: "Autoencoder", objective: Objective, scale: Factor, seed: int) -> "Learner":
        """Build the learner of one autoencoder.

        Args:
            autoencoder: of an architecture that passed `check`, with weights in scaled units.
            objective: the sum of terms that training minimises.
            scale: the factor by which training multiplies raw targets, or one per dimension.
            seed: of the random numbers that training draws.
        """


@dataclass(frozen=True, kw_only=True)
class FitSettings(TrainerSettings):
    """Settings of fitting without gradients: first the centres of cells, then the principal components in each cell.

    Attributes:
        centre_fraction: share of training in which the centres are fitted, for an architecture that also has
            components. The centres do not move afterwards.
    """

    centre_fraction: float = field(default=0.5, metadata=INNER_SHARE)

    room_checks: ClassVar[tuple[RoomCheck, ...]] = (check_second_moments,)

    def check(self, arch: AutoencoderSettings, loss: Mapping[str, LossTerm], population: PopulationSettings) -> None:
        if not arch.fitted:
            raise ValueError(f"arch {arch.name} is trained by gradients: choose trainer=adam")
        for key, term in loss.items():
            if term.weight > 0 and not term.minimised_by_least_squares:
                raise ValueError(
                    f"loss.{key}.weight is {term.weight}, but arch {arch.name} is fitted to the squared error alone; "
                    "set it to 0"
                )
        if population.mutual.weight > 0 or population.reinitialise.scope is not Scope.none:
            raise ValueError(
                f"arch {arch.name} is fitted without gradients: a mutual term or re-initialisation would have no "
                "effect; set population.mutual.weight=0 and population.reinitialise.scope=none"
            )

    def check_ends(self, arch: AutoencoderSettings, ends: Ends) -> None:
        """Raise ValueError if a batch has no sample for each first centre, or no step is left for components."""
        fitted, d_in = cast(FittedSettings, arch), ends.input.width
        cells, components = fitted.cells(d_in), fitted.components(d_in)
        if self.batch_size < cells:
            fewer = "lower arch.d_sae, or raise arch.rank" if components > 0 else "lower arch.d_sae"
            raise ValueError(
                f"trainer.batch_size is {self.batch_size}, but the first batch must supply {cells} centres; raise it, "
                f"{fewer}, for fewer cells"
            )
        if components > 0 and self.steps < 2:
            raise ValueError(
                f"trainer.samples={self.samples} is a single batch; centres and components need one each, so raise it, "
                "or lower trainer.batch_size"
            )

    def build_learner(self, autoencoder: "Autoencoder", objective: Objective, scale: Factor, seed: int) -> "Learner":
        from fsae.training.fitted_learner import FittedLearner

        return FittedLearner(cast(FittedAutoencoder, autoencoder), objective, self, scale, seed)


@dataclass(frozen=True, kw_only=True)
class AdamSettings(TrainerSettings):
    """Settings of training with Adam.

    Attributes:
        updates_per_batch: steps of the optimiser on each batch.
        lr: learning rate after warm-up.
        beta1, beta2: Adam's decay rates.
        weight_decay: weight of half the squares of all weights, added to the gradient (as in Adam, not AdamW).
        warm_up: share of training over which the learning rate rises linearly.
        decay: share of training, at its end, over which the learning rate falls linearly to 0.
        clip_norm: largest norm of the whole gradient, or null.
        precision: of the products over batch x d_sae.
        compile: let torch.compile fuse the forward pass of dense codes. Its first step takes up to a minute, and it has
            no effect if codes are sparse from the start.
        resample_every: vectors after which dead latents are resampled, or null for never. In the last fifth of training
            they are not, because they would have no time to learn.
        frozen: the weights that stay at their random start, for a control; `none` trains all of them.
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
    frozen: Frozen = Frozen.none

    room_checks: ClassVar[tuple[RoomCheck, ...]] = (check_moments,)
    # True if gradients train the decoder, too.
    trains_decoder: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.warm_up + self.decay > 1:
            raise ValueError(
                f"trainer.warm_up + trainer.decay is {self.warm_up + self.decay}; together they must not exceed 1"
            )

    @property
    def compiles(self) -> bool:
        return self.compile

    @property
    def rounds_products(self) -> bool:
        return self.precision is Precision.bf16

    def updates_at(self, step: int) -> int:
        return self.updates_per_batch

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm_up, decay = self.warm_up * self.steps, self.decay * self.steps
        rising = min(1.0, (step + 1) / warm_up) if warm_up > 0 else 1.0
        falling = min(1.0, (self.steps - step) / decay) if decay > 0 else 1.0
        return self.lr * rising * falling

    def check(self, arch: AutoencoderSettings, loss: Mapping[str, LossTerm], population: PopulationSettings) -> None:
        if arch.fitted:
            raise ValueError(f"arch {arch.name} has no gradients: choose trainer=fit")
        for key, term in loss.items():
            if term.detaches_decoder and self.trains_decoder and arch.frees_decoder_norms:
                raise ValueError(
                    f"arch.decoder_norm is free, so the sparsity term shrinks decoder rows, and loss.{key} does not "
                    f"hold what the gate needs of them: latents would all switch on. Set loss.{key}.detach_decoder="
                    "false, or arch.decoder_norm=unit"
                )
        if self.frozen is not Frozen.none:
            self._check_frozen(cast(SparseAutoencoderSettings, arch), population)
        if self.compile and shutil.which("g++") is None:
            raise ValueError(
                "trainer.compile lets torch.compile generate C++, and there is no g++; install it, or leave it out"
            )

    def _check_frozen(self, arch: SparseAutoencoderSettings, population: PopulationSettings) -> None:
        """Raise ValueError if something would change, or share, the weights that are frozen."""
        frozen = f"trainer.frozen is {self.frozen.name}"
        if arch.align_encoder and self.frozen.fixes_encoder:
            raise ValueError(f"{frozen}, and arch.align_encoder moves the encoder; set arch.align_encoder=false")
        if arch.decoder_init is DecoderInit.zeros and self.frozen is not Frozen.encoder:
            raise ValueError(
                f"{frozen}, and arch.decoder_init=zeros leaves no rows to keep; set arch.decoder_init=random"
            )
        if arch.archetype_distance is not None and self.frozen is not Frozen.encoder:
            raise ValueError(
                f"{frozen}, and arch.archetype_distance lets decoder rows move among all of their first ones; set "
                "arch.archetype_distance=null"
            )
        if arch.tied and self.frozen is not Frozen.all:
            raise ValueError(
                f"{frozen}, and arch.encoder_init=tied makes the encoder the transpose of the decoder, so neither can "
                "stay alone; set arch.encoder_init=transpose, or trainer.frozen=all"
            )
        if self.resample_every is not None:
            raise ValueError(f"{frozen}, and resampling would replace weights; set trainer.resample_every=null")
        if population.reinitialise.scope is not Scope.none:
            raise ValueError(
                f"{frozen}, and re-initialisation would replace weights; set population.reinitialise.scope=none"
            )
        pulls_encoder = population.mutual.directions is Directions.encoder
        fixed = self.frozen.fixes_encoder if pulls_encoder else self.frozen.fixes_decoder
        if population.mutual.weight > 0 and fixed:
            raise ValueError(
                f"{frozen}, and the mutual term pulls on what is frozen; set population.mutual.weight=0, or choose "
                "other population.mutual.directions"
            )

    def build_learner(self, autoencoder: "Autoencoder", objective: Objective, scale: Factor, seed: int) -> "Learner":
        from fsae.training.gradient_learner import GradientLearner

        return GradientLearner(cast("SparseAutoencoder", autoencoder), objective, self, scale, seed)

"""Settings of PAM-SGD (Budd et al. 2025, arXiv 2505.11836)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, cast

from fsae.autoencoders.layout import Ends, Factor
from fsae.autoencoders.settings import AutoencoderSettings, SparseAutoencoderSettings
from fsae.couplings.mutual import Directions
from fsae.losses.objective import Objective
from fsae.losses.term import LossTerm
from fsae.ranges import COUNT, COUNT_OR_NONE, SHARE, WEIGHT
from fsae.training.frozen import Frozen
from fsae.training.population import PopulationSettings
from fsae.training.room import RoomCheck, check_equations, check_moments
from fsae.training.settings import AdamSettings

if TYPE_CHECKING:
    from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder
    from fsae.training.learner import Learner


@dataclass(frozen=True, kw_only=True)
class PamSettings(AdamSettings):
    """Settings of PAM-SGD: in each round Adam trains the encoder, then the decoder and its bias are solved for.

    The terms of the objective train the encoder alone. The decoder minimises the squared error, of weight 1, and the
    squares below. All weights are weights of means over samples; the weights of the paper, which sums over N samples,
    are N times as large. Latents are resampled between rounds only, and the gathered sums are then discarded.

        batch by batch    encoder_batches=1                          the batch is encoded a second time for gathering
        in full           encoder_batches=N decoder_batches=N        a pass that trains the encoder, then a pass that
                                                                     gathers codes at the fixed encoder, as published
        streaming         encoder_batches=n memory=0.9               codes are gathered on the encoder's own batches, as
                                                                     the last update found them: no batch is encoded
                                                                     only for gathering, but the encoder has moved on
                                                                     since; a last round may be shorter

    Attributes:
        encoder_batches: batches per round on which the encoder is trained (`updates_per_batch` times on each).
        decoder_batches: batches per round after these, on which codes are gathered at a fixed encoder; 0 gathers them
            on the encoder's own batches.
        memory: share of their weight that gathered sums keep from round to round: 0 keeps one round only, 1 weighs all
            rounds equally.
        alpha, beta: weight of the squares of W_dec and of b_dec.
        mu, nu: weight of the squared change of W_dec and of b_dec in a round.
        mu_enc, nu_enc: weight of the squared change of W_enc, and of all other encoder weights, in a round.
    """

    encoder_batches: int = field(default=1, metadata=COUNT)
    decoder_batches: int = field(default=0, metadata=COUNT_OR_NONE)
    memory: float = field(default=0.0, metadata=SHARE)
    alpha: float = field(default=1e-6, metadata=WEIGHT)
    beta: float = field(default=1e-6, metadata=WEIGHT)
    mu: float = field(default=1e-3, metadata=WEIGHT)
    nu: float = field(default=1e-3, metadata=WEIGHT)
    mu_enc: float = field(default=1e-3, metadata=WEIGHT)
    nu_enc: float = field(default=1e-3, metadata=WEIGHT)

    room_checks: ClassVar[tuple[RoomCheck, ...]] = (check_moments, check_equations)
    trains_decoder: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if self.steps % self.round and (self.decoder_batches > 0 or self.memory == 0):
            whole = self.round * self.batch_size
            rounds = self.samples // whole
            nearest = " or ".join(str(each * whole) for each in (rounds, rounds + 1) if each > 0)
            raise ValueError(
                f"trainer.samples ({self.samples}) end in the middle of a round of {whole} (trainer.encoder_batches + "
                f"trainer.decoder_batches are {self.round}, of {self.batch_size} each), and the decoder would belong "
                f"to an earlier encoder; make it {nearest}"
            )

    @property
    def round(self) -> int:
        """The number of batches per round."""
        return self.encoder_batches + self.decoder_batches

    def has_gradients_at(self, step: int) -> bool:
        return step % self.round < self.encoder_batches

    def gathers_at(self, step: int) -> bool:
        """Return whether the codes of a step's batch are gathered."""
        return self.decoder_batches == 0 or not self.has_gradients_at(step)

    def solves_after(self, step: int) -> bool:
        """Return whether the decoder is solved for after a step."""
        return (step + 1) % self.round == 0 or step + 1 == self.steps

    def may_resample_after(self, step: int) -> bool:
        """Return whether latents may be resampled after a step.

        They may between rounds, if a whole round follows, so that no decoder is solved for from few samples.
        """
        return self.solves_after(step) and step + self.round < self.steps

    def updates_at(self, step: int) -> int:
        return self.updates_per_batch if self.has_gradients_at(step) else 1

    def check(self, arch: AutoencoderSettings, loss: Mapping[str, LossTerm], population: PopulationSettings) -> None:
        super().check(arch, loss, population)
        sparse = cast(SparseAutoencoderSettings, arch)
        if self.frozen not in (Frozen.none, Frozen.encoder):
            raise ValueError(
                f"trainer.frozen is {self.frozen.name}, but trainer=pam solves for the decoder; set "
                "trainer.frozen=encoder, or choose trainer=adam"
            )
        if sparse.tied:
            raise ValueError(
                "trainer=pam solves for the decoder alone, and arch.encoder_init=tied makes it the transpose of the "
                "encoder; choose another arch.encoder_init"
            )
        if sparse.align_encoder:
            raise ValueError(
                "trainer=pam solves for the decoder after the encoder's steps, so arch.align_encoder would not hold; "
                "set arch.align_encoder=false"
            )
        if sparse.archetype_distance is not None:
            raise ValueError(
                "trainer=pam solves for decoder rows of any kind, so arch.archetype_distance would not hold; set "
                "arch.archetype_distance=null"
            )
        if sparse.reads_decoder:
            raise ValueError(
                f"trainer=pam solves for the decoder at fixed codes, and the codes of arch {sparse.name} depend on the "
                "decoder; choose another arch, or arch.score=plain if its scores are weighted"
            )
        if not sparse.frees_decoder_norms:
            raise ValueError(
                "arch.decoder_norm is unit, but trainer=pam solves for decoder rows of any norm; set "
                "arch.decoder_norm=free"
            )
        for name, term in loss.items():
            if term.of_decoder and term.weight > 0:
                raise ValueError(
                    f"loss.{name} ({type(term).__name__}) pulls on the decoder, which trainer=pam solves for without "
                    f"it; set {'penalty=none' if name == 'penalty' else f'loss.{name}.weight=0'}"
                )
        weights = [term.weight for term in loss.values() if term.minimised_by_least_squares]
        if weights != [1.0]:
            found = (
                f"loss.reconstruction.weight is {weights[0]}; set it to 1, and choose the weights of the other terms "
                "relative to it"
                if weights
                else "no term of the loss is the squared error; choose another loss, such as loss=squared_error"
            )
            raise ValueError(
                "trainer=pam solves for the decoder of least squared error, and the encoder must be trained on the "
                f"same, but {found}"
            )
        if population.mutual.weight > 0 and population.mutual.directions is Directions.decoder:
            raise ValueError(
                "population.mutual pulls on decoders, which trainer=pam solves for without it; set "
                "population.mutual.directions=encoder"
            )

    def check_ends(self, arch: AutoencoderSettings, ends: Ends) -> None:
        if ends.blocks:
            raise ValueError(
                "trainer=pam solves for a decoder whose latents write all parts, and in this layout some write some "
                "parts only; choose trainer=adam"
            )

    def build_learner(self, autoencoder: "Autoencoder", objective: Objective, scale: Factor, seed: int) -> "Learner":
        from fsae.training.pam_learner import PamLearner

        return PamLearner(cast("SparseAutoencoder", autoencoder), objective, self, scale, seed)

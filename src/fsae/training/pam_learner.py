"""PAM-SGD: the encoder by gradient steps, the decoder in closed form, in turns (Budd et al. 2025, arXiv 2505.11836)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.record import ForwardRecord
from fsae.losses.objective import Objective
from fsae.ranges import COUNT, COUNT_OR_NONE, SHARE, WEIGHT
from fsae.sparse.codes import Codes
from fsae.training.gradient_learner import GradientLearner
from fsae.training.least_squares import LeastSquares
from fsae.training.reinitialisation import Reinitialisation
from fsae.training.settings import AdamSettings


@dataclass(frozen=True, kw_only=True)
class PamSettings(AdamSettings):
    """Training in rounds: Adam moves the encoder, codes are gathered, the decoder and its bias are solved for.

    The objective's terms train the encoder alone; of them the decoder sees the squared error, of weight 1, and the
    squares below. All weights are of means over samples: those of the paper, which sums over N, are N times as large.
    Latents are drawn anew between rounds only, and what was gathered before is forgotten with them.

        batch by batch    encoder_batches=1                          codes of the same batch, taken anew
        in full           encoder_batches=N decoder_batches=N        a pass that moves the encoder, and one at the
                                                                     encoder as it then is, gathering: the published one
        streaming         encoder_batches=n memory=0.9               codes of every batch as its last update found them:
                                                                     nothing is encoded only for gathering, but codes
                                                                     are of an encoder that has moved on since; a last
                                                                     round that is cut short ends like any other

    Attributes:
        encoder_batches: of a round, on which the encoder is moved (`updates_per_batch` times on each).
        decoder_batches: of a round, thereafter, on which codes are gathered at a fixed encoder; 0 gathers them on the
            encoder's own batches.
        memory: share of its weight that what was gathered keeps from round to round: 0 for one round's only, 1 for all
            alike.
        alpha, beta: weight of the squares of W_dec and of b_dec.
        mu, nu: costs to move: weight of the squared change of W_dec and of b_dec in a round.
        mu_enc, nu_enc: likewise of W_enc, and of all else in the encoder, since the round began.
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

    def __post_init__(self):
        super().__post_init__()
        if self.steps % self.round and (self.decoder_batches > 0 or self.memory == 0):
            whole = self.round * self.batch_size
            rounds = self.samples // whole
            nearest = " or ".join(str(each * whole) for each in (rounds, rounds + 1) if each > 0)
            raise ValueError(
                f"trainer.samples ({self.samples}) end in the middle of a round of {whole} (trainer.encoder_batches + "
                f"trainer.decoder_batches are {self.round}, of {self.batch_size} each), and the decoder would be that "
                f"of an earlier encoder; make it {nearest}"
            )

    @property
    def round(self) -> int:
        """Batches of a round."""
        return self.encoder_batches + self.decoder_batches

    def moves_encoder_at(self, step: int) -> bool:
        return step % self.round < self.encoder_batches

    def gathers_at(self, step: int) -> bool:
        """Whether the codes of a step's batch are gathered."""
        return self.decoder_batches == 0 or not self.moves_encoder_at(step)

    def solves_after(self, step: int) -> bool:
        """Whether the decoder is solved for after a step."""
        return (step + 1) % self.round == 0 or step + 1 == self.steps

    def restarts_after(self, step: int) -> bool:
        """Whether latents may be drawn anew after a step: between rounds, where a whole one is to come, so that no
        decoder is that of a few samples."""
        return self.solves_after(step) and step + self.round < self.steps

    def updates_at(self, step: int) -> int:
        return self.updates_per_batch if self.moves_encoder_at(step) else 1


class PamLearner(GradientLearner):
    """A member whose decoder is solved for.

    At fixed codes W_dec and b_dec are the joint minimum. Where the encoder subtracts b_dec from its input, its biases
    take up what b_dec's change would do to the codes, so those that were solved for are those that are decoded.
    """

    settings: PamSettings

    def __init__(
        self, autoencoder: SparseAutoencoder, objective: Objective, settings: PamSettings, scale: float, seed: int
    ):
        super().__init__(autoencoder, objective, settings, scale, seed)
        autoencoder.W_dec.requires_grad_(False)
        autoencoder.b_dec.requires_grad_(False)
        self._gathered = LeastSquares()
        # The encoder as it was when the round began.
        self._began: dict[str, Tensor] = {}

    def backward(self, x: Tensor, step: int, targets: Tensor | None = None) -> ForwardRecord:
        if not self.settings.moves_encoder_at(step):
            with torch.no_grad():
                return self.forward(x, step, targets)[0]
        record = super().backward(x, step, targets)
        self._add_costs_to_move()
        return record

    def update(self, step: int) -> None:
        if self.settings.moves_encoder_at(step):
            super().update(step)

    def finish(self, record: ForwardRecord, step: int) -> None:
        """The codes are gathered and the decoder is solved for, where that is due; solving waits for the device.

        Raises:
            ValueError: the decoder's equations have no single solution.
        """
        if self.settings.gathers_at(step):
            self._gathered.add(self._codes(record), record.wanted)
        if self.settings.solves_after(step):
            self._solve()
        resampled = self.resampled
        super().finish(record, step)
        if self.resampled > resampled:
            self._gathered.decay(0)

    def start_over(self, record: ForwardRecord, step: int, when: Reinitialisation) -> int:
        count = super().start_over(record, step, when)
        if count > 0:
            self._gathered.decay(0)
        return count

    def _resamples_after(self, step: int) -> bool:
        return self._due_in_round(step, super()._resamples_after)

    def _looks_after(self, step: int, when: Reinitialisation) -> bool:
        return self._due_in_round(step, partial(super()._looks_after, when=when))

    def _due_in_round(self, step: int, due_after: Callable[[int], bool]) -> bool:
        """Whether a step ends a round in one of whose steps something was due that has to wait for the round's end."""
        of_round = range(step + 1 - self.settings.round, step + 1)
        return self.settings.restarts_after(step) and any(due_after(each) for each in of_round)

    @torch.no_grad()
    def _codes(self, record: ForwardRecord) -> Codes:
        """Of the record's batch."""
        if self.settings.round > 1:
            return record.codes
        with self.precision(record.inputs):
            return self.autoencoder.encode(record.inputs, self.sparse).codes

    def _solve(self) -> None:
        settings, autoencoder = self.settings, self.autoencoder
        solution = self._gathered.solve(
            autoencoder.W_dec,
            autoencoder.b_dec,
            alpha=settings.alpha,
            beta=settings.beta,
            mu=settings.mu,
            nu=settings.nu,
        )
        autoencoder.set_decoder(solution.W_dec, solution.b_dec)
        self._gathered.decay(settings.memory)
        self._began = {}
        # Of one solution an interval: it is found on the CPU.
        if "condition" not in self._sums:
            self._remember({"condition": autoencoder.b_dec.new_tensor(solution.condition())})

    @torch.no_grad()
    def _add_costs_to_move(self) -> None:
        costs = {
            name: self.settings.mu_enc if name == "W_enc" else self.settings.nu_enc
            for name, parameter in self.autoencoder.named_parameters()
            if parameter.requires_grad
        }
        if not self._began:
            self._began = {
                name: self.autoencoder.get_parameter(name).clone() for name, cost in costs.items() if cost > 0
            }
        for name, began in self._began.items():
            parameter = self.autoencoder.get_parameter(name)
            # What has no gradient of its own has not moved.
            if parameter.grad is not None:
                parameter.grad.add_(parameter - began, alpha=2 * costs[name])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"gathered": self._gathered.state_dict(), "began": self._began}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        device = self.autoencoder.W_dec.device
        self._gathered.load_state_dict(state["gathered"], device)
        self._began = {name: began.to(device) for name, began in state["began"].items()}

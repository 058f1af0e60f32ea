"""PAM-SGD: gradient steps for the encoder and a closed form for the decoder, in turns (Budd et al. 2025)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Factor
from fsae.autoencoders.record import ForwardRecord
from fsae.losses.objective import Objective
from fsae.sources.source import Partners
from fsae.sparse.codes import Codes
from fsae.training.gradient_learner import GradientLearner
from fsae.training.least_squares import LeastSquares
from fsae.training.pam_settings import PamSettings
from fsae.training.resample import Reinitialisation


class PamLearner(GradientLearner):
    """An autoencoder in training whose decoder is solved for (arXiv 2505.11836).

    W_dec and b_dec are the joint minimum at fixed codes. If the encoder subtracts b_dec from its input, its biases
    compensate for the change of b_dec, so that the codes stay those for which the decoder was solved.
    """

    settings: PamSettings

    def __init__(
        self, autoencoder: SparseAutoencoder, objective: Objective, settings: PamSettings, scale: Factor, seed: int
    ):
        super().__init__(autoencoder, objective, settings, scale, seed)
        autoencoder.W_dec.requires_grad_(False)
        autoencoder.b_dec.requires_grad_(False)
        self._gathered = LeastSquares()
        # The encoder at the start of the round.
        self._began: dict[str, Tensor] = {}

    def backward(
        self, x: Tensor, step: int, targets: Tensor | None = None, partners: Partners | None = None
    ) -> ForwardRecord:
        if not self.settings.has_gradients_at(step):
            with torch.no_grad():
                return self.forward(x, step, targets, partners)[0]
        record = super().backward(x, step, targets, partners)
        self._add_costs_to_move()
        return record

    def update(self, step: int) -> None:
        if self.settings.has_gradients_at(step):
            super().update(step)

    def finish(self, record: ForwardRecord, step: int) -> None:
        """Gather codes and solve for the decoder if due; solving waits for the device.

        Raises:
            ValueError: the decoder's equations have no single solution.
        """
        if self.settings.gathers_at(step):
            self._gathered.add(self._codes(record), record.wanted_of_codes)
        if self.settings.solves_after(step):
            self._solve()
        resampled = self.resampled
        super().finish(record, step)
        if self.resampled > resampled:
            self._gathered.decay(0)

    def reinitialise(self, record: ForwardRecord, step: int, when: Reinitialisation) -> int:
        count = super().reinitialise(record, step, when)
        if count > 0:
            self._gathered.decay(0)
        return count

    def _resamples_after(self, step: int) -> bool:
        return self._due_in_round(step, super()._resamples_after)

    def _looks_after(self, step: int, when: Reinitialisation) -> bool:
        return self._due_in_round(step, partial(super()._looks_after, when=when))

    def _due_in_round(self, step: int, due_after: Callable[[int], bool]) -> bool:
        """Return whether a step ends a round, and something was due in a step of the round that waits for its end."""
        of_round = range(step + 1 - self.settings.round, step + 1)
        return self.settings.may_resample_after(step) and any(due_after(each) for each in of_round)

    @torch.no_grad()
    def _codes(self, record: ForwardRecord) -> Codes:
        """Return the codes of the record's batch at the present encoder."""
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
        # Once per logging interval: it is computed on the CPU.
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
            # A parameter without a gradient has not moved.
            if parameter.grad is not None:
                parameter.grad.add_(parameter - began, alpha=2 * costs[name])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"gathered": self._gathered.state_dict(), "began": self._began}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        device = self.autoencoder.W_dec.device
        self._gathered.load_state_dict(state["gathered"], device)
        self._began = {name: began.to(device) for name, began in state["began"].items()}

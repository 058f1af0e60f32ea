"""The objective: a sum of named terms over a forward record."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.record import ForwardRecord
from fsae.autoencoders.settings import AutoencoderSettings
from fsae.losses.term import LossTerm, Moment


@dataclass(frozen=True, eq=False)
class Losses:
    """One batch's objective.

    Attributes:
        total: differentiable scalar.
        parts: detached scalars by name: `<term>` raw, `<term>_weighted`, and further measures of the terms.
    """

    total: Tensor
    parts: dict[str, Tensor]


class Objective:
    """sum_t weight_t(progress) term_t(record).

    Args:
        terms: by name, as in the config's `loss` group.
    """

    def __init__(self, terms: dict[str, LossTerm]):
        self.terms = terms
        self._memories: dict[str, dict[str, Any]] = {name: {} for name in terms}

    def __call__(self, record: ForwardRecord, moment: Moment, measure_all: bool) -> Losses:
        """Evaluate the terms.

        Args:
            record: forward record of one batch.
            moment: what terms need to know beyond it.
            measure_all: also evaluate terms whose weight is 0 now, to log them.
        """
        total = record.reconstruction.new_zeros(())
        parts: dict[str, Tensor] = {}
        device = record.inputs.device.type
        for name, term in self.terms.items():
            weight = term.weight_at(moment.progress)
            if weight == 0 and not measure_all:
                continue
            differentiated = weight != 0 and torch.is_grad_enabled()
            # What is only measured draws its own random numbers: measuring does not change the training.
            generator = moment.generator if differentiated else torch.Generator().manual_seed(moment.step)
            # Autocast ends where the losses begin: they are sums over thousands of entries, in float32.
            with torch.set_grad_enabled(differentiated), torch.autocast(device, enabled=False):
                known = replace(moment, memory=self._memories[name], generator=generator)
                measured = term.measure(record, known)
            if weight != 0:
                total = total + weight * measured.value
            value = measured.value.detach()
            parts |= {name: value, f"{name}_weighted": weight * value, **measured.beside}
        return Losses(total, parts | {"loss": total.detach()})

    @property
    def compares_partners(self) -> bool:
        """True if a term compares each sample with its partner."""
        return any("partners" in term.needs_of_source for term in self.terms.values())

    def state_dict(self) -> dict[str, Any]:
        return self._memories

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        for name, memory in state.items():
            self._memories[name] = {
                key: value.to(device) if isinstance(value, Tensor) else value for key, value in memory.items()
            }


def check_terms(terms: dict[str, LossTerm], arch: AutoencoderSettings) -> None:
    """Raise ValueError where a term reads what the architecture's record does not hold, or could change no weight."""
    for name, term in terms.items():
        missing = term.fields_read - arch.provides
        if missing:
            raise ValueError(
                f"loss.{name} ({type(term).__name__}) needs a forward record with {', '.join(sorted(missing))}, which "
                f"arch {arch.name} does not have; choose another loss group or arch"
            )
        if term.weight > 0 and term.needs_code_gradient and not arch.differentiable_codes:
            remedy = "penalty=none" if name == "penalty" else f"loss.{name}.weight=0, which measures it"
            raise ValueError(
                f"loss.{name} ({type(term).__name__}) trains weights through the codes, and those of arch "
                f"{arch.name} have no gradient; set {remedy}"
            )

"""Checks of free memory for all that training holds, before the first step."""

from collections.abc import Callable, Sequence
from typing import cast

import torch

from fsae.autoencoders.fitted import FittedSettings
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.settings import AutoencoderSettings
from fsae.memory import FEWER_AUTOENCODERS, require_free

# Raises ValueError if there is no room for autoencoders of these settings, between these ends, on a device.
RoomCheck = Callable[[Sequence[AutoencoderSettings], Ends, torch.device], None]


def check_moments(archs: Sequence[AutoencoderSettings], ends: Ends, device: torch.device) -> None:
    """Raise ValueError if no memory is free for the weights of autoencoders, their gradients, and the moments of Adam.

    Args:
        archs: one for each autoencoder.
        ends: the layouts of their inputs and targets.
        device: of the training.
    """
    d_in, d_out = ends.input.width, ends.target.width
    weights = sum((d_in + d_out) * arch.width(d_in) + ends.skip * d_in * d_out for arch in archs)
    require_free(
        # Each has a gradient and two moments.
        4 * 4 * weights,
        device,
        f"the weights of {len(archs)} autoencoder{'s' * (len(archs) > 1)}, and what Adam keeps of them,",
        f"lower arch.d_sae or arch.expansion, {FEWER_AUTOENCODERS}",
    )


def check_equations(archs: Sequence[AutoencoderSettings], ends: Ends, device: torch.device) -> None:
    """Raise ValueError if no memory is free for the sums and equations of decoders that are solved for side by side.

    Args:
        archs: one for each autoencoder.
        ends: the layouts of their inputs and targets.
        device: of the training.
    """
    widths = [arch.width(ends.input.width) for arch in archs]
    shown = ", ".join(f"{d_sae:,}" for d_sae in dict.fromkeys(widths))
    require_free(
        sum(4 * 8 * d_sae * (d_sae + ends.target.width) for d_sae in widths),
        device,
        f"trainer=pam and the equations of {len(widths)} decoders (d_sae {shown})",
        f"lower arch.d_sae, {FEWER_AUTOENCODERS}",
    )


def check_second_moments(archs: Sequence[AutoencoderSettings], ends: Ends, device: torch.device) -> None:
    """Raise ValueError if no memory is free for the second moments of all cells that are fitted side by side.

    They are on the CPU, for every device of the training.

    Args:
        archs: one for each autoencoder.
        ends: the layouts of their inputs and targets.
        device: of the training.
    """
    fitted, d_in = cast(Sequence[FittedSettings], archs), ends.input.width
    cells = sum(each.cells(d_in) for each in fitted if each.components(d_in) > 0)
    require_free(
        8 * cells * (d_in + 1) ** 2,
        torch.device("cpu"),
        f"second moments of {cells} cells of width {d_in}",
        f"lower arch.d_sae or raise arch.rank, for fewer cells, {FEWER_AUTOENCODERS}",
    )

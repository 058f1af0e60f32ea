"""Checks of free memory for all that training holds, before the first step."""

from collections.abc import Callable, Sequence
from typing import cast

import torch

from fsae.autoencoders.fitted import FittedSettings
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.settings import AutoencoderSettings, SparseAutoencoderSettings
from fsae.memory import FEWER_AUTOENCODERS, require_free
from fsae.wording import counted

# Each autoencoder's settings, with the layouts of its inputs and targets.
Wanted = Sequence[tuple[AutoencoderSettings, Ends]]
# Raises ValueError if there is no room for these autoencoders on a device.
RoomCheck = Callable[[Wanted, torch.device], None]


def check_moments(wanted: Wanted, device: torch.device) -> None:
    """Raise ValueError if no memory is free for the weights of autoencoders, their gradients, and the moments of Adam.

    Args:
        wanted: one for each autoencoder.
        device: of the training.
    """

    def weights(arch: AutoencoderSettings, ends: Ends) -> int:
        d_in, d_out = ends.input.width, ends.target.width
        d_sae = arch.width(d_in)
        mixed = cast(SparseAutoencoderSettings, arch).archetype_distance is not None
        return (d_in + d_out) * d_sae + ends.skip * d_in * d_out + mixed * d_sae * (d_sae + d_out)

    require_free(
        # Each has a gradient and two moments.
        4 * 4 * sum(weights(arch, ends) for arch, ends in wanted),
        device,
        f"the weights of {counted(len(wanted), 'autoencoder')}, and what Adam keeps of them,",
        f"lower arch.d_sae or arch.expansion, {FEWER_AUTOENCODERS}",
    )


def check_equations(wanted: Wanted, device: torch.device) -> None:
    """Raise ValueError if no memory is free for the sums and equations of decoders that are solved for side by side.

    Args:
        wanted: one for each autoencoder.
        device: of the training.
    """
    widths = [(arch.width(ends.input.width), ends.target.width) for arch, ends in wanted]
    shown = ", ".join(f"{d_sae:,}" for d_sae in dict.fromkeys(d_sae for d_sae, _ in widths))
    require_free(
        sum(4 * 8 * d_sae * (d_sae + d_out) for d_sae, d_out in widths),
        device,
        f"trainer=pam and the equations of {len(wanted)} decoders (d_sae {shown})",
        f"lower arch.d_sae, {FEWER_AUTOENCODERS}",
    )


def check_second_moments(wanted: Wanted, device: torch.device) -> None:
    """Raise ValueError if no memory is free for the second moments of all cells that are fitted side by side.

    They are on the CPU, for every device of the training.

    Args:
        wanted: one for each autoencoder.
        device: of the training.
    """
    fitted = [(cast(FittedSettings, arch), ends.input.width) for arch, ends in wanted]
    cells = [(arch.cells(d_in), d_in) for arch, d_in in fitted if arch.components(d_in) > 0]
    widths = ", ".join(map(str, dict.fromkeys(d_in for _, d_in in cells)))
    require_free(
        sum(8 * count * (d_in + 1) ** 2 for count, d_in in cells),
        torch.device("cpu"),
        f"second moments of {sum(count for count, _ in cells)} cells of width {widths}",
        f"lower arch.d_sae or raise arch.rank, for fewer cells, {FEWER_AUTOENCODERS}",
    )

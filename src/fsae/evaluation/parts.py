"""The parts of a dictionary's targets: their numbers, and units in which they count equally."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Factor, Layout
from fsae.outputs.results import Meaning, Shown


def of_parts(name: str, parts: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return a number of each part, as in "fvu_resid_mid.3"."""
    return {f"{name}_{part}": numbers[name] for part, numbers in parts.items()}


def meanings_of_parts(name: str, meaning: Meaning, parts: Iterable[str]) -> dict[str, Meaning]:
    """Return the meaning of a number of each part."""
    return {f"{name}_{part}": replace(meaning, text=f"{name} at {part}", shown=Shown.table) for part in parts}


def equal_parts(layout: Layout, targets: Float[Tensor, "samples d_out"]) -> Factor:
    """Return the factors of the dimensions by which every part of targets has a variance of 1; 1 if there is one part.

    In this unit the fvu of all parts together is the mean of each part's own.

    Raises:
        ValueError: a part has no variance.
    """
    if len(layout.parts) == 1:
        return 1.0
    for name, part in zip(layout.names, layout.split(targets), strict=True):
        if (part == part[0]).all():
            raise ValueError(
                f"the targets at {name} have no variance in {len(targets)} held-out samples, so this part cannot count "
                "as much as others; raise `samples` of the evaluation, or leave it out of eval"
            )
    variances = [(part - part.mean(0)).square().sum(1).mean().item() for part in layout.split(targets)]
    return layout.spread([variance**-0.5 for variance in variances], targets.device, targets.dtype)


def left_to_codes(
    autoencoder: Autoencoder, inputs: Float[Tensor, "batch d_in"], targets: Float[Tensor, "batch d_out"]
) -> Float[Tensor, "batch d_out"]:
    """Return what codes have to explain of targets: all but the linear path from the inputs."""
    path = autoencoder.linear_path(inputs)
    return targets if path is None else targets - path

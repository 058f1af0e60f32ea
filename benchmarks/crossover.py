"""The density above which dense products are faster than sparse ones (`fsae.training.gradient_learner.CROSSOVER`).

    python -m benchmarks.crossover                # some minutes, depending on the time of a dense step

It times whole steps of the architectures whose density changes during training, at two shapes, interleaved, on the GPU
if there is one. Each row shows the time of a sparse step relative to a dense one, at these shares of active codes.
"""

from collections.abc import Callable

from torch import Tensor

from benchmarks.machine import machine
from benchmarks.step import architectures, inputs, learner, medians, stepper
from fsae.training.settings import Precision

SHAPES = ((576, 1024, 1024), (768, 6144, 2048))
DENSITIES = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3)


def step(
    architecture: str, d_sae: int, density: float, x: Tensor, sparse: bool, precision: Precision
) -> Callable[[], object]:
    """Return a function that makes one step at this share of active codes."""
    settings, terms = architectures(d_sae, round(density * d_sae))[architecture]
    return stepper(learner(settings, terms, x, sparse, precision), x)


def main() -> None:
    """Print the table."""
    print(machine())
    print(f"{'sparse / dense at density':<44}" + "".join(f"{density:>7}" for density in DENSITIES))
    for d_in, d_sae, batch in SHAPES:
        x = inputs(batch, d_in)
        for name in ("standard", "gated", "jumprelu"):
            for precision in Precision:
                steps = {str(density): step(name, d_sae, density, x, True, precision) for density in DENSITIES}
                steps["dense"] = step(name, d_sae, 0.1, x, False, precision)
                t = medians(steps, repeats=3)
                row = "".join(f"{t[str(density)] / t['dense']:>7.2f}" for density in DENSITIES)
                print(f"{f'{name}, {precision.value}, {d_in} -> {d_sae}, batch {batch}':<44}{row}", flush=True)


if __name__ == "__main__":
    main()

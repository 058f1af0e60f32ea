"""The number that a sweeper minimises: one of a run's held-out results, with a penalty for another sparsity."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fsae.ranges import POSITIVE, Ranged


@dataclass(frozen=True, kw_only=True)
class SearchObjective(Ranged, group="search"):
    """A number of the results, plus a penalty if l0 is not the wanted one.

    Attributes:
        metric: its name in results.json, as in eval/fvu. Smaller values must be better, unless the sweeper maximises.
        target_l0: wanted active latents per sample. The penalty is |ln(l0 / target_l0)|: 0.1 if l0 is a tenth off,
            0.7 if it is half or twice the target. Null for no penalty.
    """

    metric: str = "eval/fvu"
    target_l0: float | None = field(default=None, metadata=POSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.metric.startswith("eval/"):
            raise ValueError(f"search.metric is {self.metric!r}; name a held-out result, as in search.metric=eval/fvu")

    def value(self, results: Mapping[str, Any]) -> float:
        """Return the number for these results; infinite if no latent fires and a sparsity is wanted.

        Raises:
            ValueError: the results have no such metric, or it is not finite.
        """
        measured = results.get(self.metric)
        if measured is None:
            numbers = sorted(name for name, value in results.items() if isinstance(value, int | float))
            raise ValueError(f"search.metric is {self.metric}, but the results are {', '.join(numbers)}")
        if self.target_l0 is None:
            return float(measured)
        l0 = results["eval/l0"]
        return float(measured) + (abs(math.log(l0 / self.target_l0)) if l0 > 0 else math.inf)

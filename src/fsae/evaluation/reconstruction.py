"""The distance of reconstructions from their targets."""

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import ForwardRecord


class ReconstructionMetric:
    """Errors of x_hat against x, over all samples b of the held-out set.

    mse: mean_b |x_b - x_hat_b|^2, summed over dimensions.
    fvu: sum_b |x_b - x_hat_b|^2 / sum_b |x_b - mean(x)|^2, the fraction of variance unexplained; mean(x) is the
        mean of the whole set.
    explained_variance: 1 - fvu, as sae_lens defines it.
    l2_ratio: mean_b |x_hat_b| / |x_b|, below 1 if reconstructions shrink. Samples with x_b = 0 are left out.
    cosine: mean_b cos(x_b, x_hat_b), 0 for x_hat_b = 0. Samples with x_b = 0 are left out.

    x is the target, whether it is the input or not. If an autoencoder's target is not its input (as in denoising),
    fvu_of_inputs: the fvu of the unchanged inputs against the target.

    Args:
        d_out: width of the targets.
        device: of the sums.
        denoises: whether inputs with separate targets are these targets with noise.
    """

    def __init__(self, d_out: int, device: torch.device, denoises: bool = False):
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self.samples = 0
        self._denoises = denoises
        self._mean = torch.zeros(d_out, dtype=torch.float64, device=device)
        self._squared_deviation = zero.clone()
        self._squared_error = zero.clone()
        self._squared_error_of_inputs: Tensor | None = None
        self._ratio = zero.clone()
        self._cosine = zero.clone()
        self._nonzero = zero.clone()

    @property
    def mean_target(self) -> Float[Tensor, " d_out"]:
        """Return the mean of all targets so far, in float64."""
        return self._mean

    @property
    def squared_deviation(self) -> Float[Tensor, ""]:
        """Return the sum of squared distances from the mean, in float64."""
        return self._squared_deviation

    @property
    def spread(self) -> Float[Tensor, ""]:
        """Return the samples' root mean square distance from their mean, in float64."""
        return (self._squared_deviation / self.samples).sqrt()

    def update(self, record: ForwardRecord) -> None:
        x = record.wanted.double()
        if self._denoises and record.targets is not None:
            before = self._squared_error_of_inputs
            error = (x - record.inputs.double()).square().sum()
            self._squared_error_of_inputs = error if before is None else before + error
        self.add(x, record.reconstruction.double())

    def add(self, x: Float[Tensor, "batch d_out"], x_hat: Float[Tensor, "batch d_out"]) -> None:
        """Add targets and their reconstructions, in float64."""
        self._squared_error += (x - x_hat).square().sum()
        self._add_deviation(x)
        norm, norm_hat = x.norm(dim=1), x_hat.norm(dim=1)
        self._nonzero += torch.count_nonzero(norm)
        self._ratio += torch.where(norm > 0, norm_hat / norm, 0.0).sum()
        product = norm * norm_hat
        self._cosine += torch.where(product > 0, (x * x_hat).sum(1) / product, 0.0).sum()

    def compute(self) -> dict[str, float]:
        of_inputs = {}
        if self._squared_error_of_inputs is not None:
            of_inputs["fvu_of_inputs"] = (self._squared_error_of_inputs / self._squared_deviation).item()
        fvu = (self._squared_error / self._squared_deviation).item()
        return of_inputs | {
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "mse": (self._squared_error / self.samples).item(),
            "cosine": (self._cosine / self._nonzero).item(),
            "l2_ratio": (self._ratio / self._nonzero).item(),
        }

    def _add_deviation(self, x: Float[Tensor, "batch d_out"]) -> None:
        # Chan, Golub and LeVeque's update. E|x|^2 - |E x|^2 would cancel if activations have a large mean.
        batch = x.shape[0]
        mean = x.mean(0)
        shift = mean - self._mean
        total = self.samples + batch
        self._squared_deviation += (x - mean).square().sum()
        self._squared_deviation += shift.square().sum() * (self.samples * batch / total)
        self._mean += shift * (batch / total)
        self.samples = total


class PartsMetric:
    """The metrics of `ReconstructionMetric` for each part of the targets, if there are several.

    Args:
        ends: the layouts of the autoencoder.
        device: of the sums.
    """

    def __init__(self, ends: Ends, device: torch.device):
        self._layout = ends.target
        several = len(ends.target.parts) > 1
        self._parts = [ReconstructionMetric(width, device) for width in ends.target.widths] if several else []

    def update(self, record: ForwardRecord) -> None:
        if not self._parts:
            return
        wanted, found = (self._layout.split(each.double()) for each in (record.wanted, record.reconstruction))
        for part, x, x_hat in zip(self._parts, wanted, found, strict=True):
            part.add(x, x_hat)

    def of_each(self) -> dict[str, dict[str, float]]:
        """Return each part's numbers, by its name; empty if there is one part.

        spread: root mean square distance of its targets from their mean.
        """
        named = zip(self._layout.names, self._parts, strict=False)
        return {name: part.compute() | {"spread": part.spread.item()} for name, part in named}

    def compute(self) -> dict[str, float]:
        """Return the means over the parts, in place of the numbers of the joined vectors.

        The part with the largest activations would decide the latter alone. mse is a sum, over parts too.
        """
        each = [part.compute() for part in self._parts]
        return {name: sum(part[name] for part in each) / len(each) for name in each[0] if name != "mse"} if each else {}

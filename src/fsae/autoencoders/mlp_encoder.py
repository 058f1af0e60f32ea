"""An encoder with a hidden layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fsae.autoencoders.batch_topk import BatchTopK, BatchTopKSettings
from fsae.autoencoders.layout import Ends, Factor
from fsae.autoencoders.record import Encoding, SAELensForm
from fsae.autoencoders.settings import number_in
from fsae.ranges import POSITIVE


@dataclass(frozen=True, kw_only=True)
class MLPEncoderSettings(BatchTopKSettings):
    """Settings of a BatchTopK autoencoder whose encoder has a hidden layer.

    Attributes:
        hidden_expansion: units of the hidden layer, as a multiple of d_in.
    """

    hidden_expansion: float = field(default=1.0, metadata=POSITIVE)

    affine_encoder: ClassVar[bool] = False
    saelens_names: ClassVar[tuple[str, ...]] = ("mlp_encoder",)
    saelens_vectors: ClassVar[tuple[str, ...]] = ("b_enc", "threshold")

    def hidden(self, d_in: int) -> int:
        """Return the number of hidden units for inputs of width d_in."""
        return max(1, round(self.hidden_expansion * d_in))

    def build(self, ends: Ends | int, generator: torch.Generator) -> "MLPEncoder":
        return MLPEncoder(ends, self, generator)

    def saelens_shapes(self, ends: Ends | int) -> dict[str, tuple[int, ...]]:
        d_in = Ends.of(ends).input.width
        hidden = self.hidden(d_in)
        layer = {"W_hidden": (d_in, hidden), "b_hidden": (hidden,), "W_back": (hidden, d_in)}
        return super().saelens_shapes(ends) | layer

    @classmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        hidden = number_in(config, "hidden_expansion", 1.0)
        return replace(super().from_saelens(architecture, config, d_sae), hidden_expansion=hidden)


class MLPEncoder(BatchTopK):
    """A BatchTopK autoencoder that encodes x + relu((x - b_dec) W_hidden + b_hidden) W_back.

    The hidden layer adds to the input, so that the columns of W_enc remain directions in the space of inputs. W_back
    starts at zero: the first step is that of a BatchTopK autoencoder.
    """

    latents_compete = True

    def __init__(self, ends: Ends | int, settings: MLPEncoderSettings, generator: torch.Generator):
        super().__init__(ends, settings, generator)
        hidden = settings.hidden(self.d_in)
        self.W_hidden = nn.Parameter(torch.randn(self.d_in, hidden, generator=generator) / self.d_in**0.5)
        self.b_hidden = nn.Parameter(torch.zeros(hidden))
        self.W_back = nn.Parameter(torch.zeros(hidden, self.d_in))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        hidden = torch.relu(self.encoder_input(x) @ self.W_hidden + self.b_hidden)
        return self.select(x + hidden @ self.W_back, sparse)

    def latent_axis(self, name: str) -> int | None:
        return None if name in ("W_hidden", "b_hidden", "W_back") else super().latent_axis(name)

    @torch.no_grad()
    def move_inputs(self, by: Float[Tensor, " d_in"]) -> None:
        super().move_inputs(by)
        self.b_hidden.add_(by @ self.W_hidden)

    @torch.no_grad()
    def change_unit(self, scale: Factor, target_scale: Factor) -> None:
        """See `Autoencoder.change_unit`; hidden units stay as they were."""
        super().change_unit(scale, target_scale)
        self.W_hidden.mul_(scale[:, None] if isinstance(scale, Tensor) else scale)
        self.W_back.div_(scale)

    def to_saelens(self) -> SAELensForm:
        settings = cast(MLPEncoderSettings, self.settings)
        tensors = self.saelens_tensors("b_enc", "W_hidden", "b_hidden", "W_back")
        tensors["threshold"] = self.threshold.expand(self.d_sae)
        config = {"k": settings.k, "hidden_expansion": settings.hidden_expansion}
        return SAELensForm("mlp_encoder", tensors, config, known=False)

    @torch.no_grad()
    def load_saelens(self, tensors: dict[str, Tensor]) -> None:
        super().load_saelens(tensors)
        self.threshold.copy_(tensors["threshold"][0])

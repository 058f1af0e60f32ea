"""The LISTA encoder: codes that are refined by the error of their reconstruction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.batch_topk import BatchTopK, BatchTopKSettings
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import Encoding, SAELensForm
from fsae.autoencoders.settings import number_in
from fsae.ranges import POSITIVE, between


@dataclass(frozen=True, kw_only=True)
class ListaSettings(BatchTopKSettings):
    """Settings of a BatchTopK autoencoder with a LISTA encoder.

    Attributes:
        refinements: how often the pre-activations are refined; 0 is a BatchTopK autoencoder.
        eta: size of the step of a refinement.
    """

    refinements: int = field(default=1, metadata=between(least=0, most=100))
    eta: float = field(default=0.3, metadata=POSITIVE)

    affine_encoder: ClassVar[bool] = False
    saelens_names: ClassVar[tuple[str, ...]] = ("lista",)
    saelens_vectors: ClassVar[tuple[str, ...]] = ("b_enc", "threshold")

    @property
    def reads_decoder(self) -> bool:
        return True

    def check_ends(self, ends: Ends) -> None:
        super().check_ends(ends)
        if not ends.same:
            raise ValueError(
                "arch Lista reads the error of its reconstruction like its input, so both must be of the same sites; "
                "set layout=autoencoder, or choose another arch"
            )

    def build(self, ends: Ends | int, generator: torch.Generator) -> "Lista":
        return Lista(ends, self, generator)

    def saelens_shapes(self, ends: Ends | int) -> dict[str, tuple[int, ...]]:
        early = {"early_thresholds": (self.refinements,)} if self.refinements > 0 else {}
        return super().saelens_shapes(ends) | early

    @classmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        refinements, eta = int(number_in(config, "refinements", 1)), number_in(config, "eta", 0.3)
        return replace(super().from_saelens(architecture, config, d_sae), refinements=refinements, eta=eta)


class Lista(BatchTopK):
    """A BatchTopK autoencoder whose pre-activations follow steps of ISTA (Gregor and LeCun 2010, with one W_enc).

    With u = x - b_dec and f_t = BatchTopK(h_t):  h_0 = u W_enc + b_enc,  h_(t+1) = h_t + eta (u - f_t W_dec) W_enc.
    So h_t are the ordinary pre-activations of a refined input, x + eta sum_(s < t) (u - f_s W_dec). Each selection has
    a threshold of its own for evaluation.

    Attributes:
        early_thresholds: of all selections but the last.
    """

    latents_compete = True
    early_thresholds: Tensor
    float32_names: ClassVar[tuple[str, ...]] = ("threshold", "early_thresholds")

    def __init__(self, ends: Ends | int, settings: ListaSettings, generator: torch.Generator):
        super().__init__(ends, settings, generator)
        self.register_buffer("early_thresholds", torch.full((settings.refinements,), -1.0))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        settings = cast(ListaSettings, self.settings)
        u, refined = self.encoder_input(x), x
        for number in range(1, settings.refinements + 1):
            codes = self.select(refined, sparse, number).codes
            refined = refined + settings.eta * (u - codes.decode(self.W_dec))
        return self.select(refined, sparse)

    @property
    def stages(self) -> list[Callable[[Tensor, bool], Encoding]]:
        # From a first reconstruction that is many times too long, the others would go astray.
        return [self.select, self.encode]

    def threshold_of(self, number: int) -> Float[Tensor, ""]:
        return self.threshold if number == 0 else self.early_thresholds[number - 1]

    @torch.no_grad()
    def move_inputs(self, by: Float[Tensor, " d_in"]) -> None:
        if cast(ListaSettings, self.settings).refinements > 0:
            raise ValueError(
                "arch Lista refines codes by the difference of its input, minus b_dec or not, and its reconstruction, "
                "and biases cannot make one of these differences of the other; set arch.apply_b_dec_to_input="
                f"{str(self.centre is not None).lower()}, as the known dictionary has it"
            )
        super().move_inputs(by)

    def multiply_pre_activations(self, unit: Tensor) -> None:
        super().multiply_pre_activations(unit)
        self.early_thresholds.mul_(unit[0])

    def to_saelens(self) -> SAELensForm:
        settings = cast(ListaSettings, self.settings)
        tensors = self.saelens_tensors("b_enc") | {"threshold": self.threshold.expand(self.d_sae)}
        if settings.refinements > 0:
            tensors["early_thresholds"] = self.early_thresholds
        config = {"k": settings.k, "refinements": settings.refinements, "eta": settings.eta}
        return SAELensForm("lista", tensors, config, known=False)

    @torch.no_grad()
    def load_saelens(self, tensors: dict[str, Tensor]) -> None:
        super().load_saelens(tensors)
        self.threshold.copy_(tensors["threshold"][0])
        if "early_thresholds" in tensors:
            self.early_thresholds.copy_(tensors["early_thresholds"])

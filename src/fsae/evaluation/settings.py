"""Settings of the held-out evaluation."""

from dataclasses import dataclass, field

from fsae.ranges import COUNT, COUNT_OR_NONE, Ranged, between


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Ranged, group="eval"):
    """How much held-out data a run is evaluated on.

    Attributes:
        tokens: held-out activations (samples where the data is not text).
        batch_size: activations a batch. The Fisher metrics are statistics of a batch, so runs are comparable at the
            same size only.
        splice_tokens: held-out tokens on which the language model runs with the reconstruction spliced in; 0 switches
            that off.
        geometry: also look at the regions into which the autoencoder divides the space of its inputs.
    """

    tokens: int = field(default=32768, metadata=COUNT)
    batch_size: int = field(
        default=2048, metadata=between(least=2, most=10**9, meaning="samples whose latents are correlated")
    )
    splice_tokens: int = field(default=2048, metadata=COUNT_OR_NONE)
    geometry: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.tokens < self.batch_size:
            raise ValueError(
                f"eval.tokens is {self.tokens}, less than one batch of eval.batch_size={self.batch_size}; "
                "raise eval.tokens or lower eval.batch_size"
            )

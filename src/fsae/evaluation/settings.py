"""Settings of the held-out evaluation."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How much held-out data a run is evaluated on.

    Attributes:
        tokens: held-out activations (samples where the data is not text).
        batch_size: activations a batch. The Fisher metrics are statistics of a batch, so runs are comparable at the
            same size only.
        splice_tokens: held-out tokens on which the language model runs with the reconstruction spliced in; 0 switches
            that off.
        geometry: also look at the regions into which the autoencoder divides the space of its inputs.
    """

    tokens: int = 32768
    batch_size: int = 2048
    splice_tokens: int = 2048
    geometry: bool = False

    def __post_init__(self):
        if self.batch_size < 2:
            raise ValueError(f"eval.batch_size is {self.batch_size}; correlations between latents need at least 2")
        if self.tokens < self.batch_size:
            raise ValueError(
                f"eval.tokens is {self.tokens}, less than one batch of eval.batch_size={self.batch_size}; "
                "raise eval.tokens or lower eval.batch_size"
            )
        if self.splice_tokens < 0:
            raise ValueError(f"eval.splice_tokens is {self.splice_tokens}; use 0 to switch the splice off")

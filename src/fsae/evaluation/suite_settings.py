"""Sizes that the evaluations of a suite share."""

from dataclasses import dataclass, field

from fsae.ranges import COUNT, Ranged, between


@dataclass(frozen=True, kw_only=True)
class SuiteSettings(Ranged, group="suite"):
    """The held-out data that evaluations read, unless an evaluation has a size of its own.

    Attributes:
        samples: held-out samples, as in `eval.vectors.samples`.
        batch_size: samples per batch, as in `eval.vectors.batch_size`.
        tokens: held-out tokens on which the language model runs, as in `eval.splice.tokens`.
        latents: tokens or samples in which latents are looked for, as in `eval.latents.tokens`.
    """

    samples: int = field(default=32768, metadata=COUNT)
    batch_size: int = field(default=2048, metadata=between(least=1, most=10**9))
    tokens: int = field(default=2048, metadata=COUNT)
    latents: int = field(default=100_000, metadata=COUNT)

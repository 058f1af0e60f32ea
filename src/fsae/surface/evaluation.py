"""Numbers of a dictionary on held-out vectors."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from fsae.evaluation.vectors import Vectors, evaluate_vectors
from fsae.losses.fisher import fisher_of
from fsae.outputs.results import results_table
from fsae.ranges import Range, check_number
from fsae.sources.source import Batch, Source, in_batches
from fsae.sources.vectors import as_vectors
from fsae.surface.dictionary import Dictionary

_DEFAULTS = Vectors()
# Correlations between latents need two samples.
_SIZE = Range(least=2, most=10**15)


class Numbers(dict[str, float]):
    """Numbers of an evaluation by the names of results.json, such as "eval/fvu"; printed as a table with meanings."""

    @property
    def meanings(self) -> dict[str, str]:
        """Return the meaning of each number."""
        return {name: str(Vectors.meanings[name.removeprefix("eval/")]) for name in self}

    def __str__(self) -> str:
        numbers = {name.removeprefix("eval/"): value for name, value in self.items()}
        return results_table(numbers, Vectors.meanings)


def evaluate(
    dictionary: Dictionary,
    vectors: Tensor | Iterable[Tensor] | Source,
    *,
    samples: int | None = None,
    batch_size: int = _DEFAULTS.batch_size,
) -> Numbers:
    """Measure a dictionary on vectors that it was not trained on, as a run's evaluation of vectors does.

    Args:
        dictionary: the dictionary that is measured.
        vectors: raw vectors of shape (n, d_in), an iterable of such tensors, which is read once, or a source, which
            has a held-out part.
        samples: largest number of vectors to measure on; None for all of them, or 32,768 of a source.
        batch_size: vectors per batch. The Fisher numbers are statistics of a batch: compare them at one size only.

    Returns:
        Numbers by the names of results.json, in the vectors' unit; `numbers.meanings` explains each.

    Raises:
        ValueError: vectors of another width, fewer than two of them, numbers that are not finite, or a size that is
            too small.
    """
    check_number(samples, _SIZE, "samples", nullable=True)
    check_number(batch_size, _SIZE, "batch_size", nullable=False)
    if isinstance(vectors, Iterable) and not dictionary.autoencoder.ends.same:
        raise ValueError(
            f"{dictionary!r} reconstructs other vectors than it reads, so vectors alone are not enough; evaluate its "
            "run with python -m fsae.evaluate, or give a source, which has targets"
        )
    batches = _of_width(dictionary.d_in, _batches(vectors, samples, batch_size))
    terms = dictionary.settings.loss.values() if dictionary.settings is not None else ()
    (evaluated,) = evaluate_vectors([dictionary.autoencoder], batches, [fisher_of(terms)])
    return Numbers({f"eval/{name}": value for name, value in evaluated.scalars.items()})


def _batches(vectors: Tensor | Iterable[Tensor] | Source, samples: int | None, size: int) -> Iterator[Batch]:
    if not isinstance(vectors, Iterable):
        yield from vectors.held_out(_DEFAULTS.samples if samples is None else samples, size)
        return
    parts = [vectors] if isinstance(vectors, Tensor) else vectors
    left = samples
    for inputs in in_batches((as_vectors(part, "vectors") for part in parts), size):
        inputs = inputs[:left]
        if len(inputs) == 0:
            return
        left = None if left is None else left - len(inputs)
        yield Batch(inputs, inputs)


def _of_width(d_in: int, batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        if batch.inputs.shape[1] != d_in:
            raise ValueError(
                f"vectors: expected shape (n, d_in) with d_in = {d_in}, as the dictionary reads, found "
                f"{tuple(batch.inputs.shape)}"
            )
        yield batch

"""Supply of samples: the number available for training and evaluation, compared with the number requested."""

from dataclasses import dataclass

# The meaning of each number, which `results.json` has as data/<name>.
MEANINGS = {
    "train_samples_distinct": "distinct training samples; for text, the positions of one pass over it",
    "train_samples_wanted": "distinct training samples if there were enough text",
    "text_rounds": "how often the text was read (train_samples_wanted / train_samples_distinct); 1 if there was enough",
    "training_rounds": "how often training saw each distinct sample",
    "held_out_samples": "samples to evaluate on",
    "held_out_samples_wanted": "samples that the evaluations asked for (eval.vectors.samples and the like)",
    "skipped_rows": "rows of the data set without a usable document, left out",
}


@dataclass(frozen=True, kw_only=True)
class Supply:
    """Counts of samples; None for counts without a meaning in this run.

    Attributes:
        trained: samples that training took, counted each time.
        distinct: distinct samples among these. Activations are distinct if they are from one pass over the text.
        wanted: distinct samples with enough text.
        held_out, held_out_wanted: samples available for evaluation, and the number requested.
        skipped_rows: rows of the data set without a document, in one pass.
    """

    trained: int | None = None
    distinct: int | None = None
    wanted: int | None = None
    held_out: int | None = None
    held_out_wanted: int | None = None
    skipped_rows: int | None = None

    def numbers(self) -> dict[str, float]:
        """Return the counts by flat names, which `MEANINGS` explains."""
        numbers: dict[str, float | None] = {
            "train_samples_distinct": self.distinct,
            "train_samples_wanted": self.wanted,
            "text_rounds": self.wanted / self.distinct if self.wanted and self.distinct else None,
            "training_rounds": self.trained / self.distinct if self.trained and self.distinct else None,
            "held_out_samples": self.held_out,
            "held_out_samples_wanted": self.held_out_wanted,
            "skipped_rows": self.skipped_rows,
        }
        return {f"data/{name}": value for name, value in numbers.items() if value is not None}

    def shortages(self) -> list[str]:
        """Return one sentence for each shortage."""
        sentences = []
        if self.wanted is not None and self.distinct is not None and self.distinct < self.wanted:
            sentences.append(
                f"too little text: {self.wanted:,} distinct activations are asked for (source.tokens) and the training "
                f"text has {self.distinct:,}, so that it is read {self.wanted / max(1, self.distinct):.1f} times. "
                f"Use more text, or set source.tokens to at most {self.distinct}"
            )
        if self.held_out is not None and self.held_out_wanted is not None and self.held_out < self.held_out_wanted:
            sentences.append(
                f"too little held-out text: {self.held_out_wanted:,} samples are asked for (eval.vectors.samples) "
                f"and there are {self.held_out:,}, which makes the results uncertain. Use more text, or raise "
                "dataset.held_out"
            )
        if self.skipped_rows:
            sentences.append(
                f"{self.skipped_rows:,} rows of the data set had no usable document and were left out "
                "(dataset.max_invalid_rows)"
            )
        return sentences

"""Facts about latents in the units of other projects' dashboards, from a latent store and the decoder's rows.

Dashboards show dictionaries whose decoder rows have length 1. Codes are therefore multiplied by the length of their
latent's row.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from fsae.outputs.latent_store import TOP, LatentStore
from fsae.progress import Progress

# Latents per batch file, as SAEDashboard's runner has them, and the most of Neuronpedia's upload.
BATCH = 128
# Entries of the small tables, and bars of the histogram, as SAEDashboard has them.
_ROWS, _BARS = 3, 50
_DIGITS = 5
# A row of one of the store's tables.
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Group of examples, which a dashboard shows under one heading.

    Attributes:
        least: lower end of the interval of codes at the peak; -1 for the top examples.
        most: upper end of the interval.
        share: share of the latent's active tokens that are in the interval; -1 for the top examples.
    """

    least: float
    most: float
    share: float


@dataclass(frozen=True, eq=False)
class Example:
    """Text on which a latent is on.

    Attributes:
        tokens: the texts of the tokens; none is empty.
        values: the latent's code at each token; 0 at tokens that did not count.
        peak: index of the token at which the code is largest in its context.
        group: the group of the example.
    """

    tokens: list[str]
    values: list[float]
    peak: int
    group: Group


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentFacts:
    """Facts about one latent. Lists are empty if a fact is unknown, or if the latent has none.

    Attributes:
        latent: its index.
        density: share of tokens on which it is on.
        label: a few words, or None.
        direction: (d_in,) its decoder row, of length 1; zeros if the row is zero.
        examples: top examples, then samples of each interval of codes, from the strongest down.
        histogram_values: centres of equal bars from 0 to the largest code.
        histogram_heights: active tokens in each bar. The store has half octaves; within one, tokens count as spread
            evenly.
        raised_tokens, raised_values: tokens whose logits the direction raises most, through the final norm, and the
            effects.
        lowered_tokens, lowered_values: tokens whose logits it lowers most, and the effects.
        neighbours, neighbour_cosines: latents with the most similar decoder rows, and the cosines of the rows.
        neurons, neuron_values, neuron_shares: the largest entries of the direction, and their shares of its l1 norm.
        correlated: latents that are on together with it.
        correlated_pearson: correlations of being on, estimated from a sample of its activations.
        correlated_cosine: uncentred correlations of being on, in the same way.
    """

    latent: int
    density: float
    label: str | None
    direction: list[float]
    examples: list[Example]
    histogram_values: list[float]
    histogram_heights: list[float]
    raised_tokens: list[str]
    raised_values: list[float]
    lowered_tokens: list[str]
    lowered_values: list[float]
    neighbours: list[int]
    neighbour_cosines: list[float]
    neurons: list[int]
    neuron_values: list[float]
    neuron_shares: list[float]
    correlated: list[int]
    correlated_pearson: list[float]
    correlated_cosine: list[float]

    @property
    def largest(self) -> float:
        """Return the largest code of the examples; 0 without any."""
        return max((max(example.values) for example in self.examples), default=0.0)


def batches_of_facts(
    store: LatentStore, W_dec: Float[np.ndarray, "d_sae d_in"], window: int | None = None, batch: int = BATCH
) -> Iterator[list[LatentFacts]]:
    """Yield the facts about all latents, a batch at a time.

    Args:
        store: of text.
        W_dec: the decoder's rows.
        window: positions on either side of a peak, at most; None for all that the store has.
        batch: latents that are held in memory at a time.

    Raises:
        ValueError: the store is not of text or is damaged, or codes are negative.
    """
    meta = store.meta
    assert len(W_dec) == meta.d_sae, "the store is of another dictionary"
    if meta.kind != "text":
        raise ValueError(
            f"{store.folder} is of {meta.kind}, and these formats show tokens; they need a run on a language model's "
            "activations"
        )
    negative = np.flatnonzero(store.table["max"].to_numpy() < 0)
    if len(negative):
        raise ValueError(
            f"{store.folder}: latent {negative[0]} has negative codes, as those of abs_topk and pca may be; these "
            "formats know positive ones only"
        )
    reader = _Reader(store, W_dec, window)
    progress = Progress("writing the facts about latents", meta.d_sae, "latents")
    try:
        for begin in range(0, meta.d_sae, batch):
            end = min(begin + batch, meta.d_sae)
            yield reader.facts_between(begin, end)
            progress.advance(end - begin)
    finally:
        progress.close()


class _Reader:
    """Reader of the facts from a store and from the decoder's rows."""

    def __init__(self, store: LatentStore, W_dec: Float[np.ndarray, "d_sae d_in"], window: int | None):
        self._store, self._W_dec, self._window = store, W_dec, window
        self._counts = store.table["count"].to_numpy()
        # The importers take no empty text, and their databases no null character.
        self._texts = {token: text.replace("\0", "\ufffd") or "\ufffd" for token, text in store.strings.items()}

    def facts_between(self, begin: int, end: int) -> list[LatentFacts]:
        """Return the facts about the latents from `begin` to `end` - 1."""
        hits: dict[int, list[Row]] = defaultdict(list)
        for hit in self._store.hits_between(begin, end).to_dict("records"):
            hits[hit["latent"]].append(hit)
        rows = self._store.table.iloc[begin:end].to_dict("records")
        return [self._facts(own, hits[own["latent"]]) for own in rows]

    def _facts(self, own: Row, hits: list[Row]) -> LatentFacts:
        row = self._W_dec[own["latent"]]
        norm = float(np.linalg.norm(row))
        direction = row / norm if norm > 0 else np.zeros_like(row)
        neurons = np.argsort(-direction, kind="stable")[:_ROWS] if norm > 0 else np.empty(0, int)
        bin_edges = self._store.meta.bin_edges
        values, heights = _bars(np.asarray(own["histogram"]), bin_edges, float(own["max"]), norm)
        correlated, pearson, cosine = self._correlated(own)
        return LatentFacts(
            latent=int(own["latent"]),
            density=float(own["density"]),
            # Pandas has NaN for a missing text.
            label=own["label"] if isinstance(own["label"], str) else None,
            direction=rounded(direction),
            examples=self._examples(own, hits, norm) if hits else [],
            histogram_values=values,
            histogram_heights=heights,
            raised_tokens=self._shown(_list(own["logit_top"])),
            raised_values=rounded(_list(own["logit_top_values"])),
            lowered_tokens=self._shown(_list(own["logit_bottom"])),
            lowered_values=rounded(_list(own["logit_bottom_values"])),
            neighbours=_list(own["decoder_neighbours"]),
            neighbour_cosines=rounded(_list(own["decoder_cosines"])),
            neurons=neurons.tolist(),
            neuron_values=rounded(direction[neurons]),
            neuron_shares=rounded(np.abs(direction[neurons]) / max(np.abs(direction).sum(), 1e-30)),
            correlated=correlated,
            correlated_pearson=pearson,
            correlated_cosine=cosine,
        )

    def _examples(self, own: Row, hits: list[Row], norm: float) -> list[Example]:
        edges, largest = self._store.meta.bin_edges, float(own["max"])
        (most,) = rounded([largest * norm])
        groups: dict[str | int, Group] = {TOP: Group(-1.0, most, -1.0)}
        for number in {hit["bin"] for hit in hits}:
            # The dashboards order groups by their upper ends, and no code is above the largest one.
            ends = edges[number] * norm, min(edges[number + 1], largest) * norm
            least, most, share = rounded([*ends, own["histogram"][number] / own["count"]])
            groups[number] = Group(least, most, share)
        # Codes at positions that did not count are null.
        codes = rounded(np.nan_to_num(np.concatenate([hit["values"] for hit in hits]).astype(np.float64)) * norm)
        found, first = [], 0
        for hit in hits:
            length, begin = len(hit["values"]), hit["begin"]
            peak = hit["position"] - begin
            cut, end = 0, length
            if self._window is not None:
                cut, end = max(0, peak - self._window), min(length, peak + self._window + 1)
            tokens = self._store.tokens[hit["context"], begin + cut : begin + end].tolist()
            group = groups[TOP if hit["group"] == TOP else hit["bin"]]
            found.append(Example(self._shown(tokens), codes[first + cut : first + end], peak - cut, group))
            first += length
        return found

    def _correlated(self, own: Row) -> tuple[list[int], list[float], list[float]]:
        """Return the latents that are on together with this one, and two correlations of being on.

        With n samples, a and b of them with one and the other on, and c with both: the correlation is
        (c/n - ab/n²) / sqrt(a/n (1 - a/n) b/n (1 - b/n)), and c / sqrt(ab) without the centring.
        """
        others = np.asarray(_list(own["cofiring"]), int)
        counts = self._counts[others]
        both = np.minimum(np.asarray(_list(own["cofiring_share"])) * own["count"], np.minimum(counts, own["count"]))
        total = self._store.meta.positions
        one, other = own["count"] / total, counts / total
        spread = np.sqrt(one * (1 - one) * other * (1 - other))
        # A latent that is always on has no spread, and no correlation.
        pearson = np.divide(both / total - one * other, spread, out=np.zeros(len(others)), where=spread > 0)
        cosine = both / np.sqrt(np.maximum(counts * own["count"], 1))
        return others.tolist(), rounded(pearson), rounded(cosine)

    def _shown(self, tokens: Iterable[int]) -> list[str]:
        """Return the texts of tokens."""
        return [self._texts[token] for token in tokens]


def _bars(counts: np.ndarray, edges: list[float], largest: float, norm: float) -> tuple[list[float], list[float]]:
    """Return the centres and heights of equal bars from 0 to the largest code."""
    if not counts.any():
        return [], []
    below = np.concatenate([[0], np.cumsum(counts)])
    ends = np.minimum(edges, largest)
    bars = np.linspace(0, largest, _BARS + 1)
    return rounded((bars[1:] + bars[:-1]) / 2 * norm), rounded(np.diff(np.interp(bars, ends, below)))


def _list(cell: np.ndarray | None) -> list[Any]:
    """Return a list column's cell; nothing if it is null."""
    return [] if cell is None else np.asarray(cell).tolist()


def rounded(numbers: Float[np.ndarray, " numbers"] | list[float]) -> list[float]:
    """Return numbers with five significant digits, which JSON writes in few bytes."""
    exact = np.asarray(numbers, np.float64)
    with np.errstate(divide="ignore"):
        scale = 10.0 ** (_DIGITS - 1 - np.floor(np.log10(np.abs(exact))))
    there = (exact != 0) & np.isfinite(scale)
    return np.where(there, np.round(exact * np.where(there, scale, 1)) / np.where(there, scale, 1), 0).tolist()

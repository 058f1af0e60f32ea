"""The excerpts of SAEBench's test of an explanation (Karvonen et al. 2025, arXiv 2503.09532, `autointerp`).

One request has a shuffled list of excerpts, and the model names those that the explanation fits: by default 2 of the
top contexts, 2 that were drawn in proportion to the square of their code, and 10 random ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from fsae.latents.excerpts import RANDOM, Excerpt, Positives, distinct, excerpts_of
from fsae.latents.prompts import shown
from fsae.latents.scoring import SELECTION, Example, Question
from fsae.outputs.latent_store import SAMPLED, TOP, LatentStore

# The kind of a random excerpt in which the latent is on; it counts as one in which it is off.
FIRING = "firing"
# SAEBench draws from as many top contexts.
_TOP = 12
# Rows of text from which the random excerpts of all latents are drawn: the language model reads each of them again.
_ROWS = 200


@dataclass(frozen=True, kw_only=True)
class SelectionSizes:
    """Sizes of the list, as in SAEBench.

    Attributes:
        top: excerpts from the top contexts.
        weighted: excerpts drawn in proportion to the square of their code.
        random: random excerpts; the latent is assumed to be off in them.
        width: tokens per excerpt, with the peak in the middle.
    """

    top: int = 2
    weighted: int = 2
    random: int = 10
    width: int = 21


def selected_positives(
    store: LatentStore, latent: int, used: Positives, sizes: SelectionSizes, seed: int
) -> list[Excerpt]:
    """Return the excerpts in which a latent is on; none if there are too few.

    They are hits of odd rank, and of other contexts than those from which the latent is explained.
    """
    random = np.random.default_rng((seed, latent, 3))
    hits = store.hits(latent).query("rank % 2 == 1")
    strongest = hits.query(f"group == {TOP!r} and rank < {_TOP}")
    of_top = distinct(excerpts_of(store, strongest, sizes.width), used.shown)
    if len(of_top) < sizes.top:
        return []
    top = [of_top[place] for place in random.choice(len(of_top), sizes.top, replace=False)]
    samples = hits.query(f"group == {SAMPLED!r}")
    others = distinct(excerpts_of(store, samples, sizes.width), [*used.shown, *top])
    if len(others) < sizes.weighted:
        return []
    share = _importance(store, latent, samples, others)
    return [*top, *(others[place] for place in random.choice(len(others), sizes.weighted, replace=False, p=share))]


def random_excerpts(
    store: LatentStore, latent: int, used: Positives, positives: Sequence[Excerpt], sizes: SelectionSizes, seed: int
) -> list[Excerpt]:
    """Return random excerpts, of contexts that the latent's other excerpts are not of."""
    rows, length = store.tokens.shape
    pool = np.random.default_rng(seed).permutation(rows)[:_ROWS]
    random = np.random.default_rng((seed, latent, 4))
    width = min(sizes.width, length)
    found = []
    for context in random.permutation(pool).tolist():
        # The first token, such as a BOS, is not looked at.
        begin = int(random.integers(min(1, length - width), length - width + 1))
        tokens = tuple(store.tokens[context, begin : begin + width].tolist())
        found.append(Excerpt(RANDOM, context, begin + width // 2, begin, tokens, np.zeros(width, np.float32)))
    return distinct(found, [*used.shown, *positives])[: sizes.random]


def selection_of(
    latent: int,
    positives: Sequence[Excerpt],
    negatives: Sequence[Excerpt],
    strings: Callable[[Sequence[int]], Sequence[str]],
    seed: int,
) -> Question:
    """Return the question of SAEBench's test; it is the same for every explanation."""
    excerpts = [(True, each) for each in positives] + [(False, each) for each in negatives]
    order = np.random.default_rng((seed, latent, 5)).permutation(len(excerpts))
    examples = []
    for is_positive, each in (excerpts[place] for place in order):
        text = shown(strings(each.tokens), [False] * len(each.tokens))
        examples.append(Example(each.kind, is_positive, each, text))
    return Question(SELECTION, examples)


def _importance(
    store: LatentStore, latent: int, hits: pd.DataFrame, excerpts: Sequence[Excerpt]
) -> Float[np.ndarray, " excerpts"]:
    """Return the share of each excerpt: the square of its code, times the samples of its activation bin per hit of it.

    The store has equally many hits of each bin, and SAEBench draws among all samples.
    """
    histogram = np.asarray(store.table["histogram"].iloc[latent])
    of_bin = hits.groupby("bin").size()
    # One hit per context.
    peaks = hits.set_index("context")
    weights = []
    for each in excerpts:
        number = int(peaks.at[each.context, "bin"])
        weights.append(float(peaks.at[each.context, "value"]) ** 2 * histogram[number] / of_bin[number])
    return np.array(weights) / sum(weights)

"""Excerpts of text for explanations: those that are shown, and those on which an explanation is scored."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from fsae.outputs.latent_store import TOP, LatentStore
from fsae.ranges import SEED, SOME_SHARE, Ranged, between

# Kinds of negatives: hits of latents with a similar decoder row, and hits of random latents.
NEIGHBOUR, RANDOM = "neighbour", "random"
# Candidates for each negative: the latent is on in some of them.
_CANDIDATES = 3
# Latents whose hits are random negatives, and how many of these hits there are for each negative. Few, because the
# language model reads every context of a candidate again.
_RANDOM_LATENTS, _POOL = 64, 20


@dataclass(frozen=True, kw_only=True)
class ExcerptSizes(Ranged):
    """Sizes and rules that decide the excerpts.

    Attributes:
        shown: excerpts from which a latent is explained: half from its top contexts, half from samples of all
            activation bins.
        scored: positives of each test, chosen in the same way, and as many negatives.
        width: tokens per excerpt.
        threshold: share of the largest code in an excerpt from which a token is marked.
        seed: of all choices.
    """

    shown: int = field(default=20, metadata=between(least=2, most=1000))
    scored: int = field(default=10, metadata=between(least=2, most=1000))
    width: int = field(default=32, metadata=between(least=2, most=10_000))
    threshold: float = field(default=0.3, metadata=SOME_SHARE)
    seed: int = field(default=0, metadata=SEED)


@dataclass(frozen=True, eq=False)
class Excerpt:
    """Excerpt of text around the peak of a hit.

    Attributes:
        kind: group of the hit (`TOP`, `SAMPLED`), or `NEIGHBOUR` or `RANDOM` for a negative.
        context: row of the store's tokens.
        position: position of the peak in the row.
        begin: position of the first token in the row.
        tokens: token ids.
        codes: absolute codes of the hit's latent at the tokens; NaN at positions that did not count.
    """

    kind: str
    context: int
    position: int
    begin: int
    tokens: tuple[int, ...]
    codes: Float[np.ndarray, " tokens"]

    @property
    def counted(self) -> Bool[np.ndarray, " tokens"]:
        """Return which positions counted."""
        return ~np.isnan(self.codes)

    def strong(self, threshold: float) -> Bool[np.ndarray, " tokens"]:
        """Return which codes are at least this share of the largest one."""
        codes = np.nan_to_num(self.codes)
        return codes >= threshold * codes.max()

    def wrong(self, threshold: float, random: np.random.Generator) -> Bool[np.ndarray, " tokens"] | None:
        """Return as many random tokens below the threshold as there are strong ones; None if there are too few."""
        strong = self.strong(threshold)
        weak = np.flatnonzero(~strong & self.counted)
        if len(weak) < strong.sum():
            return None
        chosen = np.zeros_like(strong)
        chosen[random.choice(weak, int(strong.sum()), replace=False)] = True
        return chosen


@dataclass(frozen=True, eq=False)
class Positives:
    """Excerpts in which a latent is on.

    Attributes:
        shown: those from which it is explained.
        scored: others, of other contexts and with other texts.
    """

    shown: list[Excerpt]
    scored: list[Excerpt]

    @property
    def enough(self) -> bool:
        """Return whether there are two of each."""
        return min(len(self.shown), len(self.scored)) >= 2


def positives_of(store: LatentStore, latent: int, sizes: ExcerptSizes) -> Positives:
    """Return the positives of a latent: shown are hits of even rank, scored are hits of odd rank.

    The peak has a random place in its excerpt, so that its place reveals nothing. An excerpt is not scored if its
    context or its text has been shown, and every context is used once.
    """
    random = np.random.default_rng((sizes.seed, latent))
    hits = store.hits(latent)
    shown = distinct(excerpts_of(store, hits.query("rank % 2 == 0"), sizes.width, random))
    shown = _spread(shown, sizes.shown)
    scored = distinct(excerpts_of(store, hits.query("rank % 2 == 1"), sizes.width, random), shown)
    return Positives(shown, _spread(scored, sizes.scored))


class Negatives:
    """Excerpts in which a latent is off: half are hits of latents with the most similar decoder rows, half are hits of
    random latents. If one kind has too few, there are more of the other.

    The latent store does not have a latent's codes in other latents' hits, so `codes` computes them.

    Args:
        store: with the latents.
        sizes: of the excerpts.
        codes: returns the absolute codes of one latent per excerpt, at all of its tokens.
    """

    def __init__(
        self,
        store: LatentStore,
        sizes: ExcerptSizes,
        codes: Callable[[Sequence[tuple[int, Excerpt]]], list[Float[np.ndarray, " tokens"]]],
    ):
        self._store, self._sizes, self._codes = store, sizes, codes

    def of(self, latents: Sequence[int], positives: Sequence[Positives]) -> list[list[Excerpt]]:
        """Return the negatives of each latent."""
        table, sizes = self._store.table, self._sizes
        anywhere = self._anywhere(table["latent"].to_numpy()[table["count"].to_numpy() > 0])
        most = _CANDIDATES * sizes.scored
        candidates: list[tuple[int, Excerpt]] = []
        for latent, own in zip(latents, positives, strict=True):
            # Its negatives do not depend on the other latents: a command that continues asks the same questions.
            random = np.random.default_rng((sizes.seed, latent, 1))
            nearest = table["decoder_neighbours"].iloc[latent]
            near = [] if nearest is None else self._hits_of(nearest.tolist(), NEIGHBOUR, random)
            used = [*own.shown, *own.scored]
            near = distinct(_shuffled(near, random), used)[:most]
            far = distinct(_shuffled(anywhere, random), [*used, *near])[:most]
            candidates += [(latent, each) for each in (*near, *far)]
        off: dict[int, list[Excerpt]] = {latent: [] for latent in latents}
        for (latent, excerpt), codes in zip(candidates, self._codes(candidates), strict=True):
            if not codes[excerpt.counted].any():
                off[latent].append(excerpt)
        return [_halves(off[latent], NEIGHBOUR, sizes.scored) for latent in latents]

    def _anywhere(self, alive: Int[np.ndarray, " alive"]) -> list[Excerpt]:
        """Return hits of random latents: the candidates for the random negatives of all latents."""
        random = np.random.default_rng(self._sizes.seed)
        drawn = random.choice(alive, min(_RANDOM_LATENTS, len(alive)), replace=False)
        hits = distinct(_shuffled(self._hits_of(drawn.tolist(), RANDOM, random), random))
        return hits[: _POOL * self._sizes.scored]

    def _hits_of(self, latents: Iterable[int], kind: str, random: np.random.Generator) -> list[Excerpt]:
        hits = [self._store.hits(latent) for latent in latents]
        return [each for own in hits for each in excerpts_of(self._store, own, self._sizes.width, random, kind)]


def excerpts_of(
    store: LatentStore,
    hits: pd.DataFrame,
    width: int,
    random: np.random.Generator | None = None,
    kind: str | None = None,
) -> list[Excerpt]:
    """Return an excerpt per hit, the strongest first.

    Args:
        store: with the text.
        hits: of the store.
        width: tokens per excerpt.
        random: draws the place of the peak in its excerpt; None for the middle.
        kind: of the excerpts; None for the hits' groups.
    """
    hits = hits.iloc[np.argsort(-np.abs(hits["value"].to_numpy()), kind="stable")]
    found = []
    names = ("group", "context", "position", "begin", "values")
    for group, context, position, first, values in zip(*(hits[name].tolist() for name in names), strict=True):
        end = first + len(values)
        least, most = max(first, position - width + 1), min(position, end - width)
        begin = first
        if least <= most:
            middle = min(max(position - width // 2, least), most)
            begin = middle if random is None else int(random.integers(least, most + 1))
        end = min(end, begin + width)
        tokens = tuple(store.tokens[context, begin:end].tolist())
        codes = np.abs(np.asarray(values, np.float32)[begin - first : end - first])
        found.append(Excerpt(kind or group, context, position, begin, tokens, codes))
    return found


def distinct(excerpts: Iterable[Excerpt], others: Iterable[Excerpt] = ()) -> list[Excerpt]:
    """Return the excerpts, each context and each text once, without those of `others`."""
    contexts = {each.context for each in others}
    texts = {each.tokens for each in others}
    found = []
    for each in excerpts:
        if each.context not in contexts and each.tokens not in texts:
            found.append(each)
            contexts.add(each.context)
            texts.add(each.tokens)
    return found


def _shuffled(excerpts: Sequence[Excerpt], random: np.random.Generator) -> list[Excerpt]:
    return [excerpts[place] for place in random.permutation(len(excerpts))]


def _spread(excerpts: Sequence[Excerpt], count: int) -> list[Excerpt]:
    """Return excerpts of which half are of the first kind, the strongest, and half are spread over the samples."""
    top = [each for each in excerpts if each.kind == TOP]
    sampled = [each for each in excerpts if each.kind != TOP]
    of_samples = min(len(sampled), count - min(len(top), count - count // 2))
    places = np.linspace(0, len(sampled) - 1, of_samples).round().astype(int) if of_samples else []
    return top[: count - of_samples] + [sampled[place] for place in places]


def _halves(excerpts: Sequence[Excerpt], kind: str, count: int) -> list[Excerpt]:
    """Return excerpts of which half are of a kind."""
    first = [each for each in excerpts if each.kind == kind]
    second = [each for each in excerpts if each.kind != kind]
    of_second = min(len(second), count - min(len(first), count - count // 2))
    return first[: count - of_second] + second[:of_second]

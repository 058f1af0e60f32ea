"""Latents as detectors of the types of syntax nodes: F1 on text that they were not chosen on, and purity."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# A latent detects a node if its code exceeds such a share of its largest code on the first half.
_THRESHOLDS = (0.0, 0.1, 0.25, 0.5)


class Detection(NamedTuple):
    """The best detector of each type, chosen on one half of the tokens and scored on the other.

    Attributes:
        latents: number of the best latent of each type.
        f1: its F1 on the other half.
    """

    latents: Int[np.ndarray, " types"]
    f1: Float[np.ndarray, " types"]


def best_latents(
    codes: "csr_array",
    types: "csr_array",
    first: Bool[np.ndarray, " tokens"],
    thresholds: Sequence[float] = _THRESHOLDS,
) -> Detection:
    """Return the latent and the threshold with the greatest F1 for each type on one half, and its F1 on the other.

    Args:
        codes: (tokens, d_sae).
        types: (tokens, types), 1 for each type of a node that a token is in.
        first: the half on which the detectors are chosen.
        thresholds: shares of a latent's largest code on this half, above which it detects.
    """
    halves = [(codes[half], types[half]) for half in (first, ~first)]
    count = halves[0][1].sum(axis=0).size
    largest = _dense(halves[0][0].max(axis=0)).ravel()
    latents = np.zeros(count, np.int64)
    best, f1 = np.full(count, -1.0), np.zeros(count)
    for share in thresholds:
        chosen, scored = (_f1(_above(own, share * largest), of) for own, of in halves)
        candidates = chosen.argmax(axis=0)
        of_candidates = chosen[candidates, np.arange(count)]
        better = of_candidates > best
        latents[better], best[better] = candidates[better], of_candidates[better]
        f1[better] = scored[candidates, np.arange(count)][better]
    return Detection(latents, f1)


def of_identity(
    ids: Int[np.ndarray, " tokens"], types: "csr_array", first: Bool[np.ndarray, " tokens"]
) -> Float[np.ndarray, " types"]:
    """Return the F1 of the best rule on the token's identity for each type, on the half that did not choose the rule.

    A rule is a set of tokens. The best one has those of which the greatest share is of the type, down to a share that
    gives the greatest F1; a token that the first half lacks is in no rule.

    Args:
        ids: of the tokens.
        types: (tokens, types).
        first: the half on which the rules are chosen.
    """
    _, number = np.unique(ids, return_inverse=True)
    counts, of_type = (_counts_by(number[half], types[half], number.max() + 1) for half in (first, ~first)), []
    (total, own), (total_scored, own_scored) = counts
    for column in range(own.shape[1]):
        share = own[:, column] / np.maximum(total, 1)
        order = np.argsort(-share, kind="stable")
        hits = np.cumsum(own[order, column])
        f1 = 2 * hits / (np.cumsum(total[order]) + own[:, column].sum()).clip(1)
        rule = order[: f1.argmax() + 1]
        found = total_scored[rule].sum() + own_scored[:, column].sum()
        of_type.append(2 * own_scored[rule, column].sum() / max(1, found))
    return np.array(of_type, float)


def purities(codes: "csr_array", leaves: Int[np.ndarray, " tokens"], least: int) -> Float[np.ndarray, " latents"]:
    """Return the purity of each latent that is on at `least` tokens: 1 - H(type | mass of the latent) / log(types).

    Args:
        codes: (tokens, d_sae).
        leaves: number of the type of each token's leaf.
        least: tokens.
    """
    from scipy.sparse import csr_array

    count = int(leaves.max()) + 1
    one_hot = csr_array((np.ones(len(leaves)), (leaves, np.arange(len(leaves)))), shape=(count, len(leaves)))
    often = np.flatnonzero(np.bincount(codes.indices) >= least)
    mass = _dense(one_hot @ abs(codes[:, often]))
    share = mass / mass.sum(0).clip(1e-30)
    entropy = -(share * np.log(share.clip(1e-30))).sum(0)
    return 1 - entropy / np.log(max(2, count))


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray()


def _above(codes: "csr_array", limits: Float[np.ndarray, " d_sae"]) -> "csr_array":
    """Return 1 for each code above its latent's limit."""
    from scipy.sparse import csr_array

    on = codes.data > limits[codes.indices]
    rows = np.repeat(np.arange(len(codes.indptr) - 1), np.diff(codes.indptr))[on]
    return csr_array((np.ones(len(rows), np.float32), (rows, codes.indices[on])), shape=codes.shape)


def _f1(detected: "csr_array", types: "csr_array") -> Float[np.ndarray, "d_sae types"]:
    both = _dense(detected.T @ types)
    either = np.asarray(detected.sum(axis=0)).reshape(-1, 1) + np.asarray(types.sum(axis=0)).reshape(1, -1)
    return 2 * both / either.clip(1)


def _counts_by(
    number: Int[np.ndarray, " tokens"], types: "csr_array", distinct: int
) -> tuple[Float[np.ndarray, " distinct"], Float[np.ndarray, "distinct types"]]:
    """Return how often each token occurs, and how often in a node of each type."""
    from scipy.sparse import csr_array

    one_hot = csr_array((np.ones(len(number)), (number, np.arange(len(number)))), shape=(distinct, len(number)))
    return np.asarray(one_hot.sum(axis=1)).ravel(), _dense(one_hot @ types)

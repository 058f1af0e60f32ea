"""Probes of first letters on activations and on codes, and the absorption that they show."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from fsae.evaluation.downstream.first_letters import LETTERS

# Of SAEBench's absorption: the cosine and the share of the projection from which a latent may absorb a letter, and the
# number of absorbing latents that count.
_COSINE, _COSINE_FULL = 0.1, 0.025
_SHARE = 0.4
_ABSORBERS = 3
# Codes below it are off.
_OFF = 1e-8
# Of the sparse probe: steps, the learning rate at the first and the last step, weight of the L1 norm, weight decay.
_STEPS, _FIRST_RATE, _LAST_RATE, _L1, _DECAY = 50, 1e-2, 1e-5, 0.01, 1e-6


class LetterProbes(NamedTuple):
    """Linear probes of first letters on activations.

    Attributes:
        directions: unit vectors, one per letter; zeros for a letter without a probe.
        f1: of each letter's probe on the test words; 0 without a probe.
        found: the test words of a letter that its probe detects.
        train, test: the numbers of the words in the two parts.
    """

    directions: Float[np.ndarray, "letters d_in"]
    f1: Float[np.ndarray, " letters"]
    found: Bool[np.ndarray, "letters test"]
    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]


def letter_probes(
    vectors: Float[np.ndarray, "words d_in"],
    letters: Int[np.ndarray, " words"],
    train: Int[np.ndarray, " train"],
    test: Int[np.ndarray, " test"],
) -> LetterProbes:
    """Return a logistic probe for each first letter: one against the others, both classes of equal weight.

    Args:
        vectors: activations at the words.
        letters: number of each word's first letter.
        train, test: numbers of the words that fit the probes, and of those that score them.
    """
    from sklearn.linear_model import LogisticRegression

    scale = np.linalg.norm(vectors[train], axis=1).mean() / np.sqrt(vectors.shape[1])
    scaled = vectors / scale
    directions = np.zeros((len(LETTERS), vectors.shape[1]), np.float32)
    f1 = np.zeros(len(LETTERS))
    found = np.zeros((len(LETTERS), len(test)), bool)
    for letter in range(len(LETTERS)):
        of_train, of_test = letters[train] == letter, letters[test] == letter
        if not of_train.any() or not of_test.any():
            continue
        probe = LogisticRegression(class_weight="balanced", max_iter=500).fit(scaled[train], of_train)
        detected = np.asarray(probe.predict(scaled[test]))
        directions[letter] = probe.coef_[0] / np.linalg.norm(probe.coef_[0])
        f1[letter], found[letter] = f1_of(detected, of_test), detected & of_test
    return LetterProbes(directions, f1, found, train, test)


def f1_of(detected: Bool[np.ndarray, " words"], true: Bool[np.ndarray, " words"]) -> float:
    """Return 2 TP / (2 TP + FP + FN); 0 without any."""
    both, either = (detected & true).sum(), detected.sum() + true.sum()
    return float(2 * both / either) if either else 0.0


def sparse_weights(
    codes: Float[np.ndarray, "words latents"], letters: Int[np.ndarray, " words"]
) -> Float[np.ndarray, "letters latents"]:
    """Return the weights of an L1-penalised linear probe of all letters on codes.

    Binary cross-entropy with positives weighted by negatives / positives, plus 0.01 times the mean over letters of the
    sum of |w|, by Adam in 50 steps with a learning rate from 1e-2 to 1e-5. All weights begin at 0: nothing is
    drawn.

    Args:
        codes: of the training words, of a dictionary with rows of length 1.
        letters: of the training words.
    """
    inputs = torch.from_numpy(codes).float()
    true = torch.nn.functional.one_hot(torch.from_numpy(letters), len(LETTERS)).float()
    positives = true.sum(0)
    weight_of_positives = (len(true) - positives) / positives.clamp(min=1)
    weights = torch.zeros(len(LETTERS), codes.shape[1], requires_grad=True)
    bias = torch.zeros(len(LETTERS), requires_grad=True)
    optimiser = torch.optim.Adam([weights, bias], lr=_FIRST_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, (_LAST_RATE / _FIRST_RATE) ** (1 / _STEPS))
    for _ in range(_STEPS):
        logits = inputs @ weights.T + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, true, pos_weight=weight_of_positives)
        optimiser.zero_grad()
        (loss + _L1 * weights.abs().sum(1).mean()).backward()
        optimiser.step()
        schedule.step()
    return weights.detach().numpy()


def main_latents(
    codes: Float[np.ndarray, "words latents"],
    true: Bool[np.ndarray, " words"],
    probes: LetterProbes,
    ranked: Int[np.ndarray, " candidates"],
    jump: float,
) -> Int[np.ndarray, " main"]:
    """Return the main latents of a letter: the first of the candidates, and further ones as long as F1 jumps.

    Args:
        codes: of all words.
        true: the words of the letter.
        probes: name the training and the test words.
        ranked: candidates, the best first.
        jump: by how much the F1 on the test words must rise with a further latent.
    """
    from sklearn.linear_model import LogisticRegression

    best, accepted = -np.inf, 0
    for count in range(1, len(ranked) + 1):
        some = codes[:, ranked[:count]]
        probe = LogisticRegression(class_weight="balanced", max_iter=500)
        probe.fit(some[probes.train], true[probes.train])
        f1 = f1_of(np.asarray(probe.predict(some[probes.test])), true[probes.test])
        if accepted and f1 <= best + jump:
            break
        best, accepted = f1, count
    return ranked[:accepted]


def absorbed(
    codes: Float[np.ndarray, "words latents"],
    cosines: Float[np.ndarray, " latents"],
    targets: Float[np.ndarray, " words"],
    main: Int[np.ndarray, " main"],
) -> tuple[Float[np.ndarray, " words"], Bool[np.ndarray, " words"]]:
    """Return the fraction absorbed in each word, and whether it is absorbed in full, as SAEBench defines both.

    Nothing is absorbed if there is no latent besides the main ones.

    Args:
        codes: of a dictionary with rows of length 1, in words that the letter's probe detects.
        cosines: of the probe's direction and each row.
        targets: the projection of each word's activation on the direction, without a bias.
        main: the letter's main latents.
    """
    projections = codes * cosines
    by_main = projections[:, main].sum(1)
    others = np.setdiff1d(np.arange(codes.shape[1]), main)
    if not len(others):
        return np.zeros(len(codes)), np.zeros(len(codes), bool)
    candidates = np.where(cosines[others] >= _COSINE, projections[:, others].clip(min=0), 0)
    absorbing = -np.partition(-candidates, min(_ABSORBERS, candidates.shape[1]) - 1, axis=1)[:, :_ABSORBERS]
    by_others = absorbing.sum(1)
    positive = np.where(targets > 0, targets, np.inf)
    taken = np.minimum(by_others, targets - by_main)
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(by_main <= 0, 1.0, (taken / (taken + by_main)).clip(0, 1))
    fraction[(by_main >= targets) | (by_others / positive < _SHARE)] = 0
    strongest = projections[:, others].argmax(1)
    largest = projections[np.arange(len(codes)), others[strongest]]
    full = (codes[:, main] < _OFF).all(1) & (targets >= 0)
    full &= (cosines[others][strongest] >= _COSINE_FULL) & (largest / positive >= _SHARE)
    return fraction, full

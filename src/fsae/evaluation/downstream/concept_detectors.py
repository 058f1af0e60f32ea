"""Detectors of concepts: directions in activations, latents and word counts, and how well they separate texts."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from fsae.evaluation.downstream.concept_texts import ConceptTexts
from fsae.evaluation.downstream.text_activations import TextActivations
from fsae.seeds import generator_for

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Latents whose scores are ranked at once.
_AT_ONCE = 2048
# Of the probe: steps of L-BFGS, the weight of the squared norm, and tokens of negatives per token of a positive.
_PROBE_STEPS, _PROBE_DECAY, _PROBE_NEGATIVES = 30, 1e-3, 2

Scores = Callable[[Sequence[str]], Float[np.ndarray, " texts"]]


class Detected(NamedTuple):
    """The detection of a concept in the test texts.

    Attributes:
        auroc: with hard negatives among the negatives.
        hard: mean of the accuracies on positives and on hard negatives; NaN without any.
        latent: the number of the latent that detects; -1 for another detector.
    """

    auroc: float
    hard: float
    latent: int = -1


class Parts(NamedTuple):
    """The texts of a concept: those that train a detector, those that test it, and which are positive."""

    train: Bool[np.ndarray, " texts"]
    test: Bool[np.ndarray, " texts"]
    hard: Bool[np.ndarray, " texts"]
    positive: Bool[np.ndarray, " texts"]

    @classmethod
    def of(cls, data: ConceptTexts, concept: int, train: Bool[np.ndarray, " texts"]) -> "Parts":
        """Return the parts of a concept."""
        positive, hard = data.positive[:, concept], data.hard[:, concept]
        known = positive | data.negative[:, concept]
        return cls(known & train, (known & ~train) | hard, hard, positive)

    def detected(self, scores: Float[np.ndarray, " texts"]) -> Detected:
        """Return how well scores detect the concept."""
        area = auroc(scores[self.test][:, None], self.positive[self.test])[0]
        hard = float("nan")
        if self.hard.any():
            among = self.hard | (self.test & self.positive)
            hard = accuracy_at(scores, self.train, self.positive, among)
        return Detected(float(area), hard)


def directions(
    read: TextActivations,
    train: Bool[np.ndarray, " texts"],
    positive: Bool[np.ndarray, " texts"],
    seed: int,
) -> dict[str, Float[np.ndarray, " d_in"]]:
    """Return unit vectors that may detect a concept, by the name of the method, as AxBench defines them.

    diffmean: mean of the tokens of positives minus mean of the tokens of negatives. pca: first principal component of
    the tokens of positives. lat: first principal component of normalised differences of random pairs of them. The sign
    of the latter two is the one in which positives score higher in training. probe: weights of a logistic regression of
    tokens, both classes of equal weight.

    Args:
        read: activations of the texts.
        train: the texts on which directions are fitted.
        positive: those of the concept; others in `train` are negatives.
        seed: of the pairs and of the probe's tokens.
    """
    texts = read.texts.numpy()
    own = train[texts]
    vectors = read.vectors[torch.from_numpy(own)].float().numpy()
    is_of = positive[texts[own]]
    inside = vectors[is_of]
    pairs = torch.randperm(len(inside), generator=generator_for(seed, "pairs")).numpy()
    half = len(pairs) // 2
    differences = inside[pairs[:half]] - inside[pairs[half : 2 * half]]
    differences /= np.linalg.norm(differences, axis=1, keepdims=True).clip(1e-12)
    outside = np.flatnonzero(~is_of)
    drawn = torch.randperm(len(outside), generator=generator_for(seed, "negatives")).numpy()
    probed = np.sort(np.concatenate([np.flatnonzero(is_of), outside[drawn[: _PROBE_NEGATIVES * len(inside)]]]))
    found = {
        "diffmean": _unit(inside.mean(0) - vectors[~is_of].mean(0)),
        "pca": _component(inside),
        "lat": _component(differences),
        "probe": _probe(vectors[probed], is_of[probed]),
    }
    for name in ("pca", "lat"):
        scores = text_scores(read, found[name][:, None])[train, 0]
        if auroc(scores[:, None], positive[train])[0] < 0.5:
            found[name] = -found[name]
    return found


def text_scores(
    read: TextActivations, columns: Float[np.ndarray, "d_in detectors"]
) -> Float[np.ndarray, "texts detectors"]:
    """Return the greatest product of each text's tokens with each direction; a text without a token has the least."""
    products = read.vectors.float() @ torch.from_numpy(columns).float()
    if not len(products):
        return np.zeros((len(read), columns.shape[1]), np.float32)
    least = products.min(0).values.expand(len(read), -1).clone()
    index = read.texts[:, None].expand_as(products)
    return least.scatter_reduce(0, index, products, "amax").numpy()


def auroc(
    scores: Float[np.ndarray, "texts detectors"], positive: Bool[np.ndarray, " texts"]
) -> Float[np.ndarray, " detectors"]:
    """Return the area under the ROC curve of each detector: the share of pairs of a positive and another text in which
    the positive's score is higher, with ties counted half.
    """
    from scipy.stats import rankdata

    inside = int(positive.sum())
    ranks = rankdata(scores, axis=0)[positive].sum(0)
    return (ranks - inside * (inside + 1) / 2) / (inside * (len(positive) - inside))


def best_latent(pooled: "csr_array", train: Bool[np.ndarray, " texts"], positive: Bool[np.ndarray, " texts"]) -> int:
    """Return the latent whose greatest code per text has the greatest AUROC on the training texts.

    Args:
        pooled: (texts, d_sae).
        train: positives and negatives to choose on.
        positive: those of the concept.
    """
    columns = pooled[train].tocsc()
    assert columns.shape is not None
    found = [
        auroc(columns[:, begin : begin + _AT_ONCE].toarray(), positive[train])
        for begin in range(0, columns.shape[1], _AT_ONCE)
    ]
    return int(np.concatenate(found).argmax())


def accuracy_at(
    scores: Float[np.ndarray, " texts"],
    train: Bool[np.ndarray, " texts"],
    positive: Bool[np.ndarray, " texts"],
    test: Bool[np.ndarray, " texts"],
) -> float:
    """Return the mean of the accuracies on positives and on the other texts of a test part.

    The threshold is Youden's on the training texts: where the share of positives above it minus that of the others is
    greatest.
    """
    from sklearn.metrics import roc_curve

    false, true, thresholds = roc_curve(positive[train], scores[train])
    detected = scores >= thresholds[(true - false).argmax()]
    return float((detected[test & positive].mean() + (~detected[test & ~positive]).mean()) / 2)


def word_detector(texts: Sequence[str], positive: Bool[np.ndarray, " texts"]) -> Scores:
    """Return a detector by words alone: a logistic regression of which words a text has, both classes of equal weight.

    Args:
        texts: that it learns from.
        positive: those of the concept.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b")
    fitted = LogisticRegression(class_weight="balanced", max_iter=500).fit(words.fit_transform(texts), positive)

    def scores(others: Sequence[str]) -> Float[np.ndarray, " texts"]:
        return np.asarray(fitted.decision_function(words.transform(others)))

    return scores


def recogniser(data: ConceptTexts, concept: int, train: Bool[np.ndarray, " texts"]) -> tuple[Scores, float]:
    """Return a detector of words that learns from no text that a vector learns from, and its AUROC on those."""
    parts = Parts.of(data, concept, train)
    others = np.flatnonzero((parts.test & parts.positive) | (data.negative[:, concept] & ~train))
    texts = [data.texts[number] for number in others] + [text for text, _ in data.spare]
    positive = np.concatenate([parts.positive[others], [of == concept for _, of in data.spare]]).astype(bool)
    detector = word_detector(texts, positive)
    seen = np.flatnonzero(parts.train)
    scores = detector([data.texts[number] for number in seen])
    return detector, float(auroc(scores[:, None], parts.positive[seen])[0])


def _unit(vector: Float[np.ndarray, " d_in"]) -> Float[np.ndarray, " d_in"]:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _component(vectors: Float[np.ndarray, "vectors d_in"]) -> Float[np.ndarray, " d_in"]:
    """Return the first principal component."""
    from scipy.sparse.linalg import eigsh

    centred = (vectors - vectors.mean(0)).astype(np.float64)
    # The start is fixed, so that nothing is drawn.
    _, found = eigsh(centred.T @ centred, k=1, v0=np.ones(centred.shape[1]))
    return found[:, 0]


def _probe(vectors: Float[np.ndarray, "tokens d_in"], is_of: Bool[np.ndarray, " tokens"]) -> Float[np.ndarray, " d_in"]:
    mean = vectors.mean(0)
    scale = float(np.sqrt(np.square(vectors - mean).mean())) or 1.0
    inputs = torch.from_numpy((vectors - mean) / scale)
    labels = torch.from_numpy(is_of.astype(np.float32))
    weight_of = torch.where(labels > 0, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    weights = torch.zeros(vectors.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, bias], max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = inputs @ weights + bias
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, weight=weight_of)
        value = value + _PROBE_DECAY * weights.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return _unit(weights.detach().numpy())

"""Steering towards concepts: text that a language model generates with a vector added at a site, and its scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fsae.evaluation.downstream.concept_detectors import Scores, auroc
from fsae.evaluation.kept import Keeper, Tensors, computed, digest_of_tensor, digest_of_texts
from fsae.evaluation.noise import mean_and_noise
from fsae.language_models.forward_pass import ForwardPass
from fsae.language_models.generation import Sampling, generate
from fsae.language_models.transformer_lens import Replacement
from fsae.sources.source import HeldOutText

# Texts that are generated at once, and tokens whose logits are held at once.
_ROWS_AT_ONCE, _TOKENS_AT_ONCE = 48, 768
# Plain texts per prompt, with which steered texts are compared.
_PLAIN = 4
# Length of the n-grams whose repetition counts.
_NGRAM = 4


class Push(NamedTuple):
    """A vector that steers towards a concept.

    Attributes:
        concept: number of the concept.
        vector: what strength 1 adds to every activation at the site.
    """

    concept: int
    vector: Float[Tensor, " d_in"]


class Quality(NamedTuple):
    """Scores of steered texts, from 0 to 1.

    Attributes:
        concept: 2 AUROC - 1 of a detector that compares them with plain texts; 0 if it is negative.
        fluency: mean over texts of exp(-rise in cross-entropy under the plain model over the plain text's), which is at
            most 1, times 1 minus the share of repeated 4-grams.
        answer: mean over prompts of exp(-rise in the plain text's cross-entropy by the steering), at most 1.
    """

    concept: float
    fluency: float
    answer: float

    @property
    def score(self) -> float:
        """Return the harmonic mean; 0 if one is 0."""
        return len(self) / sum(1 / each for each in self) if min(self) > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Steered:
    """Steered texts of one push, for each strength and prompt.

    Attributes:
        texts: the continuations.
        fluency, answer: of each, as in `Quality`.
    """

    texts: list[list[str]]
    fluency: Float[np.ndarray, "strengths prompts"]
    answer: Float[np.ndarray, "strengths prompts"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a push. Each half of the prompts chooses the strength at which the other half is scored.

    Attributes:
        halves: for each half that chose, the quality of the other half's texts.
        strengths: chosen by each half, as places in the list of strengths.
        scored: places of the prompts that were scored at each of these strengths.
    """

    halves: list[Quality]
    strengths: list[int]
    scored: list[list[int]]


def outcome(steered: Steered, plain: Sequence[str], detector: Scores) -> Outcome:
    """Return the outcome of a push.

    Args:
        steered: its texts.
        plain: texts of the plain model.
        detector: of the concept.
    """
    reference = detector(plain)
    of_texts = np.array([detector(texts) for texts in steered.texts])
    prompts = np.arange(of_texts.shape[1])
    halves = [prompts[0::2], prompts[1::2]]

    def quality(strength: int, half: np.ndarray) -> Quality:
        scores = np.concatenate([of_texts[strength, half], reference])[:, None]
        area = auroc(scores, np.arange(len(scores)) < len(half))[0]
        fluency, answer = steered.fluency[strength, half].mean(), steered.answer[strength, half].mean()
        return Quality(max(0.0, 2 * float(area) - 1), float(fluency), float(answer))

    found = Outcome([], [], [])
    for chooses, scores in (halves, halves[::-1]):
        best = int(np.argmax([quality(strength, chooses).score for strength in range(len(of_texts))]))
        found.strengths.append(best)
        found.halves.append(quality(best, scores))
        found.scored.append(scores.tolist())
    return found


class Effect(NamedTuple):
    """The effect of a push: its texts, their scores, and the rise of the concept's own texts in nats per token."""

    steered: Steered
    outcome: Outcome
    rise: float


def steering_numbers(effects: Sequence[Effect], suffix: str) -> dict[str, float]:
    """Return means over concepts and halves."""
    scores = np.array([[half.score for half in each.outcome.halves] for each in effects]).mean(0)
    found = (
        {f"concepts_steering{suffix}": float(scores.mean())} if suffix else mean_and_noise("concepts_steering", scores)
    )
    for part in Quality._fields:
        values = [getattr(half, part) for each in effects for half in each.outcome.halves]
        found[f"concepts_steering_{part}{suffix}"] = float(np.mean(values))
    return found | {f"concepts_likelihood{suffix}": float(np.mean([each.rise for each in effects]))}


@dataclass(eq=False)
class Steering:
    """A language model that is steered at a site; its plain texts are generated at the start.

    The first token of every row, and activations of a norm above the source's limit, are never changed: training left
    them out.

    Attributes:
        text: the language model and its site, which can be replaced.
        prompts: beginnings of texts.
        tokens: that are generated, at most.
        seed: of the draws.
        heartbeat: called after each batch; may raise to stop.
        keeper: keeps texts and their scores: those of vectors that owe nothing to a dictionary are the same for all.
        plain: texts without steering, several of each prompt.

    Raises:
        ValueError: a prompt is empty or too long.
    """

    text: HeldOutText
    prompts: Sequence[str]
    tokens: int
    seed: int
    heartbeat: Callable[[], None]
    keeper: Keeper = computed
    plain: list[str] = field(init=False)

    def __post_init__(self):
        bos = self.text.model.bos_token_id
        self._bos = [bos] if self.text.prepends_bos and bos is not None else []
        self._rows: list[list[int]] = [[*self._bos, *ids] for ids in self.text.model.tokenise(self.prompts)]
        found = self._kept({"plain": _PLAIN}, self._plain)
        generated = _rows_of(found)
        self.plain = [self.text.model.text(ids) for ids in generated]
        self._own = generated[: len(self._rows)]
        self._own_losses = found["losses"].numpy()

    def _kept(self, content: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]]) -> Tensors:
        shared = {"steering": digest_of_texts(self.prompts), "tokens": self.tokens, "seed": self.seed}
        return self.keeper(shared | dict(content), compute)

    def _plain(self) -> Tensors:
        generated = self._generated(self._rows * _PLAIN, None)
        losses = self.losses(self._rows, generated[: len(self._rows)])
        return _as_tensors(generated) | {"losses": torch.from_numpy(losses)}

    def steered(self, push: Push, strengths: Sequence[float]) -> Steered:
        """Return the texts of a push at each strength."""
        content = {"push": digest_of_tensor(push.vector), "strengths": list(strengths)}
        found = self._kept(content, lambda: self._steered(push, strengths))
        texts = [self.text.model.text(ids) for ids in _rows_of(found)]
        count = len(self._rows)
        return Steered(
            [texts[begin : begin + count] for begin in range(0, len(texts), count)],
            found["fluency"].numpy(),
            found["answer"].numpy(),
        )

    def _steered(self, push: Push, strengths: Sequence[float]) -> Tensors:
        count = len(self._rows)
        rows, own = self._rows * len(strengths), self._own * len(strengths)
        shifts = torch.stack([strength * push.vector for strength in strengths for _ in range(count)])
        generated = self._generated(rows, shifts)
        rises = self.losses(rows, generated) - np.tile(self._own_losses, len(strengths))
        kept = np.array([len(ids) > 0 for ids in generated]) * (1 - np.array([repetition(ids) for ids in generated]))
        lost = self.losses(rows, own, shifts) - np.tile(self._own_losses, len(strengths))
        shape = len(strengths), count
        return _as_tensors(generated) | {
            "fluency": torch.from_numpy((np.exp(-rises.clip(0)) * kept).reshape(shape)),
            "answer": torch.from_numpy(np.exp(-lost.clip(0)).reshape(shape)),
        }

    def likelihood(self, push: Push, strength: float, texts: Sequence[str], others: Sequence[str]) -> float:
        """Return the rise by steering of the mean log-probability of texts, minus that of other texts, in nats per
        token."""
        content = {
            "push": digest_of_tensor(push.vector),
            "strength": strength,
            "texts": [digest_of_texts(each) for each in (texts, others)],
        }
        found = self._kept(content, lambda: {"rise": self._rise(push, strength, texts, others)})
        return float(found["rise"])

    def _rise(self, push: Push, strength: float, texts: Sequence[str], others: Sequence[str]) -> Tensor:
        ids = [[*self._bos, *row[: self.tokens + 1]] for row in self.text.model.tokenise([*texts, *others])]
        first = len(self._bos) + 1
        rows, rest = [row[:first] for row in ids], [row[first:] for row in ids]
        shifts = (strength * push.vector).expand(len(rows), -1)
        rise = self.losses(rows, rest) - self.losses(rows, rest, shifts)
        return torch.tensor(rise[: len(texts)].mean() - rise[len(texts) :].mean(), dtype=torch.float64)

    @torch.no_grad()
    def losses(
        self,
        rows: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        shifts: Float[Tensor, "rows d_in"] | None = None,
    ) -> Float[np.ndarray, " rows"]:
        """Return the mean cross-entropy of each continuation after its row; 0 for an empty one."""
        joined = [[*row, *rest] for row, rest in zip(rows, continuations, strict=True)]
        longest = max(map(len, joined))
        size = max(1, _TOKENS_AT_ONCE // longest)
        found: list[float] = []
        for begin in range(0, len(rows), size):
            some = joined[begin : begin + size]
            # Padding at the end changes nothing before it.
            tokens = torch.tensor([[*row, *[self.text.model.separator_id] * (longest - len(row))] for row in some])
            added = [] if shifts is None else [self._added(shifts[begin : begin + size], ForwardPass.over(tokens))]
            logits = self.text.model.logits(tokens, *added)
            for row, rest, own in zip(
                rows[begin : begin + size], continuations[begin : begin + size], logits, strict=True
            ):
                targets = torch.tensor(rest, dtype=torch.long, device=own.device)
                before = own[len(row) - 1 : len(row) - 1 + len(rest)].float()
                loss = torch.nn.functional.cross_entropy(before, targets) if rest else torch.zeros(())
                found.append(float(loss))
            self.heartbeat()
        return np.array(found)

    def _generated(self, rows: Sequence[Sequence[int]], shifts: Float[Tensor, "rows d_in"] | None) -> list[list[int]]:
        found: list[list[int]] = []
        sets = max(1, _ROWS_AT_ONCE // len(self._rows)) * len(self._rows)
        size = sets if self.text.model.accepts_padding else 1
        for begin in range(0, len(rows), size):
            own = None if shifts is None else shifts[begin : begin + size]

            def added(of: ForwardPass, own: Tensor | None = own) -> list[Replacement]:
                return [] if own is None else [self._added(own, of)]

            # Row i of a call draws from (seed, i), so each call has a seed of its own.
            sampling = Sampling(tokens=self.tokens, seed=(self.seed + begin) % 2**32)
            found += generate(self.text.model, rows[begin : begin + size], sampling, added)
            self.heartbeat()
        return found

    def _added(self, shifts: Float[Tensor, "rows d_in"], of: ForwardPass) -> Replacement:
        real = of.real
        counted = (real & (real.cumsum(1) > 1))[:, of.first :]
        limit = self.text.norm_limit

        def shifted(x: Tensor) -> Tensor:
            changed = counted.to(x.device)
            if limit is not None:
                changed = changed & (x.float().norm(dim=2) <= limit)
            return x + changed[:, :, None] * shifts.to(x)[:, None]

        return self.text.site, shifted


def _as_tensors(rows: Sequence[Sequence[int]]) -> Tensors:
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    return {"ids": torch.tensor([each for row in rows for each in row], dtype=torch.long), "lengths": lengths}


def _rows_of(tensors: Tensors) -> list[list[int]]:
    return [row.tolist() for row in tensors["ids"].split(tensors["lengths"].tolist())]


def repetition(ids: Sequence[int], ngram: int = _NGRAM) -> float:
    """Return the share of n-grams that occurred earlier in the row; 0 for a row without any."""
    grams = [tuple(ids[place : place + ngram]) for place in range(len(ids) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0

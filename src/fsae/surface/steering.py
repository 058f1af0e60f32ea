"""Steering: plain and steered text side by side, and what each strength of an edit does to the language model."""

import math
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import zip_longest

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.language_models.generation import Sampling
from fsae.language_models.interventions import Add, Edit
from fsae.surface.dictionary import Dictionary
from fsae.surface.language_model import LanguageModel

STRENGTHS = (0.5, 1.0, 2.0, 4.0)
# Targets, if none are given: tokens whose logits the latent raises most.
_TARGETS = 10


@dataclass(frozen=True, kw_only=True)
class Steered:
    """The language model at one strength.

    Attributes:
        strength: of the edit; None for the plain model.
        target_effect: how much the edit raises log p(the next token is a target), in nats: the mean over the positions
            of the plain text, from the prompt's last token on.
        kl: mean of KL(plain model || edited model) over the same positions, in nats per token.
        perplexity: of the steered text under the plain model, given the prompts.
        repetition: share of the n-grams of the steered texts that occurred earlier in the same text.
        texts: the steered text of each prompt.
    """

    strength: float | None
    target_effect: float
    kl: float
    perplexity: float
    repetition: float
    texts: list[str]


@dataclass(frozen=True, kw_only=True)
class Steering:
    """Plain and steered text of the same prompts; printed side by side, with a table of the strengths.

    Attributes:
        edit: the edit; each strength takes the place of its own.
        targets: the tokens whose probability `target_effect` measures.
        prompts: as given.
        plain: the model without an edit.
        steered: the model at each strength.
    """

    edit: Edit
    targets: list[str]
    prompts: list[str]
    plain: Steered
    steered: list[Steered]

    def __str__(self) -> str:
        width = max(40, min(200, shutil.get_terminal_size((120, 24)).columns))
        return "\n".join([self._edit(), "", *self._texts(width), "", *self._table()])

    def _edit(self) -> str:
        edit = self.edit
        unit = " in units of its largest activation" if edit.relative else ""
        after = "" if edit.after is None else f", after {edit.after!r}"
        decay = "" if edit.decay == 1 else f", decay {edit.decay:g}"
        return f"latent {edit.latent}: {type(edit).__name__.lower()}{unit}, scope {edit.scope}{after}{decay}"

    def _texts(self, width: int) -> Iterator[str]:
        for number, prompt in enumerate(self.prompts):
            if number:
                yield ""
            yield from textwrap.wrap(f"prompt: {_on_one_line(prompt)}", width)
            for each in self.steered:
                yield ""
                titles = "plain", f"strength {each.strength:g}"
                yield from _side_by_side(titles, (self.plain.texts[number], each.texts[number]), width)

    def _table(self) -> Iterator[str]:
        rows = [["strength", "target effect", "KL", "perplexity", "repetition"]]
        for each in (self.plain, *self.steered):
            numbers = (each.target_effect, each.kl, each.perplexity, each.repetition)
            name = "plain" if each.strength is None else f"{each.strength:g}"
            rows.append([name, *(f"{number:.3g}" for number in numbers)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  ".join(f"{cell:>{wide}}" for cell, wide in zip(row, widths, strict=True))
        yield f"target effect in nats, on {', '.join(map(repr, self.targets))}; KL in nats per token"


def steer(
    dictionary: Dictionary,
    edit: int | Edit,
    prompts: str | list[str],
    *,
    strengths: Sequence[float] = STRENGTHS,
    targets: Sequence[str | int] = (),
    tokens: int = 50,
    seed: int = 0,
    temperature: float = 1.0,
    ngram: int = 3,
    largest: dict[int, float] | Float[Tensor, " d_sae"] | None = None,
    language_model: LanguageModel | None = None,
    prepend_bos: bool | None = None,
) -> Steering:
    """Steer a language model by one latent at several strengths, and compare it with the plain model.

    The target effect and the KL compare both models on one text for all strengths, the plain one: `tokens` generated
    tokens per prompt. Perplexity and repetition are of the steered texts.

    Args:
        dictionary: it has the latent.
        edit: a latent, which stands for `Add(latent, 1)` at all positions; or an `Add`, `Clamp` or `Scale`, of which
            each strength replaces the strength or the factor.
        prompts: one text or several.
        strengths: in the edit's unit.
        targets: tokens, by their text or their id; none for the ten tokens whose logits the latent's decoder row raises
            most, through the final norm.
        tokens: the most tokens that are generated per prompt.
        seed: of the draws, the same for plain and steered text.
        temperature: divides the logits; 1 for the model's own distribution, 0 for the likeliest token.
        ngram: length of the n-grams whose repetition is counted.
        largest: the largest activation of the latent; None for `dictionary.largest_activations`.
        language_model: the model to steer; None for the dictionary's own.
        prepend_bos: whether each prompt begins with a BOS; None for the tokenizer's own way.

    Raises:
        ValueError: there is no language model or no such latent, a prompt is empty or too long, a target is not one
            token, or a number is out of its range.
    """
    edit = Add(edit, 1.0) if isinstance(edit, int) else edit
    edits = [edit.with_strength(strength) for strength in strengths]
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not edits or not prompts:
        raise ValueError(f"expected prompts and strengths, found {len(prompts)} prompts and {len(edits)} strengths")
    if ngram < 1:
        raise ValueError(f"ngram is {ngram}; it must be at least 1")
    sampling = Sampling(tokens=tokens, seed=seed, temperature=temperature)

    # Latents, units and targets are checked before anything is generated.
    with dictionary.intervene(*edits, largest=largest, language_model=language_model) as model:
        rows = [row.tolist() for row in model.token_ids(prompts, prepend_bos)]
        target_ids = _target_ids(dictionary, edit.latent, targets, model)

    def edited(each: Edit) -> AbstractContextManager[LanguageModel]:
        return dictionary.intervene(each, largest=largest, language_model=model)

    plain = model.generated_ids(rows, sampling)
    effects: list[list[Tensor]] = [[] for _ in edits]
    divergences: list[list[Tensor]] = [[] for _ in edits]
    for prompt, text in zip(rows, plain, strict=True):
        before = _log_probabilities(model, prompt, text)
        for each, effect, divergence in zip(edits, effects, divergences, strict=True):
            with edited(each):
                after = _log_probabilities(model, prompt, text)
            effect.append(after[:, target_ids].logsumexp(1) - before[:, target_ids].logsumexp(1))
            divergence.append((before.exp() * (before - after)).sum(1))

    steered = []
    for each, strength, effect, divergence in zip(edits, strengths, effects, divergences, strict=True):
        with edited(each):
            texts = model.generated_ids(rows, sampling)
        mean_effect, kl = (float(torch.cat(each).mean()) for each in (effect, divergence))
        steered.append(_measured(strength, mean_effect, kl, rows, texts, model, ngram))
    return Steering(
        edit=edit,
        targets=model.model.strings(target_ids),
        prompts=prompts,
        plain=_measured(None, 0.0, 0.0, rows, plain, model, ngram),
        steered=steered,
    )


def _log_probabilities(model: LanguageModel, prompt: list[int], text: list[int]) -> Float[Tensor, "positions d_vocab"]:
    """Return the log-probabilities of the next token at each position from the prompt's last token on."""
    logits = model.logits_of(torch.tensor([*prompt, *text]), len(prompt))
    return logits[len(prompt) - 1 :].float().log_softmax(1)


def _measured(
    strength: float | None,
    target_effect: float,
    kl: float,
    prompts: list[list[int]],
    texts: list[list[int]],
    model: LanguageModel,
    ngram: int,
) -> Steered:
    """Return what a strength does, with the perplexity and the repetition of its texts."""
    rows = list(zip(prompts, texts, strict=True))
    losses = [-_log_probabilities(model, prompt, text)[range(len(text)), text] for prompt, text in rows]
    return Steered(
        strength=strength,
        target_effect=target_effect,
        kl=kl,
        perplexity=float(torch.cat(losses).mean().exp()),
        repetition=repetition(texts, ngram),
        texts=[model.continuation(prompt, text) for prompt, text in rows],
    )


def repetition(rows: Sequence[Sequence[int]], ngram: int) -> float:
    """Return the share of n-grams that occurred earlier in their row; NaN if no row is long enough for one."""
    seen = [[tuple(row[i : i + ngram]) for i in range(len(row) - ngram + 1)] for row in rows]
    total = sum(map(len, seen))
    return (total - sum(len(set(each)) for each in seen)) / total if total else math.nan


def _target_ids(dictionary: Dictionary, latent: int, targets: Sequence[str | int], model: LanguageModel) -> list[int]:
    """Return the ids of the targets."""
    if targets:
        return [model.token_id(each, "a target") for each in targets]
    site = dictionary.written_site
    assert site is not None
    into_stream = model.model.into_stream(site)
    if into_stream is None:
        raise ValueError(f"at {site} of model {model.name} a latent's effect on logits is unknown; name targets")
    directions = dictionary.W_dec[latent][None].to(into_stream) @ into_stream
    effects = model.model.unembedding().effects(directions)[0]
    return effects.topk(min(_TARGETS, len(effects))).indices.tolist()


def _side_by_side(titles: tuple[str, str], texts: tuple[str, str], width: int) -> Iterator[str]:
    """Yield the lines of two texts, next to each other."""
    column = (width - 3) // 2
    columns = [
        [
            title,
            "-" * min(column, len(title)),
            *(textwrap.wrap(_on_one_line(text), column) or ["(the model ends the text)"]),
        ]
        for title, text in zip(titles, texts, strict=True)
    ]
    for left, right in zip_longest(*columns, fillvalue=""):
        yield f"{left:<{column}} | {right}".rstrip()


def _on_one_line(text: str) -> str:
    """Return a text without line breaks and other characters that would move the columns."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)

"""Prompts about entities: tokens, the place of the entity, and the answers that the language model knows."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.evaluation.downstream.entities import ENTITY, Entities
from fsae.evaluation.kept import Keeper, Tensors, computed, digest_of_texts
from fsae.progress import Progress
from fsae.sources.massive import within
from fsae.sources.source import HeldOutText

if TYPE_CHECKING:
    from fsae.language_models.transformer_lens import TransformerLensModel

# Tokens of one forward pass, about.
_TOKENS_AT_ONCE = 1024
# A value follows these without a space.
_OPEN = "\"'([{ \n\t"


class Prompt(NamedTuple):
    """A question about an entity.

    Attributes:
        entity, attribute: their names.
        ids: the tokens, with a BOS if rows of training have one.
        place: of the entity's last token among them.
        answer: the tokens of the value.
    """

    entity: str
    attribute: str
    ids: tuple[int, ...]
    place: int
    answer: tuple[int, ...]


class Rows(NamedTuple):
    """Prompts of one forward pass, with padding at their ends.

    Attributes:
        tokens: the rows.
        places: of each entity's last token.
        ends: of each prompt's last token.
    """

    tokens: Int[Tensor, "row position"]
    places: Int[Tensor, " row"]
    ends: Int[Tensor, " row"]


class KnownPrompts(NamedTuple):
    """Prompts that the language model completes with the right value.

    Attributes:
        prompts: those prompts.
        vectors: (prompts, d_in) activations at the entity's last token.
        asked: number of prompts that were asked.
    """

    prompts: list[Prompt]
    vectors: Float[Tensor, "prompts d_in"]
    asked: int


def prompts_about(model: "TransformerLensModel", entities: Entities, with_bos: bool) -> list[Prompt]:
    """Return every prompt about every entity whose last token is found and that the value follows token by token.

    The entity's last token is the last one that holds a part of its last character, whatever the tokenizer puts before
    the text. A prompt is left out if its tokens are others once the value follows.
    """
    asked = [
        (entity, attribute, template, value)
        for entity, values in entities.values.items()
        for attribute, value in values.items()
        for template in entities.templates.get(attribute, ())
    ]
    texts = [template.replace(ENTITY, entity) for entity, _, template, _ in asked]
    answered = [text + ("" if text[-1] in _OPEN else " ") + one[3] for text, one in zip(texts, asked, strict=True)]
    bos = [model.bos_token_id] if with_bos else []
    assert None not in bos
    found = []
    for (entity, attribute, template, _), ids, spans, whole in zip(
        asked, model.tokenise(texts), model.spans(texts), model.tokenise(answered), strict=True
    ):
        last = template.index(ENTITY) + len(entity) - 1
        holds = [place for place, (begin, end) in enumerate(spans) if begin <= last < end]
        if holds and len(whole) > len(ids) and whole[: len(ids)] == ids:
            row = tuple(each for each in (*bos, *ids) if each is not None)
            found.append(Prompt(entity, attribute, row, len(bos) + holds[-1], tuple(whole[len(ids) :])))
    return found


def known(
    text: HeldOutText,
    prompts: Sequence[Prompt],
    heartbeat: Callable[[], None],
    keep: Keeper = computed,
    at_once: int = _TOKENS_AT_ONCE,
) -> KnownPrompts:
    """Return the prompts that the language model completes with the whole value, token by token, if it is greedy.

    An entity's token that is the first of its row, or whose activation is massive (`source.max_norm_multiple`), is
    left out: the first token's activation is an attention sink in many models.
    """
    found = keep(
        {"asked": digest_of_texts(map(repr, prompts)), "tokens": at_once},
        lambda: _asked(text, prompts, heartbeat, at_once),
    )
    return KnownPrompts([prompts[number] for number in found["numbers"].tolist()], found["vectors"], len(prompts))


def _asked(text: HeldOutText, prompts: Sequence[Prompt], heartbeat: Callable[[], None], at_once: int) -> Tensors:
    """Return the numbers of the known prompts, and the activations at their entities."""
    model, site = text.model, text.site
    lengths = [len(each.ids) + len(each.answer) for each in prompts]
    fitting = [number for number, each in enumerate(prompts) if each.place and lengths[number] <= model.context_limit]
    order = sorted(fitting, key=lengths.__getitem__)
    progress = Progress("asking the language model about entities", len(order), "prompts")
    right: list[int] = []
    vectors: list[Tensor] = []
    for some in portions(order, lengths, at_once):
        batch = [prompts[number] for number in some]
        rows = rows_of(batch, model.separator_id, answers=True)
        read: list[Tensor] = []

        def look(x: Tensor, rows: Rows = rows, read: list[Tensor] = read) -> Tensor:
            read.append(at_places(x, rows))
            return x

        said = model.logits(rows.tokens, (site, look)).argmax(-1).cpu()
        # Cloned outside inference mode, so that gradients may pass.
        x = read[0].clone().cpu()
        good = torch.tensor([_says(said[row], each) for row, each in enumerate(batch)])
        if text.norm_limit is not None:
            good &= within(x, text.norm_limit)
        right += [number for number, one in zip(some, good.tolist(), strict=True) if one]
        vectors.append(x[good])
        progress.advance(len(batch))
        heartbeat()
    progress.close()
    return {
        "numbers": torch.tensor(right, dtype=torch.long),
        "vectors": torch.cat(vectors) if vectors else torch.zeros(0, 0),
    }


def rows_of(prompts: Sequence[Prompt], padding: int, answers: bool = False) -> Rows:
    """Return prompts as rows of one length, with their answers behind them if `answers`.

    A causal model's activations do not depend on what follows, so padding at the end changes none.
    """
    rows = [(*each.ids, *each.answer) if answers else each.ids for each in prompts]
    tokens = torch.full((len(rows), max(map(len, rows))), padding)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    places, ends = ([each.place for each in prompts], [len(each.ids) - 1 for each in prompts])
    return Rows(tokens, torch.tensor(places), torch.tensor(ends))


def at_places(x: Float[Tensor, "row position d"], rows: Rows) -> Float[Tensor, "row d"]:
    """Return the vector at each row's entity."""
    return x[torch.arange(len(x), device=x.device), rows.places.to(x.device)]


def with_places(
    x: Float[Tensor, "row position d"], rows: Rows, vectors: Float[Tensor, "row d"]
) -> Float[Tensor, "row position d"]:
    """Return activations with other vectors at each row's entity."""
    replaced = x.clone()
    replaced[torch.arange(len(x), device=x.device), rows.places.to(x.device)] = vectors.to(x)
    return replaced


def _says(said: Int[Tensor, " position"], prompt: Prompt) -> Bool[Tensor, ""]:
    """Return whether the likeliest tokens after a prompt are its answer's."""
    end = len(prompt.ids) - 1
    return (said[end : end + len(prompt.answer)] == torch.tensor(prompt.answer)).all()


def portions(order: Sequence[int], lengths: Sequence[int], at_once: int) -> Iterator[list[int]]:
    """Yield numbers in their order, in portions whose padded rows have about so many tokens."""
    some: list[int] = []
    for number in order:
        if some and (len(some) + 1) * lengths[number] > at_once:
            yield some
            some = []
        some.append(number)
    if some:
        yield some

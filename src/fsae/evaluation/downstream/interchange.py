"""Interchange of latents: one entity's codes put in the place of another's, through a binary mask that is learned."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.downstream.entity_prompts import KnownPrompts, portions, rows_of, with_places
from fsae.sources.source import HeldOutText

# Vectors that are encoded at once.
_AT_ONCE = 2048
# Tokens of one forward pass with gradients, about; a pass of fewer takes longer per token.
_TOKENS_AT_ONCE = 512
# The temperature of the mask's gates at the first and at the last step. SAEBench ends at 1e-4; a gate no longer learns
# once its logit is several temperatures, which in few steps is too soon.
_TEMPERATURES = (1.0, 1e-2)

# What is put at the entity, for the numbers of base prompts and of source prompts.
Swap = Callable[[Int[Tensor, " pair"], Int[Tensor, " pair"]], Float[Tensor, "pair d_in"]]


class Pair(NamedTuple):
    """A base prompt, and a source prompt about another entity.

    Attributes:
        base, source: numbers of known prompts.
        target: the token that is right after the interchange.
    """

    base: int
    source: int
    target: int


class Pairs(NamedTuple):
    """Pairs of one attribute.

    Attributes:
        cause: the base asks for the attribute, and the source's value is right.
        isolation: the base asks for another attribute, and its own value is right.
    """

    cause: list[Pair]
    isolation: list[Pair]


class Schedule(NamedTuple):
    """The steps in which a mask is learned.

    Attributes:
        steps: their number.
        pairs: of each step, half of them of each kind.
        lr: Adam's learning rate.
    """

    steps: int
    pairs: int
    lr: float


class Held:
    """The codes of a dictionary on the entities of known prompts.

    Latents that are on at no entity are left out: an interchange of them changes nothing.

    Args:
        autoencoder: in evaluation mode and in raw units.
        vectors: at the entities of the known prompts.

    Attributes:
        densities: (d_sae,) share of the prompts on which each latent is on.
        codes: (prompts, latents) of the latents that are on at some entity.
        rows: their rows of the decoder.
        decoded: (prompts, d_in) reconstructions.
        vectors: (prompts, d_in) the activations themselves.
    """

    @torch.no_grad()
    def __init__(self, autoencoder: Autoencoder, vectors: Float[Tensor, "prompts d_in"]):
        assert not autoencoder.training
        dtype, device = autoencoder.W_dec.dtype, autoencoder.W_dec.device
        self.vectors = vectors.to(device, dtype)
        encoded = [autoencoder.encode(some, sparse=True).codes for some in self.vectors.split(_AT_ONCE)]
        self.decoded = torch.cat([autoencoder.decode(each) for each in encoded])
        on = torch.stack([(each.dense() != 0).sum(0) for each in encoded]).sum(0)
        self.densities: Float[np.ndarray, " d_sae"] = (on / len(vectors)).cpu().numpy()
        alive = on.nonzero().squeeze(1)
        self.codes = torch.cat([each.of_latents(alive) for each in encoded])
        self.rows = autoencoder.W_dec.detach()[alive]

    def swap(self, gates: Float[Tensor, " latents"], keeps_error: bool = False) -> Swap:
        """Return the interchange (1 - gate) * base's code + gate * source's code, decoded.

        Args:
            gates: of the latents of `codes`.
            keeps_error: whether the part of the base's activation that the dictionary does not hold is added.
        """
        # Decoders are affine, so the change of the codes is decoded alone.
        begin = self.vectors if keeps_error else self.decoded

        def swapped(base: Tensor, source: Tensor) -> Tensor:
            return begin[base] + ((self.codes[source] - self.codes[base]) * gates.to(self.rows)) @ self.rows

        return swapped


def pairs_of(known: KnownPrompts, attribute: str, train: int, test: int, draw: random.Random) -> tuple[Pairs, Pairs]:
    """Return pairs of an attribute to learn a mask on, and others to test it on; as many of each kind, at most.

    A source prompt asks for the attribute. In a cause pair the first tokens of the two values of the attribute differ,
    in an isolation pair those of the attribute that the base asks for: no pair can be right by accident. There are none
    of a kind if no two entities differ. No pair is in both parts, but an entity may be.
    """
    prompts = known.prompts
    first = {(each.entity, each.attribute): each.answer[0] for each in prompts}
    of_attribute: dict[str, list[int]] = {}
    for number, each in enumerate(prompts):
        of_attribute.setdefault(each.attribute, []).append(number)
    sources = of_attribute.pop(attribute)

    def differing(base: int) -> list[int]:
        asked, own = prompts[base].attribute, prompts[base].answer[0]
        return [each for each in sources if first.get((prompts[each].entity, asked), own) != own]

    def drawn(bases: Sequence[int], train: int, test: int, of_source: bool) -> tuple[list[Pair], list[Pair]]:
        candidates = {base: found for base in bases if (found := differing(base))}
        pairs = []
        for base in draw.choices(list(candidates), k=train + test) if candidates else ():
            source = draw.choice(candidates[base])
            pairs.append(Pair(base, source, prompts[source if of_source else base].answer[0]))
        kept = set(pairs[:test])
        return [pair for pair in pairs[test:] if pair not in kept], pairs[:test]

    isolation: tuple[list[Pair], list[Pair]] = [], []
    for number, name in enumerate(sorted(of_attribute)):
        # The other attributes have equal shares.
        shares = ((count + number) // len(of_attribute) for count in (train, test))
        for part, pairs in zip(isolation, drawn(of_attribute[name], *shares, of_source=False), strict=True):
            part += pairs
    draw.shuffle(isolation[0])
    cause = drawn(sources, train, test, of_source=True)
    return Pairs(cause[0], isolation[0]), Pairs(cause[1], isolation[1])


def learned_masks(
    text: HeldOutText,
    known: KnownPrompts,
    tasks: Sequence[tuple[Held, Pairs]],
    schedule: Schedule,
    heartbeat: Callable[[], None],
    at_once: int = _TOKENS_AT_ONCE,
) -> list[Bool[Tensor, " latents"]]:
    """Return for each task the mask of the latents of its dictionary that an attribute's interchange swaps (MDBM of
    SAEBench).

    A gate is sigmoid(logit / temperature); logits begin at zero, and the temperature falls from 1 to 1e-2. Each step
    lowers the cross-entropy of the targets of cause and isolation pairs together. A latent belongs to the mask if its
    logit is positive in the end. The masks are learned at the same time, so that the passes are large; none depends on
    the others.

    Args:
        text: the language model.
        known: the prompts.
        tasks: a dictionary's codes, and the pairs of an attribute, for each mask.
        schedule: of all of them.
        heartbeat: called after each step; may raise to stop.
        at_once: tokens of a pass, about.
    """
    logits = [torch.zeros(len(held.rows), device=held.rows.device, requires_grad=True) for held, _ in tasks]
    optimiser = torch.optim.Adam(logits, schedule.lr)
    half = max(1, schedule.pairs // 2)
    begin, end = _TEMPERATURES
    for step in range(schedule.steps):
        temperature = begin * (end / begin) ** (step / max(1, schedule.steps - 1))
        places = range(step * half, (step + 1) * half)
        batch = [
            (task, kind[place % len(kind)])
            for task, (_, pairs) in enumerate(tasks)
            for kind in pairs
            for place in places
        ]
        grads = [torch.zeros_like(each) for each in logits]
        lengths = [len(known.prompts[pair.base].ids) for _, pair in batch]
        for numbers in portions(sorted(range(len(batch)), key=lengths.__getitem__), lengths, at_once):
            of_task: dict[int, list[Pair]] = {}
            for task, pair in (batch[number] for number in numbers):
                of_task.setdefault(task, []).append(pair)
            with torch.enable_grad():
                swaps = {task: tasks[task][0].swap(torch.sigmoid(logits[task] / temperature)) for task in of_task}
                vectors = torch.cat([_swapped(swaps[task], pairs) for task, pairs in of_task.items()])
                some = [pair for pairs in of_task.values() for pair in pairs]
                said = _said(text, known, some, vectors, text.model.differentiable_logits)
                targets = torch.tensor([each.target for each in some], device=said.device)
                loss = F.cross_entropy(said.float(), targets, reduction="sum") / (2 * half)
            for task, grad in zip(of_task, torch.autograd.grad(loss, [logits[task] for task in of_task]), strict=True):
                grads[task] += grad
        for each, grad in zip(logits, grads, strict=True):
            each.grad = grad
        optimiser.step()
        heartbeat()
    return [each.detach() > 0 for each in logits]


def share_right(
    text: HeldOutText,
    known: KnownPrompts,
    pairs: Sequence[Pair],
    swap: Swap,
    at_once: int,
    heartbeat: Callable[[], None],
) -> float:
    """Return the share of pairs whose target is the likeliest token after the interchange."""
    right = 0
    ordered = sorted(pairs, key=lambda pair: len(known.prompts[pair.base].ids))
    for begin in range(0, len(ordered), at_once):
        some = ordered[begin : begin + at_once]
        said = _said(text, known, some, _swapped(swap, some), text.model.logits).argmax(1).tolist()
        right += sum(one == each.target for one, each in zip(said, some, strict=True))
        heartbeat()
    return right / len(pairs)


def _swapped(swap: Swap, pairs: Sequence[Pair]) -> Float[Tensor, "pair d_in"]:
    """Return what is put at the entity of each pair's base."""
    return swap(*(torch.tensor([getattr(each, name) for each in pairs]) for name in ("base", "source")))


def _said(
    text: HeldOutText,
    known: KnownPrompts,
    pairs: Sequence[Pair],
    vectors: Float[Tensor, "pair d_in"],
    run: Callable[..., Float[Tensor, "row position d_vocab"]],
) -> Float[Tensor, "row d_vocab"]:
    """Return the logits after each base prompt, with a vector in the place of the activation at its entity."""
    rows = rows_of([known.prompts[each.base] for each in pairs], text.model.separator_id)
    return run(rows.tokens, (text.site, lambda x: with_places(x, rows, vectors)), at=rows.ends)[:, 0]

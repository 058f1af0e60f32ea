"""The scan: one pass over contexts that surveys the latents of several dictionaries together."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.latents.block import Block, Places
from fsae.latents.contexts import Read
from fsae.latents.survey import Survey

# Vectors that are encoded at once, at least: what the survey does once per block costs little then.
VECTORS_AT_ONCE = 4096


@torch.no_grad()
def scan(
    part: int,
    reads: Iterable[Read],
    autoencoders: Sequence[Autoencoder],
    surveys: Sequence[Survey],
    heartbeat: Callable[[int], None] = lambda positions: None,
    vectors_at_once: int = VECTORS_AT_ONCE,
) -> None:
    """Add the codes of a part of the data to the survey of every dictionary.

    Codes follow the rule of inference, such as a batch_topk's threshold: a code depends on its own context alone.

    Args:
        part: number of the part.
        reads: its vectors.
        autoencoders: in evaluation mode and in raw units.
        surveys: of each.
        heartbeat: called after each read with the number of its positions; may raise to stop.
        vectors_at_once: vectors that are encoded together, at least.
    """
    assert not any(each.training for each in autoencoders)
    for read in joined(reads, vectors_at_once, heartbeat):
        for autoencoder, survey in zip(autoencoders, surveys, strict=True):
            codes = autoencoder.encode(read.vectors.to(autoencoder.W_dec), sparse=True).codes
            survey.add(Block.of(codes, read.places), read.left_out, part)


def joined(
    reads: Iterable[Read],
    vectors: int = VECTORS_AT_ONCE,
    heartbeat: Callable[[int], None] = lambda positions: None,
) -> Iterator[Read]:
    """Yield reads that have so many vectors together, at least."""
    waiting: list[Read] = []
    for read in reads:
        waiting.append(read)
        heartbeat(read.places.keep.numel())
        if sum(len(each.vectors) for each in waiting) >= vectors:
            yield _one(waiting)
            waiting = []
    if waiting:
        yield _one(waiting)


def _one(reads: Sequence[Read]) -> Read:
    if len(reads) == 1:
        return reads[0]
    places = [read.places for read in reads]
    joined = Places(
        torch.cat([each.contexts for each in places]),
        torch.cat([each.keep for each in places]),
        torch.cat([each.documents for each in places]),
    )
    return Read(torch.cat([read.vectors for read in reads]), joined, sum(read.left_out for read in reads))

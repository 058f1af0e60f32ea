"""Activations of a language model at one site, harvested a buffer at a time and shuffled within it."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.language_models.sites import Site
from fsae.progress import Progress
from fsae.sources.source import Batch
from fsae.sources.tokens import PackedTokens

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ActivationSourceSettings:
    """How activations are harvested.

    Attributes:
        buffer_tokens: activations held in memory at a time; the shuffle reaches as far.
        passes: how often a buffer is gone through, in a new order each time, before the next one is harvested.
    """

    buffer_tokens: int = 262_144
    passes: int = 1

    def __post_init__(self):
        if self.buffer_tokens < 1:
            raise ValueError(f"source.buffer_tokens is {self.buffer_tokens}; it must be at least 1")
        if self.passes < 1:
            raise ValueError(f"source.passes is {self.passes}; it must be at least 1")


class Harvestable(Protocol):
    """What a source needs of a language model."""

    dtype: torch.dtype

    @property
    def device(self) -> torch.device: ...

    def activations(self, tokens: Int[Tensor, "row context"], sites: Sequence[Site]) -> dict[Site, Tensor]: ...


class ActivationSource:
    """Shuffled activations of a language model at one site.

    The stream is a sequence of buffers: buffer i holds the next `buffer_tokens` activations of the packed text, and
    every pass over it is a permutation drawn from (seed, i, pass). A position is therefore three counters and the
    text's own position at the start of the buffer, and resuming harvests that one buffer again.

    Args:
        model: the language model.
        site: where to read it.
        d_in: width of the site.
        train, held_out: packed text of the two parts.
        settings: buffer size and passes.
        seed: of the permutations.
        heartbeat: called after each forward pass; may raise to stop a harvest.
    """

    unit = "tokens"

    def __init__(
        self,
        model: Harvestable,
        site: Site,
        d_in: int,
        train: PackedTokens,
        held_out: PackedTokens,
        settings: ActivationSourceSettings,
        seed: int,
        heartbeat: Callable[[], None],
    ):
        self.model, self.site, self.d_in = model, site, d_in
        self._train, self._held_out = train, held_out
        self._settings, self._seed, self._heartbeat = settings, seed, heartbeat
        self._index = self._pass = self._batch = 0
        self._text_state = train.state_dict()
        self._buffer: Tensor | None = None
        self._held_out_start = held_out.state_dict()
        self.harvest_seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"index": self._index, "pass": self._pass, "batch": self._batch, "text": self._text_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._index, self._pass, self._batch = state["index"], state["pass"], state["batch"]
        self._text_state = state["text"]
        self._train.load_state_dict(self._text_state)
        self._buffer = None

    def first_vectors(self) -> Float[Tensor, "vectors d_in"]:
        assert self._index == 0, "the first vectors are gone"
        return self._filled_buffer()

    def batches(self, batch_size: int) -> Iterator[Batch]:
        size = self._settings.buffer_tokens
        per_pass = size // batch_size
        if per_pass == 0:
            raise ValueError(
                f"trainer.batch_size is {batch_size}, more than the buffer's {size} vectors; raise source.buffer_tokens"
            )
        while True:
            buffer = self._filled_buffer()
            while self._pass < self._settings.passes:
                order = self._permutation(size).to(buffer.device)
                while self._batch < per_pass:
                    places = order[self._batch * batch_size : (self._batch + 1) * batch_size]
                    # Counted before it is handed out: a state taken while the batch is in use names the next one.
                    self._batch += 1
                    vectors = buffer[places]
                    yield Batch(vectors, vectors)
                self._batch = 0
                self._pass += 1
            self._pass = 0
            self._index += 1
            self._buffer = None
            self._text_state = self._train.state_dict()

    def _permutation(self, size: int) -> Tensor:
        generator = torch.Generator()
        # Three counters in one seed, apart from each other: distinct permutations for distinct positions.
        generator.manual_seed(((self._seed * 1_000_003 + self._index) * 10_007 + self._pass) % 2**63)
        return torch.randperm(size, generator=generator)

    def _filled_buffer(self) -> Tensor:
        if self._buffer is None:
            size = self._settings.buffer_tokens
            buffer = _allocate(size, self.d_in, self.model)
            filled = 0
            for vectors in self._harvest(self._train, size, f"harvesting {self.site}"):
                buffer[filled : filled + len(vectors)] = vectors
                filled += len(vectors)
            assert filled == size
            self._buffer = buffer
        return self._buffer

    def _harvest(self, text: PackedTokens, count: int, label: str) -> Iterator[Tensor]:
        """The next `count` activations of the text, in order, a forward pass at a time."""
        progress = Progress(label, count)
        left = count
        empty_epochs = text.epoch + 2
        for tokens, keep in text:
            if left == count and text.epoch >= empty_epochs:
                raise ValueError(
                    "a whole pass over the text has no position to train on: every token is a special one, or skipped; "
                    "see dataset.exclude_special_tokens and dataset.skip_positions"
                )
            vectors = self.activations(tokens, keep)[:left]
            left -= len(vectors)
            progress.advance(len(vectors))
            self._heartbeat()
            yield vectors
            if left == 0:
                break
        self.harvest_seconds += progress.seconds()
        progress.close()

    def activations(
        self, tokens: Int[Tensor, "row context"], keep: Bool[Tensor, "row context"]
    ) -> Float[Tensor, "vectors d_in"]:
        """The model's activations at the kept positions.

        Raises:
            ValueError: an activation is not finite.
        """
        device = self.model.device
        everything = self.model.activations(tokens.to(device), [self.site])[self.site]
        vectors = everything[keep.to(device)]
        if not torch.isfinite(vectors).all():
            bad = (~torch.isfinite(everything)).any(-1).nonzero()
            row, position = bad[0].tolist()
            raise ValueError(
                f"activations at {self.site} are not finite: {len(bad)} of {tokens.numel()} positions in one forward "
                f"pass, the first in its row {row} at position {position}; float16 overflows in many models, try "
                "model.dtype=bfloat16 or float32"
            )
        return vectors

    def held_out_rows(self, count: int) -> tuple[Int[Tensor, "row context"], Bool[Tensor, "row context"]]:
        """The first rows of held-out text that have at least `count` tokens between them (fewer if there are no more).

        Raises:
            ValueError: the held-out part is empty or shorter than one row.
        """
        self._held_out.load_state_dict(self._held_out_start)
        blocks = []
        for block in self._held_out:
            blocks.append(block)
            if sum(tokens.numel() for tokens, _ in blocks) >= count:
                break
        tokens, keep = (torch.cat(part) for part in zip(*blocks, strict=True))
        rows = -(-count // tokens.shape[1])
        return tokens[:rows], keep[:rows]

    def held_out(self, count: int, batch_size: int) -> Iterator[Float[Tensor, "batch d_in"]]:
        self._held_out.load_state_dict(self._held_out_start)
        waiting: list[Tensor] = []
        for vectors in self._harvest(self._held_out, count, f"held-out {self.site}"):
            waiting.append(vectors)
            while sum(map(len, waiting)) >= batch_size:
                joined = torch.cat(waiting)
                yield joined[:batch_size]
                waiting = [joined[batch_size:]]
        if sum(map(len, waiting)) > 0:
            yield torch.cat(waiting)


def _allocate(size: int, d_in: int, model: Harvestable) -> Tensor:
    """A buffer on the model's device, refused if it cannot fit; its size is said before it is taken."""
    needed = size * d_in * torch.empty((), dtype=model.dtype).element_size()
    on_gpu = model.device.type == "cuda"
    available = torch.cuda.mem_get_info(model.device)[0] if on_gpu else psutil.virtual_memory().available
    log.info("activation buffer: %s vectors of %d, %.2f GB of %s", f"{size:,}", d_in, needed / 1e9, model.dtype)
    if needed > available:
        raise ValueError(
            f"source.buffer_tokens={size} takes {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are free on "
            f"{model.device}; lower it to at most {int(0.8 * available / needed * size)}"
        )
    return torch.empty(size, d_in, dtype=model.dtype, device=model.device)

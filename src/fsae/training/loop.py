"""The training loop: batches in, steps, logged means, checkpoints; for one training, or for several on one stream."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import cycle
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.layout import End, Factor, Scaling
from fsae.autoencoders.record import ForwardRecord
from fsae.couplings.coupling import Coupling
from fsae.outputs.metric_log import MetricSink
from fsae.progress import Progress
from fsae.sources.source import Batch, Partners, Source
from fsae.threads import Threads
from fsae.training.checkpoints import Checkpoints
from fsae.training.interruption import Interrupted, Interruption
from fsae.training.learner import Learner
from fsae.training.resample import Reinitialisation, Scope
from fsae.training.settings import TrainerSettings
from fsae.wording import counted

log = logging.getLogger(__name__)

# The multiplications of a step's encoder product from which threads pay: a smaller step is mostly Python's own work,
# and threads take turns in it.
WORTH_A_THREAD = 2**26
# Measures that are logged for each member of a population, in addition to the means over all members.
OF_EACH = ("loss", "fvu", "l0", "dead_share")


class Training:
    """The training of one run, fed batch by batch: its members, their logged measures, and its saved state.

    Args:
        members: autoencoders in training; an ordinary run has one.
        coupling: the term between them, or None.
        reinitialisation: when their latents are resampled.
        source: of the batches; its position is part of the state.
        scaling: the factors by which raw inputs and targets are multiplied.
        settings: of the trainer.
        tracker: takes the logged measures.
        checkpoints: takes the state; None if no state is kept.
        read_by: the end of the stream that each member of a pair reconstructs; a single None if all members are between
            both ends.
        worth_a_thread: multiplications of a step's encoder product from which members step in threads.

    Attributes:
        step: number of steps taken.
        position: position of the stream in the loaded state; None at the start.
        means: the last logged measures, as means over all members.
        fvu_of_each: fvu of each member in the batches of these measures.
    """

    def __init__(
        self,
        members: Sequence[Learner],
        coupling: Coupling | None,
        reinitialisation: Reinitialisation,
        source: Source,
        scaling: Scaling,
        settings: TrainerSettings,
        tracker: MetricSink,
        checkpoints: Checkpoints | None,
        read_by: Sequence[End | None] = (None,),
        worth_a_thread: int = WORTH_A_THREAD,
    ):
        self.members, self.coupling, self.reinitialisation = members, coupling, reinitialisation
        self.source, self.scaling, self.settings = source, scaling, settings
        self.tracker, self.checkpoints, self.read_by = tracker, checkpoints, read_by
        self.step = 0
        self.position: dict[str, Any] | None = None
        self.means: dict[str, float] = {}
        self.fvu_of_each: list[float] = []
        self._threads = threads_for(members, worth_a_thread)
        self._saved_at = time.monotonic()

    @property
    def best(self) -> int:
        """The member with the least unexplained variance in the last batches: chosen without held-out data."""
        return min(range(len(self.members)), key=lambda number: self.fvu_of_each[number])

    @property
    def trained(self) -> bool:
        """True if all steps are taken."""
        return self.step >= self.settings.steps

    def take(
        self,
        x: Float[Tensor, "batch d_in"],
        targets: Float[Tensor, "batch d_out"] | None,
        partners: Partners | None = None,
    ) -> None:
        """Take one step with every member, on scaled inputs, targets (None for the inputs themselves) and partners.

        Waits for nothing, unless members are matched or latents resampled.
        """

        def reinitialise(member: Learner, record: ForwardRecord) -> int:
            return member.reinitialise(record, self.step, self.reinitialisation)

        def finish(member: Learner, record: ForwardRecord) -> int:
            member.finish(record, self.step)
            return reinitialise(member, record)

        ends = zip(self.members, cycle(self.read_by), strict=False)
        seen = [(member, *_at(end, x, targets)) for member, end in ends]
        if self.coupling is None:
            # In one call, so that each record is freed at once.
            counts = self._threads.map(
                lambda one: reinitialise(one[0], one[0].step(one[1], self.step, one[2], partners)), seen
            )
        else:
            records: list[ForwardRecord] = []
            for _ in range(self.settings.updates_at(self.step)):
                records = self._threads.map(lambda one: one[0].backward(one[1], self.step, one[2], partners), seen)
                if self.settings.has_gradients_at(self.step):
                    autoencoders = [member.autoencoder for member in self.members]
                    self.coupling.backward(autoencoders, records, self.step, self.step / self.settings.steps)
                self._threads.map(lambda member: member.update(self.step), self.members)
            counts = self._threads.map(lambda both: finish(*both), list(zip(self.members, records, strict=True)))
            if any(counts):
                self.coupling.forget()
        for number, count in enumerate(counts):
            if count > 0:
                self.tracker.log_message(f"step {self.step}: resampled {counted(count, 'latent')} of member {number}")
        self.step += 1

    def settle(self, rate: float, save: bool) -> None:
        """Log measures and save the state if they are due after a step.

        Args:
            rate: vectors per second, to be logged.
            save: write a checkpoint even if none is due.

        Raises:
            ValueError: a loss is not finite; the last checkpoint is from before.
            OSError: no space is left; the last checkpoint is untouched.
        """
        if self.settings.logs_after(self.step - 1):
            self._log(rate)
        if save or self.trained or time.monotonic() - self._saved_at >= self.settings.checkpoint_seconds:
            self.save()

    def _log(self, rate: float) -> None:
        for member in self.members:
            member.check_finite(self.step)
        each = [member.read_interval() for member in self.members]
        if self.reinitialisation.scope is not Scope.none:
            for member, means in zip(self.members, each, strict=True):
                means["reinitialised"] = float(member.reinitialised)
        names = dict.fromkeys(name for means in each for name in means)
        self.means = {name: sum(means.get(name, 0.0) for means in each) / len(each) for name in names}
        self.fvu_of_each = [means["fvu"] for means in each]
        self.means |= self.coupling.read_interval() if self.coupling is not None else {}
        self.means[f"{self.source.unit}_per_second"] = rate
        values = self.means
        if len(each) > 1:
            values = values | {f"{i}/{name}": means[name] for i, means in enumerate(each) for name in OF_EACH}
        samples = self.step * self.settings.batch_size
        self.tracker.log({f"train/{name}": value for name, value in values.items()}, samples)

    def save(self) -> None:
        """Write a checkpoint of the whole state.

        Raises:
            ValueError: a loss is not finite; the last good checkpoint stays.
            OSError: no space is left; the last good checkpoint stays.
        """
        for member in self.members:
            member.check_finite(self.step)
        if self.checkpoints is None:
            return
        self.checkpoints.save(
            {
                "step": self.step,
                "scale": self.scaling.state(),
                "members": [member.state_dict() for member in self.members],
                "coupling": self.coupling.state_dict() if self.coupling is not None else None,
                "fvu_of_each": self.fvu_of_each,
                "source": self.source.state_dict(),
                "metrics_position": self.tracker.position(),
            }
        )
        self._saved_at = time.monotonic()

    def load(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint, but leave the source where it is: other trainings may read it."""
        self.step, self.position, self.fvu_of_each = state["step"], state["source"], state["fvu_of_each"]
        for member, saved in zip(self.members, state["members"], strict=True):
            member.load_state_dict(saved)
        if self.coupling is not None:
            self.coupling.load_state_dict(state["coupling"])


def threads_for(members: Sequence[Learner], worth_a_thread: int = WORTH_A_THREAD) -> Threads:
    """Return as many threads as make steps of these members fastest."""
    autoencoders = [member.autoencoder for member in members]
    least = min(member.settings.batch_size * member.autoencoder.W_enc.numel() for member in members)
    on_cpu = all(autoencoder.W_enc.device.type == "cpu" for autoencoder in autoencoders)
    compiles = any(member.settings.compiles for member in members)
    if not on_cpu or compiles or least < worth_a_thread:
        return Threads()
    return Threads(min(len(members), torch.get_num_threads()))


class Ended(NamedTuple):
    """A training that takes no more batches: it is complete, or `error` ended it."""

    training: Training
    error: Exception | None


def train(trainings: Iterable[Training], interruption: Interruption) -> Iterator[Ended]:
    """Feed all trainings from their sources, and yield each training as it ends.

    Each batch of a source is drawn and scaled once, for all its trainings. Its stream starts at the position of the one
    with the fewest steps. Every other training takes its first batch when the stream reaches its position: the number
    of steps alone decides the next batch. Several streams advance in turn, so that they can share each harvest.

    Args:
        trainings: trainings of one batch size; each has its own number of steps.
        interruption: notes signals.

    Raises:
        Interrupted: a signal came; every state was saved first.
    """
    going = list(trainings)
    # Trainings that were yielded are not kept here: weights and moments of many trainings may be most of the memory.
    del trainings
    while trained := next((training for training in going if training.trained), None):
        going.remove(trained)
        yield Ended(trained, None)
    del trained
    if not going:
        return
    (size,) = {training.settings.batch_size for training in going}
    most = max(training.settings.steps for training in going)
    sources = dict.fromkeys(training.source for training in going)
    streams = [_Stream([each for each in going if each.source is source]) for source in sources]
    step = min(stream.step for stream in streams)
    progress = Progress("training", most * size, streams[0].source.unit, done=step * size)
    del going
    try:
        while streams:
            taken: list[Training] = []
            failed: dict[Training, Exception] = {}
            for stream in streams:
                if stream.step > step:
                    # Its trainings resume later than those of the other streams.
                    continue
                try:
                    batch = next(stream.batches)
                except Interrupted:
                    # The signal came in a harvest: the states are those after the last batch of each stream.
                    waiting = [each for behind in streams if behind.step == step > 0 for each in behind.here]
                    with interruption.saving():
                        _each([each for each in taken if each not in failed], Training.settle, progress.rate(), True)
                        _each(waiting, Training.save)
                    raise
                here = stream.here
                scaled = stream.scaled(batch, here)
                failed |= _each(here, lambda training, scaled: training.take(*scaled[training.scaling]), scaled)
                stream.step += 1
                taken += here
            step += 1
            progress.advance(size)
            stop, rate = interruption.signal_name is not None, progress.rate()
            with interruption.saving():
                failed |= _each([each for each in taken if each not in failed], Training.settle, rate, stop)
            _show(progress, [each for stream in streams for each in stream.trainings], rate / size)
            for training in taken:
                if training in failed or training.trained:
                    for stream in streams:
                        stream.release(training)
                    yield Ended(training, failed.get(training))
            streams = [stream for stream in streams if stream.trainings]
            if stop:
                log.info("saved the state at step %d", step)
                interruption.check()
    finally:
        progress.close()


class _Stream:
    """The batches of one source, from the position of the training with the fewest steps.

    Args:
        trainings: on the source.

    Attributes:
        source: of the batches.
        batches: those that come next.
        trainings: those that have not ended.
        step: steps that the batches so far are for.
    """

    def __init__(self, trainings: Sequence[Training]):
        first = min(trainings, key=lambda training: training.step)
        self.source, self.trainings, self.step = first.source, list(trainings), first.step
        if first.position is not None:
            self.source.load_state_dict(first.position)
        self.batches = self.source.batches(first.settings.batch_size)
        self._factors = cache(self._spread)

    @property
    def here(self) -> list[Training]:
        """The trainings whose next batch is the next one."""
        return [training for training in self.trainings if training.step == self.step]

    def release(self, training: Training) -> None:
        """Forget a training that has ended."""
        self.trainings = [each for each in self.trainings if each is not training]

    def scaled(
        self, batch: Batch, trainings: Sequence[Training]
    ) -> dict[Scaling, tuple[Tensor, Tensor | None, Partners | None]]:
        """Return the batch in the units of each training."""
        return {each: _scaled(batch, *self._factors(each)) for each in {training.scaling for training in trainings}}

    def _spread(self, scaling: Scaling) -> tuple[Factor, Factor]:
        source = self.source
        return (
            source.input_layout.spread(scaling.input, source.device),
            source.target_layout.spread(scaling.target, source.device),
        )


def _scaled(batch: Batch, scale: Factor, target_scale: Factor) -> tuple[Tensor, Tensor | None, Partners | None]:
    """Return scaled inputs, targets (None for the inputs themselves) and partners."""
    inputs, partners = batch.inputs.float() * scale, batch.partners
    return (
        inputs,
        None if batch.targets is batch.inputs else batch.targets.float() * target_scale,
        None if partners is None else Partners(partners.inputs.float() * scale, partners.there),
    )


def _at(end: End | None, inputs: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return what a member reads and its targets; None for what it reads itself."""
    if end is None or targets is None:
        return inputs, targets
    return inputs if end is End.input else targets, None


def _each(trainings: Iterable[Training], action: Callable[..., None], *given: Any) -> dict[Training, Exception]:
    """Call `action` for every training, and return the errors of the trainings for which it failed."""
    failed: dict[Training, Exception] = {}
    for training in trainings:
        try:
            action(training, *given)
        except Exception as error:
            failed[training] = error
    return failed


def _show(progress: Progress, trainings: Sequence[Training], steps_per_second: float) -> None:
    means = trainings[0].means
    if len(trainings) > 1:
        progress.show(**{"trainings": len(trainings), "steps/s": steps_per_second})
    elif means:
        progress.show(loss=means["loss"], l0=means["l0"], fvu=means["fvu"])

"""The training loop: batches in, steps, logged means, checkpoints."""

import logging
import time
from collections.abc import Sequence

from fsae.progress import Progress
from fsae.sources.source import Source
from fsae.tracking.interface import MetricSink
from fsae.training.checkpoints import Checkpoints
from fsae.training.interruption import Interruption
from fsae.training.member import Member
from fsae.training.settings import AdamSettings

log = logging.getLogger(__name__)


class TrainingRun:
    """Members trained on one stream, with everything needed to stop and go on.

    Args:
        members: autoencoders in training; the ordinary run has one.
        source: raw vectors.
        scale: what they are multiplied by.
        settings: how long, how fast.
        tracker: where numbers go.
        checkpoints: where state goes.
        interruption: what may ask to stop.
    """

    def __init__(
        self,
        members: Sequence[Member],
        source: Source,
        scale: float,
        settings: AdamSettings,
        tracker: MetricSink,
        checkpoints: Checkpoints,
        interruption: Interruption,
    ):
        self.members, self.source, self.scale, self.settings = members, source, scale, settings
        self.tracker, self.checkpoints, self.interruption = tracker, checkpoints, interruption
        self.step = 0

    def train(self) -> None:
        """Run to the end, from wherever the state is.

        Raises:
            Interrupted: a signal came; the state was saved first.
            ValueError: a loss is not finite; the last checkpoint is from before.
        """
        settings = self.settings
        size = settings.batch_size
        progress = Progress("training", settings.steps * size, self.source.unit, done=self.step * size)
        saved_at = time.monotonic()
        batches = self.source.batches(size)
        try:
            while self.step < settings.steps:
                x = next(batches).inputs.float() * self.scale
                for member in self.members:
                    member.step(x, self.step)
                self.step += 1
                progress.advance(size)
                if settings.logs_after(self.step - 1):
                    self._log(progress)
                if self.interruption.signal_name is not None:
                    self.save()
                    log.info("saved the state at step %d of %d", self.step, settings.steps)
                    self.interruption.check()
                if time.monotonic() - saved_at >= settings.checkpoint_seconds or self.step == settings.steps:
                    self.save()
                    saved_at = time.monotonic()
        finally:
            progress.close()

    def _log(self, progress: Progress) -> None:
        tokens = self.step * self.settings.batch_size
        for member in self.members:
            member.check_finite(self.step)
            means = member.read_interval()
            progress.show(loss=means["loss"], l0=means["l0"], fvu=means["fvu"])
            means["lr"] = self.settings.lr_at(self.step - 1)
            means[f"{self.source.unit}_per_second"] = progress.rate()
            self.tracker.log({f"train/{name}": value for name, value in means.items()}, tokens)

    def save(self) -> None:
        """Write a checkpoint of everything.

        Raises:
            ValueError: a loss is not finite; the last good checkpoint stays.
            OSError: no space is left; likewise.
        """
        for member in self.members:
            member.check_finite(self.step)
        self.checkpoints.save(
            {
                "step": self.step,
                "scale": self.scale,
                "members": [member.state_dict() for member in self.members],
                "source": self.source.state_dict(),
                "metrics_position": self.tracker.position(),
            }
        )

    def load(self, state: dict) -> None:
        """Take over a checkpoint's state."""
        self.step = state["step"]
        for member, saved in zip(self.members, state["members"], strict=True):
            member.load_state_dict(saved)
        self.source.load_state_dict(state["source"])

"""Progress of long work: a live bar on a terminal, lines on any other console, and lines in run.log in both cases."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fsae.console import IN_THE_BAR, live_bar

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def working(label: str) -> Iterator[None]:
    """Show work of unknown length: the elapsed seconds on a terminal, one line in the log."""
    bar = live_bar(desc=label, bar_format="{desc}: {elapsed}", leave=False)
    log.info("%s", label, extra=None if bar.disable else IN_THE_BAR)
    over = threading.Event()

    def tick() -> None:
        while not over.wait(1):
            bar.refresh()

    if not bar.disable:
        threading.Thread(target=tick, name=label, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        bar.close()


class Progress:
    """A count of units of work towards a total, which shows rate and time left.

    Args:
        label: description of the work.
        total: total number of units.
        unit: name of a unit.
        done: units that an earlier process has done.
    """

    def __init__(self, label: str, total: int, unit: str = "tokens", done: int = 0):
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self._begin, self._done_at_begin, self._last_line = time.monotonic(), done, time.monotonic()
        self._numbers: dict[str, float] = {}
        self._bar = live_bar(
            total=total,
            initial=done,
            desc=label,
            unit=f" {unit}",
            unit_scale=True,
            smoothing=0.1,
            leave=False,
        )

    def advance(self, units: int) -> None:
        """Record that `units` more are done."""
        self.done += units
        self._bar.update(units)
        if time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._line(IN_THE_BAR if not self._bar.disable else None)

    def show(self, **numbers: float) -> None:
        """Show these numbers next to the bar."""
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()}, refresh=False)
        self._numbers = numbers

    def rate(self) -> float:
        """Return units per second since this process began."""
        return (self.done - self._done_at_begin) / max(1e-9, self.seconds())

    def seconds(self) -> float:
        """Return the seconds since this process began the work."""
        return time.monotonic() - self._begin

    def close(self) -> None:
        """Remove the bar and log the final count."""
        self._bar.close()
        self._line()

    def _line(self, extra: dict[str, bool] | None = None) -> None:
        self._last_line = time.monotonic()
        rate = self.rate()
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        numbers = "".join(f", {name} {value:.4g}" for name, value in self._numbers.items())
        log.info(
            "%s: %s of %s %s (%.0f %%), %.0f %s/s, %.0f s left%s",
            self.label, f"{self.done:,}", f"{self.total:,}", self.unit, 100 * self.done / max(1, self.total),
            rate, self.unit, left, numbers, extra=extra,
        )  # fmt: skip

import logging

import pytest

from fsae import progress as module
from fsae.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_the_rate_counts_this_process_and_the_rest_counts_all_work(
    clock: list[float], caplog: pytest.LogCaptureFixture
):
    # 600 units were done before; 100 more in 4 seconds leave 300, which take 12.
    progress = Progress("training", 1000, done=600)
    clock[0] += 4
    progress.advance(100)
    assert progress.rate() == 25
    assert progress.seconds() == 4
    progress.show(loss=0.123456, l0=64.0)
    with caplog.at_level(logging.INFO):
        progress.close()
    assert caplog.messages == ["training: 700 of 1,000 tokens (70 %), 25 tokens/s, 12 s left, loss 0.1235, l0 64"]


def test_progress_logs_a_line_at_intervals(clock: list[float], caplog: pytest.LogCaptureFixture):
    progress = Progress("harvesting", 100)
    with caplog.at_level(logging.INFO):
        for _ in range(100):
            clock[0] += 1
            progress.advance(1)
    assert len(caplog.messages) == 100 // module.SECONDS_BETWEEN_LINES


def test_progress_without_units_done_has_no_end(clock: list[float], caplog: pytest.LogCaptureFixture):
    progress = Progress("training", 100, unit="samples")
    with caplog.at_level(logging.INFO):
        progress.close()
    assert caplog.messages == ["training: 0 of 100 samples (0 %), 0 samples/s, inf s left"]

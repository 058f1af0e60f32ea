import os
import signal
import sys
import threading
import time

import pytest

from fsae.training.interruption import Interrupted, Interruption, hand_on


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_is_only_noted_until_it_is_asked_for(number: signal.Signals):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        interruption.check()
        os.kill(os.getpid(), number)
        assert interruption.signal_name == number.name
        with pytest.raises(Interrupted, match=number.name) as caught:
            interruption.check()
        assert caught.value.signal_name == number.name
    assert signal.getsignal(number) is before


def test_a_second_control_c_stops_at_once():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal_name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_does_not_hurt_the_saving():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal_name == "SIGTERM"


@pytest.fixture
def submitit(monkeypatch: pytest.MonkeyPatch):
    """What submitit leaves in a job's process: a variable, and a handler that ends it once the job is requeued."""
    monkeypatch.setenv("SUBMITIT_FOLDER", "/jobs")
    before = signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(255))
    yield
    signal.signal(signal.SIGUSR2, before)


def test_sigusr2_is_handed_on_to_whoever_requeues_the_job(submitit: None):
    with pytest.raises(SystemExit) as left:
        hand_on(Interrupted("SIGUSR2"))
    assert left.value.code == 255


def test_after_sigterm_slurm_s_next_word_is_waited_for(submitit: None):
    # Instead of the kill, which a test would not survive.
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2))
    began = time.monotonic()
    timer.start()
    with pytest.raises(SystemExit):
        hand_on(Interrupted("SIGTERM"))
    assert time.monotonic() - began > 0.1


def test_without_slurm_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SUBMITIT_FOLDER", raising=False)
    hand_on(Interrupted("SIGTERM"))

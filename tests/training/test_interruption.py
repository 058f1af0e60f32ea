import os
import signal
import sys
import threading

import pytest

from fsae.training.interruption import Interrupted, Interruption, hand_on


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_is_only_noted_until_check(number: signal.Signals):
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


def test_a_second_control_c_waits_for_the_state_to_be_written():
    with Interruption() as interruption:
        with interruption.saving():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            interruption.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.signal_name is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_ends_a_wait_if_nothing_has_to_be_saved():
    done = []

    def work(before: str, after: str) -> None:
        with interruption.at_once():
            done.append(before)
            signal.raise_signal(signal.SIGTERM)
            done.append(after)

    with Interruption() as interruption:
        for words in (("it began", "it went on"), ("the next began", "and went on")):
            with pytest.raises(Interrupted, match="SIGTERM"):
                work(*words)
    assert done == ["it began"]


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_library_that_replaces_the_exception_does_not_hide_a_signal(swallowed: bool):
    def library() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:
            if not swallowed:
                raise ValueError("the model cannot be opened") from error

    with Interruption() as interruption, pytest.raises(Interrupted), interruption.at_once():
        library()


def test_a_nested_interruption_knows_the_signal_of_the_outer_one():
    with Interruption() as outer:
        signal.raise_signal(signal.SIGTERM)
        with Interruption() as inner:
            assert inner.signal_name == "SIGTERM"
        signal.raise_signal(signal.SIGHUP)
        assert outer.signal_name == "SIGHUP"


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

    def requeue() -> None:
        timer.start()
        hand_on(Interrupted("SIGTERM"))

    with pytest.raises(SystemExit):
        requeue()


def test_hand_on_waits_for_nothing_without_slurm(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SUBMITIT_FOLDER", raising=False)
    hand_on(Interrupted("SIGTERM"))

import os
import signal

import pytest

from fsae.training.interruption import Interrupted, Interruption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
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

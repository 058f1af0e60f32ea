import math

import pytest

from fsae.training.settings import AdamSettings


def test_the_learning_rate_rises_stays_and_falls():
    # 100 steps: 10 rising, 70 level, 20 falling.
    settings = AdamSettings(samples=1000, batch_size=10, lr=2.0, warm_up=0.1, decay=0.2)
    assert settings.steps == 100
    rates = [settings.lr_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(2.0 * 1 / 10)
    assert rates[4] == pytest.approx(2.0 * 5 / 10)
    assert rates[9:81] == [2.0] * 72
    assert rates[81] == pytest.approx(2.0 * 19 / 20)
    assert rates[99] == pytest.approx(2.0 * 1 / 20)
    assert all(rate > 0 for rate in rates)
    # One batch more would have had nothing left to learn with.
    assert settings.lr_at(100) == 0


def test_without_warm_up_and_decay_the_learning_rate_is_constant():
    settings = AdamSettings(samples=1000, batch_size=10, lr=2.0, warm_up=0.0, decay=0.0)
    assert {settings.lr_at(step) for step in range(100)} == {2.0}


def test_a_warm_up_shorter_than_a_step_changes_nothing():
    settings = AdamSettings(samples=100, batch_size=10, lr=2.0, warm_up=0.01, decay=0.0)
    assert settings.lr_at(0) == 2.0


def test_steps_are_whole_batches():
    assert AdamSettings(samples=1000, batch_size=300).steps == 3


def test_the_last_step_is_logged_also_within_an_interval():
    settings = AdamSettings(samples=70, batch_size=10, log_every=3)
    assert [step for step in range(7) if settings.logs_after(step)] == [2, 5, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, r"trainer\.samples is 0"),
        ({"batch_size": -1}, r"trainer\.batch_size is -1"),
        ({"lr": 0.0}, r"trainer\.lr is 0; it must be above 0"),
        ({"lr": math.nan}, r"trainer\.lr is nan"),
        ({"lr": math.inf}, r"trainer\.lr is inf"),
        ({"dead_after": 0}, r"trainer\.dead_after is 0"),
        ({"log_every": 0}, r"trainer\.log_every is 0"),
        ({"warm_up": 1.5}, r"trainer\.warm_up is 1\.5; it must be a share"),
        ({"decay": -0.1}, r"trainer\.decay is -0\.1; it must be a share"),
        ({"warm_up": 0.6, "decay": 0.6}, r"together they must not exceed 1"),
        ({"beta1": 1.0}, r"trainer\.beta1 is 1"),
        ({"beta2": -0.1}, r"trainer\.beta2 is -0\.1"),
        ({"clip_norm": math.nan}, r"trainer\.clip_norm is nan"),
        ({"checkpoint_seconds": math.nan}, r"trainer\.checkpoint_seconds is nan"),
        ({"clip_norm": 0.0}, r"trainer\.clip_norm is 0; it must be above 0 .*, or null"),
        ({"resample_every": 0}, r"trainer\.resample_every is 0; it must be at least 1 .*, or null"),
        ({"checkpoint_seconds": -1.0}, r"trainer\.checkpoint_seconds is -1"),
        ({"samples": 10, "batch_size": 20}, r"less than one batch \(20\)"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        AdamSettings(**changes)

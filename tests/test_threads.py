"""Several at a time do what one after the other would."""

import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fsae.autoencoders.layout import Scaling
from fsae.couplings.mutual import Mutual, MutualCoupling
from fsae.outputs.run_folder import RunFolder
from fsae.threads import Threads
from fsae.tracking.tracker import Tracker
from fsae.training.checkpoints import Checkpoints
from fsae.training.interruption import Interrupted, Interruption
from fsae.training.loop import WORTH_A_THREAD, threads_for
from fsae.training.resample import Reinitialisation, Scope
from tests.streams import activation_source
from tests.training.runs import SCALE, LoneRun, adam, differences, logged, member, saved


@pytest.fixture(autouse=True)
def _four_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(threads)


def test_each_item_has_a_share_of_the_cores():
    two = Threads(2)
    together = threading.Barrier(2, timeout=60)

    def look(item: int) -> tuple[int, int]:
        together.wait()
        return item, torch.get_num_threads()

    assert two.map(look, [5, 6]) == [(5, 2), (6, 2)]
    assert torch.get_num_threads() == 4


def test_one_item_has_all_cores():
    here = threading.get_ident()
    for size, items in ((1, [1, 2]), (2, [1])):
        several = Threads(size)
        assert several.map(lambda _: (threading.get_ident(), torch.get_num_threads()), items) == [(here, 4)] * len(
            items
        )


def test_remaining_items_have_all_cores():
    found = Threads(2).map(lambda item: (item, torch.get_num_threads()), [1, 2, 3])
    assert found == [(1, 2), (2, 2), (3, 4)]


def test_threads_that_begin_meanwhile_have_all_cores():
    two = Threads(2)

    def begin(_: int) -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    source = activation_source()
    assert two.map(begin, [1, 2]) == [2, 2]
    with source:
        # For this reason a source sets the number of threads in its own thread.
        asked = source._background.submit(torch.get_num_threads)
        assert asked.result() == 4


def test_an_error_is_raised_once_all_threads_have_finished():
    done = []

    def act(item: int) -> None:
        if item == 0:
            raise OSError("nothing left")
        time.sleep(0.2)
        done.append(item)

    two = Threads(2)
    with pytest.raises(OSError, match="nothing left"):
        two.map(act, [0, 1])
    assert done == [1]
    assert torch.get_num_threads() == 4


def size_of(count: int, worth_a_thread: int) -> int:
    return 4 // threads_for([member("topk", adam()) for _ in range(count)], worth_a_thread).cores_each


def test_long_steps_take_threads():
    assert size_of(3, WORTH_A_THREAD) == 1
    assert [size_of(count, 0) for count in (1, 2, 9)] == [1, 2, 4]


def population(folder: Path, coupled: bool, stop_at: int | None = None, worth_a_thread: int = 0) -> LoneRun:
    """Three members whose latents are resampled now and then; they resume from the folder's state if there is one."""
    folder.mkdir(exist_ok=True)
    settings, source = adam(), activation_source()
    checkpoints = Checkpoints(RunFolder(folder).checkpoints, {}, {})
    state = checkpoints.load()
    run = LoneRun(
        [member("topk", settings, seed=seed) for seed in range(3)],
        MutualCoupling(Mutual(weight=0.1), seed=0) if coupled else None,
        Reinitialisation(scope=Scope.latents, every=4, until=0.8),
        source,
        Scaling.of(SCALE),
        settings,
        Tracker(folder, None, state["metrics_position"] if state else 0),
        checkpoints,
        worth_a_thread=worth_a_thread,
    )
    run.interruption, run.stop_at = Interruption(), stop_at
    if state is not None:
        run.load(state)
    return run


def test_threads_change_no_number(tmp_path: Path):
    for at, least in (("threads", 0), ("one by one", 2**40)):
        # Each has one core either way: on more of them an operation may round differently.
        torch.set_num_threads(3 if least == 0 else 1)
        population(tmp_path / at, coupled=False, worth_a_thread=least).train()
    same(tmp_path / "threads", tmp_path / "one by one")


def test_a_population_on_threads_resumes_bit_for_bit(tmp_path: Path):
    population(tmp_path / "whole", coupled=True).train()
    with pytest.raises(Interrupted):
        population(tmp_path / "stopped", coupled=True, stop_at=13).train()
    population(tmp_path / "stopped", coupled=True).train()
    same(tmp_path / "whole", tmp_path / "stopped")


def test_the_log_reports_every_reinitialisation(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        population(tmp_path, coupled=False, worth_a_thread=WORTH_A_THREAD).train()
    told = re.findall(r"step \d+: resampled (\d+) latents? of member (\d)", caplog.text)
    counted = [each["reinitialised"] for each in saved(tmp_path)["members"]]
    assert [sum(int(count) for count, of in told if of == str(number)) for number in range(3)] == counted
    assert min(counted) > 0


def test_a_coupled_population_is_reproducible(tmp_path: Path):
    for at in ("once", "again"):
        population(tmp_path / at, coupled=True).train()
    same(tmp_path / "once", tmp_path / "again")


def same(*folders: Path) -> None:
    assert not differences(saved(folders[0]), saved(folders[1]))
    assert logged(folders[0]) == logged(folders[1])
    assert all(each["reinitialised"] > 0 for each in saved(folders[0])["members"])

from pathlib import Path

import pytest
import torch

from fsae.training import checkpoints as module
from fsae.training.checkpoints import FORMAT, Checkpoints

STATE = {"step": 3, "weights": torch.arange(6.0).reshape(2, 3), "names": ["a", "b"], "text": {"position": 4}}
CONFIG = {"arch.k": "64", "seed": "0"}
DATA = {"the text of dataset": "files 3a"}


def test_a_loaded_state_equals_the_saved_state(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", CONFIG, DATA)
    assert checkpoints.load() is None
    checkpoints.save(STATE)
    loaded = Checkpoints(tmp_path / "checkpoints", dict(reversed(CONFIG.items())), DATA).load()
    assert loaded is not None
    assert torch.equal(loaded.pop("weights"), STATE["weights"])
    assert loaded == {"step": 3, "names": ["a", "b"], "text": {"position": 4}}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["latest.pt"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        # As version 0.1.0 wrote it.
        ({"config": CONFIG, "state": STATE}, "1"),
        ({"format": 99, "config": CONFIG, "data": DATA, "state": STATE}, "99"),
        ({"format": 3, "settings": CONFIG}, "3"),
    ],
)
def test_a_checkpoint_of_another_format_is_refused(content: dict, named: str, tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, CONFIG, DATA)
    torch.save(content, checkpoints.path)
    with pytest.raises(
        ValueError, match=rf"latest\.pt has format {named}, and this version of fsae reads format {FORMAT};"
    ):
        checkpoints.load()


def test_a_full_disk_leaves_the_last_one(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, CONFIG, DATA)
    checkpoints.save(STATE)
    # A real one: whatever is written to this device does not fit.
    (tmp_path / "latest.pt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*latest\.pt: .*the last one is untouched. Free"):
        checkpoints.save(STATE | {"step": 4, "weights": torch.zeros(1000, 1000)})
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pt"]
    checkpoints.save(STATE | {"step": 5})
    assert (checkpoints.load() or {})["step"] == 5


@pytest.mark.parametrize("through_torch", [False, True])
def test_a_write_that_fails_half_way_leaves_the_last_one(
    through_torch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoints = Checkpoints(tmp_path, CONFIG, DATA)
    checkpoints.save(STATE)

    def half(content, file):
        file.write(b"half of it")
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            if through_torch:
                # How its zip writer reports it.
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # noqa: B904
            raise

    monkeypatch.setattr(module.torch, "save", half)
    with pytest.raises(
        OSError, match=r"cannot write the checkpoint .*No space left on device; the last one is untouch"
    ):
        checkpoints.save(STATE | {"step": 4})
    assert (checkpoints.load() or {})["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pt"]


def test_an_error_of_another_kind_is_not_reported_as_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(content, file):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    checkpoints = Checkpoints(tmp_path, CONFIG, DATA)
    checkpoints.save(STATE)
    monkeypatch.setattr(module.torch, "save", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        checkpoints.save(STATE | {"step": 4})
    assert (checkpoints.load() or {})["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pt"]


def test_a_kill_within_a_write_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = Checkpoints(tmp_path, CONFIG, DATA)
    checkpoints.save(STATE)

    def killed(content, file):
        file.write(b"half of it")
        # What no handler in between turns into something else.
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(module.torch, "save", killed)
        with pytest.raises(SystemExit):
            checkpoints.save(STATE | {"step": 4})
    assert (checkpoints.load() or {})["step"] == 3
    checkpoints.save(STATE | {"step": 5})
    assert (checkpoints.load() or {})["step"] == 5


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named_and_not_overwritten(share: float, tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, CONFIG, DATA)
    checkpoints.save(STATE | {"weights": torch.zeros(1000)})
    whole = checkpoints.path.read_bytes()
    checkpoints.path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"the checkpoint .*latest\.pt is damaged .*delete it to start this run"):
        checkpoints.load()
    assert checkpoints.path.read_bytes() == whole[: int(share * len(whole))]


@pytest.mark.parametrize("content", [{"step": 3}, {"format": FORMAT}, [3], 3, None])
def test_a_file_of_another_kind_is_refused_as_damaged(content: object, tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, CONFIG, DATA)
    torch.save(content, checkpoints.path)
    with pytest.raises(ValueError, match="is damaged"):
        checkpoints.load()


class Payload:
    """Unpickling it would call a function of the file's choice."""

    def __reduce__(self):
        return (Path.touch, (Path(__file__).with_name("unpickled"),))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, CONFIG, DATA)
    torch.save({"config": CONFIG, "data": DATA, "state": Payload()}, checkpoints.path)
    with pytest.raises(ValueError, match="is damaged"):
        checkpoints.load()
    assert not Path(__file__).with_name("unpickled").exists()


def test_another_config_is_refused_by_the_keys_that_differ(tmp_path: Path):
    Checkpoints(tmp_path, CONFIG | {"trainer.lr": "0.001", "dataset.path": "/a"}, DATA).save(STATE)
    with pytest.raises(ValueError, match="belongs to a run with other settings") as caught:
        Checkpoints(tmp_path, CONFIG | {"trainer.lr": "0.002", "loss.penalty.weight": "1"}, DATA).load()
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [
        "  dataset.path: /a in the checkpoint, (absent) now",
        "  loss.penalty.weight: (absent) in the checkpoint, 1 now",
        "  trainer.lr: 0.001 in the checkpoint, 0.002 now",
    ]
    assert "another run folder" in lines[-1]


def test_other_data_under_the_same_settings_are_refused_by_name(tmp_path: Path):
    Checkpoints(tmp_path, CONFIG, DATA | {"the weights of model": "files 77"}).save(STATE)
    with pytest.raises(ValueError, match="was trained on other data") as caught:
        Checkpoints(tmp_path, CONFIG, {"the text of dataset": "files 4b"}).load()
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [
        "  the text of dataset: files 3a in the checkpoint, files 4b now",
        "  the weights of model: files 77 in the checkpoint, (absent) now",
    ]
    assert "another `name`" in lines[-1]

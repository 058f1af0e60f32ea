"""`python -m fsae.store`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsae.commands.store import main
from fsae.sources.activation_store import ActivationStore
from tests.sources.test_activation_store import made, write


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two stores of 12 and 5 vectors; the second has been unused since 1970."""
    monkeypatch.setenv("FSAE_OUTPUTS", str(tmp_path))
    folder = tmp_path / "activations"
    for name, counts in (("new", (7, 5)), ("old", (5,))):
        store = made(folder / name)
        for number, count in enumerate(counts):
            write(store, number, count)
        store.close()
    for name in ("in_use.lock", "store.json"):
        os.utime(folder / "old" / name, (0, 0))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_list_prints_every_store(outputs: Path, capfd: pytest.CaptureFixture[str]):
    using = ActivationStore(outputs / "new")
    assert main(["list"]) == 0
    printed = capfd.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed[1:3]] == ["12", "5"]
    assert printed[1].endswith("new  (in use)")
    assert "1970" in printed[2]
    assert printed[2].endswith("old")
    assert printed[3].endswith("in all")
    using.close()


def test_list_does_not_count_as_use(outputs: Path, capfd: pytest.CaptureFixture[str]):
    for command in ("list", "verify", "list"):
        main([command])
    assert "1970" in capfd.readouterr().out.splitlines()[-2]


def test_verify_finds_damage(outputs: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["verify"]) == 0
    assert capfd.readouterr().out == "new: 2 of 2 shards are whole\nold: 1 of 1 shards are whole\n"
    path = outputs / "new" / "train-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 8
    path.write_bytes(data)
    assert main(["verify"]) == 1
    printed = capfd.readouterr()
    assert "train-00001.safetensors does not have the checksum" in printed.err
    assert printed.out == "new: 1 of 2 shards are whole\nold: 1 of 1 shards are whole\n"
    assert main(["verify", "old"]) == 0
    os.truncate(outputs / "old" / "train-00000.safetensors", 10)
    assert main(["verify", "old"]) == 1
    assert "train-00000.safetensors has 10 bytes instead of" in capfd.readouterr().err


def test_verify_names_foreign_files_and_reads_the_rest(outputs: Path, capfd: pytest.CaptureFixture[str]):
    (outputs / "new" / "notes-2.json").write_text("{}")
    (outputs / "new" / "train-x.safetensors").mkdir()
    (outputs / "beside.txt").write_text("")
    assert main(["verify"]) == 0
    printed = capfd.readouterr()
    assert printed.out == "new: 2 of 2 shards are whole\nold: 1 of 1 shards are whole\n"
    assert printed.err.splitlines() == [
        f"{outputs}/new/{name} is no part of the store; nothing reads it"
        for name in ("notes-2.json", "train-x.safetensors")
    ]


def test_verify_names_a_shard_without_a_record(outputs: Path, capfd: pytest.CaptureFixture[str]):
    (outputs / "new" / "train-00001.json").unlink()
    assert main(["verify", "new"]) == 0
    printed = capfd.readouterr()
    assert printed.out == "new: 1 of 1 shards are whole\n"
    assert printed.err == f"{outputs}/new/train-00001.safetensors has no record; nothing reads it\n"


@pytest.mark.parametrize("days", ["-1", "nan", "inf", "-1e-9", "many"])
def test_prune_refuses_impossible_days(days: str, outputs: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["prune", f"--unused-days={days}"])
    assert ended.value.code == 2
    assert f"--unused-days: it is {days}; it must be a number, at least 0 and at most 1e6" in capfd.readouterr().err
    assert names(outputs) == ["new", "old"]


DAMAGES = {
    "store.json": ['{"format": 2}', "[]", "[" * 100_000, ""],
    "train-00000.json": ['{"count": "7"}', "[]", "[" * 100_000, ""],
    "train-00000.safetensors": ["", "x"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGES.items() for text in texts])
def test_damage_is_reported_in_one_line(name: str, text: str, outputs: Path, capfd: pytest.CaptureFixture[str]):
    (outputs / "new" / name).write_text(text)
    assert main(["list"]) == 0
    # The other store is listed as before.
    assert capfd.readouterr().out.splitlines()[2].split()[1] == "5"
    assert main(["verify"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert name.removesuffix(".json").removesuffix(".safetensors") in line
    assert main(["prune", "new"]) == 0
    assert names(outputs) == ["old"]


def test_an_unreadable_folder_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    for command in ("list", "verify"):
        assert main(["--folder", str(tmp_path / "file"), command]) == 2
        assert capfd.readouterr().err == f"{tmp_path}/file cannot be read: Not a directory\n"


def test_a_failed_removal_is_reported(outputs: Path, capfd: pytest.CaptureFixture[str]):
    (outputs / "new" / "mine").mkdir()
    assert main(["prune", "new"]) == 1
    assert "new cannot be removed: " in capfd.readouterr().err
    assert (outputs / "new" / "store.json").exists()


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["new"], ["old"]),
        (["--all"], []),
        (["--unused-days", "30"], ["new"]),
        (["new", "--unused-days", "30"], ["new", "old"]),
    ],
)
def test_prune_removes_the_chosen_stores(arguments: list[str], left: list[str], outputs: Path):
    assert main(["prune", *arguments]) == 0
    assert names(outputs) == left


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["evaluations"], {"new", "old", "evaluations"}),
        (["--all"], {"evaluations"}),
        (["evaluations", "--unused-days", "30"], {"new", "old", "evaluations", "recent"}),
        (["new"], {"old", "evaluations", "recent", "earlier"}),
    ],
)
def test_kept_findings_of_evaluations_are_listed_and_pruned(
    arguments: list[str], left: set[str], outputs: Path, capfd: pytest.CaptureFixture[str]
):
    kept = outputs / "evaluations"
    kept.mkdir()
    for name in ("recent", "earlier"):
        (kept / f"{name}.safetensors").write_bytes(bytes(2_000_000))
    os.utime(kept / "earlier.safetensors", (0, 0))
    assert main(["list"]) == 0
    assert "   0.004 " in capfd.readouterr().out.splitlines()[-2]
    assert main(["prune", *arguments]) == 0
    assert {*names(outputs), *(path.stem for path in kept.iterdir())} == left


def test_prune_does_not_remove_a_store_in_use(outputs: Path, capfd: pytest.CaptureFixture[str]):
    using = ActivationStore(outputs / "old")
    assert main(["prune", "--all"]) == 1
    assert "old is in use by a run; it is not removed" in capfd.readouterr().err
    assert names(outputs) == ["old"]
    using.close()


def test_a_store_of_another_format_can_be_listed_and_pruned(outputs: Path, capfd: pytest.CaptureFixture[str]):
    (outputs / "new" / "store.json").write_text('{"format": 7}')
    assert main(["list"]) == 0
    assert "unreadable" in capfd.readouterr().out
    assert main(["verify", "new"]) == 1
    assert main(["prune", "new"]) == 0
    assert names(outputs) == ["old"]


def test_an_unknown_store_is_bad_input(outputs: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["prune", "newer"]) == 2
    assert f"there is no store newer in {outputs}" in capfd.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["prune"])
    assert ended.value.code == 2
    assert names(outputs) == ["new", "old"]


def test_store_works_as_a_command(tmp_path: Path):
    command = [sys.executable, "-m", "fsae.store", "--folder", str(tmp_path), "list"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "in all" in done.stdout

import subprocess
import sys
from pathlib import Path

import pytest

from fsae.commands.report import main
from tests.analysis.run_folders import results_of, settings_of, write_run


def one_run(folder: Path) -> None:
    write_run(folder, settings_of("gated", 0, 1, 0), results_of("gated", 0, 1, 0, effect=0, noise=0))


def test_a_folder_is_reported_on_within_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    one_run(tmp_path / "s" / "0")
    assert main([str(tmp_path / "s")]) == 0
    page = tmp_path / "s" / "report" / "report.html"
    assert page.exists()
    assert capfd.readouterr().out == f"1 runs, 1 finished: {page}\n"
    # Its own report is no run.
    assert main([str(tmp_path / "s")]) == 0
    assert capfd.readouterr().out.startswith("1 runs")


def test_several_folders_are_reported_on_here_or_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    one_run(tmp_path / "a" / "0")
    one_run(tmp_path / "b" / "0")
    assert main(["a", "b"]) == 0
    assert (tmp_path / "report" / "report.html").exists()
    assert main(["a", "b", "--out", "there"]) == 0
    assert (tmp_path / "there" / "runs.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "no run in"),
        (["--mlflow", "sqlite:///nowhere.db"], "nowhere.db: no such file"),
        (["--mlflow", "file:///tmp"], "--mlflow=file:///tmp: "),
    ],
)
def test_bad_input_is_told(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert said in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["a", "--mlflow", "x"], ["a", "--sweep", "x"]])
def test_what_makes_no_sense_together_is_refused(arguments: list[str], capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error:" in capfd.readouterr().err


def test_it_needs_no_torch():
    code = "import sys, fsae.report; print({'torch', 'mlflow', 'hydra'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

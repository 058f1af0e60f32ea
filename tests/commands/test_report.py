import subprocess
import sys
from pathlib import Path

import pytest

from fsae.commands.report import main
from tests.analysis.run_folders import results_of, settings_of, write_run


def one_run(folder: Path) -> None:
    write_run(folder, settings_of("gated", 0, 1, 0), results_of("gated", 0, 1, 0, effect=0, noise=0))


def test_the_report_on_one_folder_is_written_inside_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    one_run(tmp_path / "s" / "0")
    assert main([str(tmp_path / "s")]) == 0
    page = tmp_path / "s" / "report" / "report.html"
    assert page.exists()
    assert capfd.readouterr().out == f"1 run, 1 finished: {page}\n"
    # The sweep's own report is no run.
    assert main([str(tmp_path / "s")]) == 0
    assert capfd.readouterr().out.startswith("1 run, ")


def test_the_report_on_several_folders_is_written_here_or_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    one_run(tmp_path / "a" / "0")
    one_run(tmp_path / "b" / "0")
    assert main(["a", "b"]) == 0
    assert (tmp_path / "report" / "report.html").exists()
    assert main(["a", "b", "--out", "there"]) == 0
    assert (tmp_path / "there" / "runs.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "no run in"),
        (["--mlflow", "sqlite:///nowhere.db"], "nowhere.db: no such file"),
        (["--mlflow", "file:///tmp"], "--mlflow=file:///tmp: "),
    ],
)
def test_report_explains_bad_input(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["a", "--mlflow", "x"], ["a", "--sweep", "x"]])
def test_report_refuses_contradictory_arguments(arguments: list[str], capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error:" in capfd.readouterr().err


def test_report_imports_no_torch():
    code = "import sys, fsae.report; print({'torch', 'mlflow', 'hydra'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

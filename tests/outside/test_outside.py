"""A distribution from outside adds an architecture, a loss term, a source and an evaluation, without a change here."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import environment, wait_until

HERE = Path(__file__).parent
# An architecture with its loss term, on a source, all from outside; 1,000 steps, each followed by a checkpoint.
CIRCLE = [
    f"--config-dir={HERE / 'conf'}", "arch=soft_threshold", "source=circle", "penalty=none", "tracking=none",
    "eval=[vectors,largest_error]",
    "trainer.batch_size=64", "trainer.samples=64_000", "trainer.checkpoint_seconds=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of packages in which the built wheel of the distribution is installed."""
    made = tmp_path_factory.mktemp("outside")
    copy = shutil.copytree(HERE / "package", made / "package")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    for command in (
        # Without isolation nothing is downloaded: the build backend is one of the development packages.
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(made), str(copy)],
        [*pip, "--target", str(made / "site"), str(made / "fsae_outside-0.1.0-py3-none-any.whl")],
    ):
        subprocess.run(command, check=True, capture_output=True, text=True)
    return made / "site"


def begun(site: Path, outputs: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `fsae.run` with the folder of packages on its path."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "fsae.run", *arguments],
        env=environment(outputs, PYTHONPATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(site: Path, outputs: Path, *arguments: str, succeeds: bool = True) -> str:
    process = begun(site, outputs, *arguments)
    output, _ = process.communicate(timeout=250)
    assert (process.returncode == 0) == succeeds, output
    return output


def run_folder(outputs: Path) -> Path:
    (folder,) = (outputs / "runs").iterdir()
    return folder


def test_help_lists_choices_from_outside(installed: Path, tmp_path: Path):
    output = output_of(installed, tmp_path, f"--config-dir={HERE / 'conf'}", "--help")
    for name in ("soft_threshold", "square", "circle", "largest_error"):
        assert name in output


def test_a_run_with_parts_from_outside_resumes_bit_for_bit_and_is_read_back(installed: Path, tmp_path: Path):
    output_of(installed, tmp_path / "whole", *CIRCLE)
    process = begun(installed, tmp_path / "stopped", *CIRCLE)
    checkpoint = "runs/*/checkpoints/latest.pt"
    wait_until(lambda: bool(list((tmp_path / "stopped").glob(checkpoint))), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=100) == 128 + signal.SIGTERM
    state = torch.load(next((tmp_path / "stopped").glob(checkpoint)), weights_only=True)["state"]
    assert 0 < state["step"] < 1000
    output_of(installed, tmp_path / "stopped", *CIRCLE)

    whole, resumed = (run_folder(tmp_path / name) for name in ("whole", "stopped"))
    weights, others = (load_file(folder / "sae" / "sae_weights.safetensors") for folder in (whole, resumed))
    assert weights.keys() == {"W_enc", "W_dec", "b_dec", "b_enc", "threshold"}
    assert all(torch.equal(others[name], tensor) for name, tensor in weights.items())
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (whole, resumed))
    assert first["eval/fvu"] == second["eval/fvu"] < 0.5
    assert first["eval/largest_error"] == second["eval/largest_error"] > 0

    again = [*CIRCLE, "task=eval", f"sae.path={whole / 'sae'}"]
    output_of(installed, tmp_path / "again", *again)
    read_back = json.loads((run_folder(tmp_path / "again") / "results.json").read_text())
    assert read_back["eval/fvu"] == pytest.approx(first["eval/fvu"], rel=1e-5)


def test_a_sweep_s_report_compares_the_numbers_of_an_evaluation_from_outside(installed: Path, tmp_path: Path):
    output_of(
        installed, tmp_path, *CIRCLE, "-m", "launcher=packed", "penalty=fisher", "loss.penalty.weight=0,1e-6",
        "loss.sparsity.weight=0.1,0.3,1,3", "trainer.samples=6400",
        "eval.vectors.samples=256", "eval.vectors.batch_size=256", "eval.largest_error.samples=256",
    )  # fmt: skip
    (report,) = tmp_path.glob("sweeps/*/*/report/report.html")
    _, matched = report.read_text().split("At matched l0: penalty minus baseline")
    heading = "<h3>Largest distance of a vector from its reconstruction (largest_error)"
    assert matched.index("(fvu)\N{NO-BREAK SPACE}↓</h3>") < matched.index(heading)
    _, compared = matched.split(heading)
    assert "soft_threshold, θ = 1e-6" in compared
    assert "too few seeds to say: 1 of at least 3" in compared


@pytest.mark.packaged
def test_a_language_model_s_activations_train_an_architecture_from_outside(installed: Path, tmp_path: Path):
    output_of(
        installed, tmp_path, f"--config-dir={HERE / 'conf'}", "arch=soft_threshold", "arch.d_sae=256", "tracking=none",
        "site.layer=2", "trainer.batch_size=256", "trainer.samples=2048", "source.tokens=4096",
    )  # fmt: skip
    results = json.loads((run_folder(tmp_path) / "results.json").read_text())
    assert 0 < results["eval/l0"] < 256
    metrics = [json.loads(line) for line in (run_folder(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    assert any("train/sparsity_weighted" in json.dumps(line) for line in metrics)


def entry_points(folder: Path, distribution: str, lines: str, code: str = "") -> Path:
    """Write a distribution as an installation would, with a module of its own."""
    name = distribution.replace("-", "_")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fsae]\n{lines}\n")
    (folder / f"{name}.py").write_text(code)
    return folder


@pytest.mark.parametrize(
    ("lines", "code", "message"),
    [
        (
            "arch.mine = broken_one:Mine",
            "import nothing_of_this_name",
            "cannot be imported (ModuleNotFoundError: ",
        ),
        ("arch.mine = broken_one:Mine", "class Mine: ...", "is no subclass of AutoencoderSettings"),
        ("arch.topk = broken_one:Mine", "class Mine: ...", "a name that fsae itself has already; uninstall broken-one"),
    ],
)
def test_a_broken_distribution_is_named_in_one_sentence(tmp_path: Path, lines: str, code: str, message: str):
    site = entry_points(tmp_path / "site", "broken-one", lines, code)
    output = output_of(site, tmp_path / "outputs", "arch=topk", succeeds=False)
    assert "the distribution broken-one adds arch=" in output
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize("name", ["architecture.mine", "mine", "arch."])
def test_an_entry_point_of_no_group_is_refused(tmp_path: Path, name: str):
    site = entry_points(tmp_path / "site", "broken-one", f"{name} = broken_one:Mine", "class Mine: ...")
    output = output_of(site, tmp_path / "outputs", "arch=topk", succeeds=False)
    assert f"the distribution broken-one has the entry point {name}, which names no choice of fsae" in output
    assert "one of arch.NAME, eval.NAME, loss.NAME, source.NAME, trainer.NAME" in output
    assert "Traceback" not in output


def test_two_distributions_with_one_name_are_refused(tmp_path: Path):
    code = "from fsae.autoencoders.topk import TopKSettings as Mine"
    site = entry_points(tmp_path / "site", "one-of-two", "arch.mine = one_of_two:Mine", code)
    entry_points(site, "two-of-two", "arch.mine = two_of_two:Mine", code)
    output = output_of(site, tmp_path / "outputs", "arch=topk", succeeds=False)
    assert "the distribution two-of-two adds arch=mine, a name that one-of-two has already" in output

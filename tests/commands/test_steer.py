"""`python -m fsae.steer`: what it prints, and its messages."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fsae
from fsae.commands.steer import main
from fsae.export.folding import fold
from fsae.export.provenance import Provenance
from fsae.export.saelens import save_saelens
from tests.architectures import build


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dictionary of the tiny model that belongs to no run."""
    folder = tmp_path_factory.mktemp("dictionary") / "sae"
    provenance = Provenance(model_name="tiny", hook_name="blocks.2.hook_resid_post")
    save_saelens(fold(build("topk", 32, dtype=torch.float32), 0.5), folder, provenance)
    return folder


def test_plain_and_steered_text_are_printed_with_a_table(saved: Path, capfd: pytest.CaptureFixture[str]):
    words = ["--prompt", "abc", "--strengths", "-2", "3", "--tokens", "8", "--largest", "2", "--target", "x"]
    assert main([str(saved), "4", *words]) == 0
    printed = capfd.readouterr().out
    steering = fsae.steer(fsae.load(saved), 4, "abc", strengths=[-2, 3], tokens=8, largest={4: 2.0}, targets=["x"])
    assert printed.splitlines()[-5:] == str(steering).splitlines()[-5:]
    assert "strength -2" in printed
    assert "strength 3" in printed


def test_the_options_are_those_of_the_edit(saved: Path, capfd: pytest.CaptureFixture[str]):
    words = ["--prompt", "abc", "--tokens", "8", "--operation", "clamp", "--unit", "absolute", "--scope", "generated"]
    assert main([str(saved), "4", *words, "--after", "b", "--decay", "0.5", "--strengths", "9", "--seed", "3"]) == 0
    printed = capfd.readouterr().out
    edit = fsae.Clamp(4, 1.0, unit="absolute", scope="generated", after="b", decay=0.5)
    steering = fsae.steer(fsae.load(saved), edit, "abc", strengths=[9], tokens=8, seed=3)
    assert printed.splitlines()[-4:] == str(steering).splitlines()[-4:]


def test_a_negative_factor_is_refused(saved: Path, capfd: pytest.CaptureFixture[str]):
    assert main([str(saved), "4", "--prompt", "abc", "--operation", "scale", "--strengths", "-1"]) == 2
    assert capfd.readouterr().err == "fsae.steer: Scale.by is -1; it must be at least 0 and at most 1e6\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["14", "--prompt", "a", "--unit", "absolute"], "Add.latent is 14; the dictionary has the latents 0 to 13"),
        (["4", "--prompt", "a"], "the largest activations of its latents are unknown"),
        (["4", "--prompt", "", "--unit", "absolute"], "prompt 0 has no token"),
        (["4", "--prompt", "a", "--decay", "0"], "Add.decay is 0"),
        (["4", "--prompt", "a", "--unit", "absolute", "--target", "ab"], "a target is 'ab', which is 2 tokens"),
        (["4", "--prompt", "a", "--member", "1"], "member is 1, but it holds one dictionary"),
    ],
)
def test_bad_input_is_explained(saved: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]):
    assert main([str(saved), *words]) == 2
    error = capfd.readouterr().err
    assert error.startswith("fsae.steer: ")
    assert message in error


def test_a_dictionary_without_a_language_model_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    save_saelens(fold(build("topk", dtype=torch.float32), 0.5), tmp_path / "sae", Provenance())
    assert main([str(tmp_path / "sae"), "4", "--prompt", "a"]) == 2
    assert "it was not trained on a language model's activations" in capfd.readouterr().err
    assert main([str(tmp_path / "nowhere"), "4", "--prompt", "a"]) == 2
    assert "nowhere: expected the folder of a run or of a dictionary, found no folder" in capfd.readouterr().err


@pytest.mark.parametrize("words", [["4"], ["four", "--prompt", "a"], ["4", "--prompt", "a", "--tokens", "0"]])
def test_a_command_line_that_says_too_little_is_refused(words: list[str], capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["run", *words])
    assert ended.value.code == 2
    assert "usage: python -m fsae.steer" in capfd.readouterr().err


def test_the_module_is_a_command():
    done = subprocess.run([sys.executable, "-m", "fsae.steer", "--help"], capture_output=True, text=True, check=True)
    assert "LATENT" in done.stdout

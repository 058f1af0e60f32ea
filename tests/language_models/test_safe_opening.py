"""Opening a model installs nothing, starts no process, runs none of the model's code and asks nothing."""

import builtins
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fsae.language_models.safe_opening import RefusedError, nothing_started
from fsae.language_models.settings import DType, ModelSettings
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model
from tests.language_models.zoo import seeing_models, write_decoder, write_model

PROCESSES = [(subprocess, "Popen"), (os, "system"), (os, "posix_spawn"), (os, "posix_spawnp"), (os, "fork")]


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The attempts to start a process or ask a question, each of them prevented; torchvision is missing."""
    tried: list[str] = []

    def refusing(name: str):
        def refuse(*arguments, **more):
            tried.append(f"{name}{arguments}")
            raise OSError(f"a test allows no {name}")

        return refuse

    for owner, name in PROCESSES:
        monkeypatch.setattr(owner, name, refusing(name))
    monkeypatch.setattr(builtins, "input", refusing("input"))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    return tried


def opened(folder: Path) -> TransformerLensModel:
    return open_language_model(ModelSettings(path=str(folder), dtype=DType.float32))


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl", "qwen3_vl", "llava", "mistral3"])
def test_a_model_that_takes_images_opens_for_text_alone(family: str, tmp_path: Path, attempts: list[str]):
    model = opened(write_model(seeing_models()[family], tmp_path))
    for name in SiteName:
        site = Site(name=name, layer=1)
        if site.weighted is None:
            model.check_splice(site)
        else:
            model.check_site(site)
    assert attempts == []


def with_own_code(folder: Path, model_type: str, *classes: str) -> Path:
    """A small Llama whose config.json names code of its own, which leaves a mark when it runs."""
    write_decoder("llama", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {name: f"own_code.{name}" for name in classes}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own_code.py").write_text(f"open({str(folder / 'mark')!r}, 'w').close()\n")
    return folder


def test_opening_refuses_a_models_own_code_without_asking(tmp_path: Path, attempts: list[str]):
    folder = with_own_code(tmp_path, "my_own", "AutoConfig", "AutoModelForCausalLM")
    with pytest.raises(ValueError, match=r"runs code of its own \(own_code.AutoConfig, .*choose a model that"):
        opened(folder)
    assert attempts == []
    assert not (folder / "mark").exists()


@pytest.mark.parametrize("classes", [("AutoConfig", "AutoModelForCausalLM"), ("AutoModelForCausalLM", "AutoTokenizer")])
def test_a_known_architecture_opens_without_the_models_own_code(classes, tmp_path: Path, attempts: list[str]):
    folder = with_own_code(tmp_path, "llama", *classes)
    opened(folder).check_splice(Site(name=SiteName.resid_mid, layer=1))
    assert attempts == []
    assert not (folder / "mark").exists()


def test_opening_does_not_run_a_tokenizers_own_code(tmp_path: Path, attempts: list[str]):
    folder = with_own_code(tmp_path, "llama")
    path = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own_code.Own", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    with pytest.raises(ValueError, match=r"no tokenizer can be read from .* model\.tokenizer=FOLDER_OR_HUB_NAME"):
        opened(folder)
    assert attempts == []
    assert not (folder / "mark").exists()


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: subprocess.run(["true"], check=True),
        lambda: os.system("true"),
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: os.execv("/bin/true", ["true"]),
        lambda: os.fork(),
        lambda: input(),
    ],
)
def test_nothing_started_refuses_attempts_within_the_block(attempt):
    with nothing_started(), pytest.raises(RefusedError, match="opening a model was about to"):
        attempt()


def test_other_threads_and_later_code_may_start_processes():
    ended: list[int] = []

    def start() -> None:
        ended.append(subprocess.run(["true"], check=False).returncode)

    with nothing_started():
        other = threading.Thread(target=start)
        other.start()
        other.join()
    start()
    assert ended == [0, 0]

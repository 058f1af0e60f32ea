"""One clear answer at once, whatever the hub does; each in a process of its own, as the libraries read the
hub's address when they are imported."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fsae.language_models.hub import RepoKind, is_hub_name, local_model_folder, require_repo
from fsae.language_models.packaged import packaged_folder
from fsae.language_models.settings import Package
from tests.language_models.fake_hub import COMMIT, fake_hub

QUESTIONS = """
import json, sys, time
time.sleep = lambda seconds: sys.exit(f"waits {seconds} s")
from fsae.language_models.hub import RepoKind, is_offline, require_repo
answers = []
for repo, revision, kind in json.loads(sys.argv[1]):
    try:
        require_repo(repo, revision=revision, kind=RepoKind[kind])
        answers.append(None)
    except ValueError as error:
        answers.append(str(error))
print(json.dumps([is_offline(), answers]))
"""

OPEN_GPT2 = """
import sys, time
time.sleep = lambda seconds: sys.exit(f"waits {seconds} s")
from fsae.language_models.settings import ModelSettings
from fsae.language_models.shape import shape_of
settings = ModelSettings(path="gpt2")
print(shape_of(settings).num_layers)
from fsae.language_models.transformer_lens import open_language_model
model = open_language_model(settings)
import torch
print(list(model.logits(torch.zeros(1, 3, dtype=torch.long)).shape))
import datasets.config
from fsae.language_models.hub import is_offline
print(is_offline(), datasets.config.HF_HUB_OFFLINE)
"""

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}


def run(code: str, *arguments: str, home: Path, endpoint: str, **environment: str) -> tuple[str, str]:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**ENVIRONMENT, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, **environment},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return result.stdout, result.stderr


def ask(home: Path, endpoint: str, *questions: tuple[str, str | None, str], **environment: str):
    output, errors = run(QUESTIONS, json.dumps(questions), home=home, endpoint=endpoint, **environment)
    assert output, errors
    offline, answers = json.loads(output)
    return answers, offline


@pytest.fixture
def closed_port() -> str:
    """An address that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent_hub():
    """An address that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def cached_gpt2(tmp_path) -> Path:
    """A cache of Hugging Face's libraries with a small random model called gpt2."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    repo = tmp_path / "hub" / "models--gpt2"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    sizes: dict[str, Any] = {"n_layer": 3, "n_embd": 16, "n_head": 2, "vocab_size": 257, "n_positions": 32}
    with torch.random.fork_rng(devices=[]):
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(snapshot)
    AutoTokenizer.from_pretrained(packaged_folder(Package.tiny)).save_pretrained(snapshot)
    return tmp_path


def test_require_repo_reports_the_hubs_refusals(tmp_path):
    questions = {
        ("owner/open", None, "model"): None,
        ("owner/open", None, "dataset"): None,
        ("owner/open", "no-such-branch", "model"): "model.path: owner/open has no revision 'no-such-branch'",
        ("owner/open", "no-such-branch", "dataset"): "dataset.path: owner/open has no revision 'no-such-branch'",
        ("owner/gated", None, "model"): "model.path: owner/gated is gated; accept its terms at {hub}/owner/gated and",
        ("owner/gated", None, "dataset"): "dataset.path: owner/gated is gated; accept its terms at {hub}/datasets/",
        ("owner/missing", None, "model"): "model.path: {hub} has no model 'owner/missing'; check the spelling",
        ("owner/missing", None, "dataset"): "dataset.path: {hub} has no dataset 'owner/missing'; check the spelling",
        ("owner/no-model", None, "model"): "model.path: owner/no-model holds no config.json",
    }
    with fake_hub() as hub:
        answers, offline = ask(tmp_path, hub, *questions)
    # The libraries stay online if the hub answers.
    assert not offline
    for question, expected, answer in zip(questions, questions.values(), answers, strict=True):
        if expected is None:
            assert answer is None, question
        else:
            assert answer.startswith(expected.format(hub=hub)), question
            assert "\n" not in answer
            assert ("HF_TOKEN" in answer) == ("gated" in answer or "missing" in answer)


def test_a_hub_with_server_errors_counts_as_unreachable(tmp_path):
    with fake_hub() as hub:
        (answer,), offline = ask(tmp_path, hub, ("owner/broken", None, "model"))
    assert "cannot be asked (HfHubHTTPError: Server error '503" in answer
    assert not offline


def test_a_hub_that_failed_once_is_asked_again(tmp_path):
    """Jobs of one sweep may share a process, so one job's failed request must not affect the next job."""
    with fake_hub() as hub:
        answers, offline = ask(
            tmp_path,
            hub,
            ("owner/broken", None, "model"),
            ("owner/open", None, "model"),
            ("owner/open", None, "dataset"),
        )
    assert "cannot be asked" in answers[0]
    assert answers[1:] == [None, None]
    assert not offline


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_missing_network_is_reported_at_once(tmp_path, closed_port, kind):
    (answer,), offline = ask(tmp_path, closed_port, ("gpt2", None, kind))
    assert answer.startswith(f"{kind}.path: gpt2 is not ")
    assert f"{closed_port} cannot be asked" in answer
    assert "check the network, the proxy or HF_ENDPOINT" in answer
    assert {"model": "model=smollm2_135m_instruct_q4_1", "dataset": "dataset=python_source"}[kind] in answer
    assert not offline


def test_require_repo_gives_up_on_a_silent_hub(tmp_path, silent_hub):
    (answer,), _ = ask(tmp_path, silent_hub, ("gpt2", None, "model"))
    assert "cannot be asked" in answer


def test_the_error_names_the_offline_flag(tmp_path, closed_port):
    (answer,), _ = ask(tmp_path, closed_port, ("gpt2", None, "model"), HF_HUB_OFFLINE="1")
    assert "cannot be asked (HF_HUB_OFFLINE is set); unset it" in answer


def test_a_cached_model_opens_without_a_network(cached_gpt2, closed_port):
    output, errors = run(OPEN_GPT2, home=cached_gpt2, endpoint=closed_port)
    # The model is open, and later requests are not kept offline.
    assert output.splitlines() == ["3", "[1, 3, 257]", "False False"], errors


def test_a_partly_cached_model_fails_at_once(cached_gpt2, closed_port):
    snapshot = next((cached_gpt2 / "hub" / "models--gpt2" / "snapshots").iterdir())
    (snapshot / "model.safetensors").unlink()
    output, errors = run(OPEN_GPT2, home=cached_gpt2, endpoint=closed_port)
    assert output.splitlines() == ["3"]
    assert "ValueError: model.path: gpt2 could not be opened" in errors


@pytest.mark.parametrize("setting", ["layout.model.path", "model.tokenizer"])
def test_the_setting_that_a_copy_would_have_is_named(monkeypatch, setting):
    monkeypatch.setattr("fsae.language_models.hub.is_offline", lambda: True)
    with pytest.raises(ValueError, match=rf"^{setting}: nobody/it is .* or use a copy \({setting}=/folder\)$"):
        require_repo("nobody/it", revision=None, kind=RepoKind.model, setting=setting)


def test_a_folder_takes_precedence_over_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_model_folder("gpt2") is None
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text("{}")
    assert local_model_folder("gpt2") == Path("gpt2")


@pytest.mark.parametrize("name", ["gpt2", "google/gemma-2b", "EleutherAI/pythia-70m", "a_b/c.d-e"])
def test_is_hub_name_accepts_repository_names(name):
    assert is_hub_name(name)


@pytest.mark.parametrize("path", ["/models/gpt2", "./gpt2", "../gpt2", "~/gpt2", "a/b/c", "", "gpt2/", "data/*.json"])
def test_is_hub_name_refuses_paths(path):
    assert not is_hub_name(path)

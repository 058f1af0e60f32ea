"""`explain`: the latents of a run on a real language model, with a model on loopback that explains."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fsae
from fsae.analysis.latent_page_data import explanations_of
from fsae.commands.latents import main
from fsae.latents.explanations import Cost, Explained
from fsae.outputs.explanations import explanations_folder, read_explanations
from fsae.outputs.latent_store import META, LatentStore
from fsae.surface.explanations import explain
from tests.latents.chat_server import ChatServer
from tests.processes import finished

D_SAE = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    words = ["debug=tiny", "arch=topk", f"arch.d_sae={D_SAE}", "arch.k=4", "trainer.samples=4096", "site.layer=2"]
    words += ["source.tokens=4096", "source.shard_tokens=4096", "eval=[vectors,latents]", "eval.latents.tokens=20000"]
    done = finished(*words, "eval.latents.control=0", "name=explained", outputs=outputs)
    assert done.returncode == 0, done.stdout
    return next((outputs / "runs").glob("explained-*"))


@pytest.fixture
def no_explanations(run: Path):
    for path in explanations_folder(run / "latents").glob("*.jsonl"):
        path.unlink()


def guessing(body: dict[str, Any]) -> str:
    """A model that explains by the number of its question's characters, and judges by chance."""
    question = body["messages"][-1]["content"]
    if not question.startswith("Description: "):
        return f"Explanation: the number {len(question)}"
    random = np.random.default_rng(len(question))
    return "\n".join(f"{number}: {random.choice(['yes', 'no'])}" for number in range(1, 6))


@pytest.mark.usefixtures("no_explanations")
def test_latents_of_a_run_are_explained(run: Path):
    lines: list[str] = []
    with ChatServer(guessing) as server:
        explained = explain(run, server.url, "small", latents=4, write=lines.append)
    assert isinstance(explained, Explained)
    assert [line.splitlines()[0] for line in lines] == [
        lines[0],
        "4 of 4 latents explained; balanced accuracy, 0.5 by chance:",
    ]
    assert lines[0].startswith("4 latents to explain: at most ")
    store = LatentStore(run / "latents")
    assert read_explanations(store.folder, store.meta.weights) == {each.latent: each for each in explained.explanations}


@pytest.mark.usefixtures("no_explanations")
def test_the_latent_is_off_in_negatives_and_on_in_positives(run: Path):
    """The rows are read again, without the store's codes and in one pass."""
    with ChatServer(guessing) as server:
        explained = explain(run, server.url, "small", latents=6, write=logging.debug)
    assert isinstance(explained, Explained)
    dictionary, store = fsae.load(run), LatentStore(run / "latents")
    model, site = dictionary.language_model, dictionary.site
    assert model is not None
    assert site is not None
    kinds = set()
    for each in explained.explanations:
        for example in each.judged:
            row = torch.from_numpy(np.asarray(store.tokens[example["context"]], np.int64))
            codes = dictionary.encode(model.model.activations(row[None], [site])[site][0])[:, each.latent]
            on = bool(codes[example["position"]] != 0)
            kinds.add(example["kind"])
            assert on == (example["kind"] not in ("neighbour", "random")), example
    assert kinds == {"top", "sample", "neighbour", "random", "right", "wrong"}


@pytest.mark.usefixtures("no_explanations")
def test_a_dry_run_asks_nothing(run: Path):
    lines: list[str] = []
    with ChatServer(guessing) as server:
        cost = explain(run, server.url, "small", latents=3, dry_run=True, write=lines.append)
        assert server.bodies == []
    assert isinstance(cost, Cost)
    assert lines == [str(cost)]
    assert cost.requests > 3


@pytest.mark.usefixtures("no_explanations")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_continues_without_paying_twice(run: Path, number: int):
    slow = {"seconds": 0.05}

    def answer(body: dict[str, Any]) -> str:
        time.sleep(slow["seconds"])
        return guessing(body)

    code = "import sys; from fsae.surface.explanations import explain as do; do(*sys.argv[1:], 'small', latents=5)"
    answers = explanations_folder(run / "latents") / "answers.jsonl"
    with ChatServer(answer) as server:
        process = subprocess.Popen([sys.executable, "-c", code, str(run), server.url], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not answers.exists() or len(answers.read_text().splitlines()) < 20:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) != 0
        time.sleep(0.2)
        kept = len({json.loads(line)["question"] for line in answers.read_text().splitlines() if line.endswith("}")})
        paid = len(server.bodies)
        # Those under way were answered in vain, as many as there are at once.
        assert kept <= paid <= kept + 4
        slow["seconds"] = 0.0
        explained = explain(run, server.url, "small", latents=5, write=logging.debug)
        assert isinstance(explained, Explained)
        questions = {json.dumps(body, sort_keys=True) for body in server.bodies}
        assert len(server.bodies) - paid == len(questions) - kept


def test_a_run_without_latents_is_refused(run: Path, tmp_path: Path):
    shutil.copytree(run / "sae", tmp_path / "run" / "sae")
    shutil.copy(run / "config.yaml", tmp_path / "run")
    shutil.copy(run / "status.json", tmp_path / "run")
    with pytest.raises(ValueError, match=r"no latent store; make it with python -m fsae\.latents RUN"):
        explain(tmp_path / "run", "http://localhost:1", "small")


def test_latents_of_another_dictionary_are_refused(run: Path):
    meta = run / "latents" / META
    content = meta.read_text()
    meta.write_text(json.dumps(json.loads(content) | {"weights": "0" * 16}))
    try:
        with ChatServer(guessing) as server:
            with pytest.raises(ValueError, match=r"is of another dictionary than the one in .*; make it again"):
                explain(run, server.url, "small", latents=2, write=logging.debug)
            assert server.bodies == []
    finally:
        meta.write_text(content)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"latents": 0}, "latents is 0; it must be at least 1"),
        ({"at_once": 0}, "at_once is 0; it must be at least 1"),
        ({"timeout": 0.0}, "timeout is 0; it must be above 0"),
        ({"shown": 1}, "shown is 1; it must be at least 2"),
        ({"prompts": "/none.jinja"}, r"/none\.jinja cannot be read as a template of prompts"),
        ({"latents": [D_SAE]}, f"latent {D_SAE}: the dictionary has the latents 0 to {D_SAE - 1}"),
        ({"url": "localhost"}, "is no address of a server"),
    ],
)
def test_bad_input_is_refused(given: dict[str, Any], message: str, run: Path):
    arguments: dict[str, Any] = {"url": "http://localhost:1", "model": "small"} | given
    with pytest.raises(ValueError, match=message):
        explain(run, **arguments)


@pytest.mark.usefixtures("no_explanations")
def test_the_command_explains_latents_and_puts_the_explanations_on_the_pages(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    before = {path.name for path in (run / "latents").glob("pages-*")}
    given = ["--explain-latents", "3", "--explain-timeout", "30"]
    with ChatServer(guessing) as server:
        assert main([str(run), "--explain", server.url, "--model", "small", *given, "--dry-run"]) == 0
        assert server.bodies == []
        assert main([str(run), "--explain", server.url, "--model", "small", *given]) == 0
    out = capsys.readouterr().out
    assert "3 of 3 latents explained" in out
    assert f"latents:     {run / 'latents' / 'index.html'}" in out
    store = LatentStore(run / "latents")
    found = explanations_of(store)
    assert len(found) == 3
    assert all((each.explanation or "").startswith("the number ") and each.detection for each in found.values())
    assert {path.name for path in (run / "latents").glob("pages-*")} != before
    assert main([str(run), "--explain", server.url]) == 2
    assert "--explain URL needs --model NAME" in capsys.readouterr().err
    assert main([str(run), "--explain", server.url, "--model", "small", *given[:1], "9"]) == 2
    assert "fsae.latents: " in capsys.readouterr().err

"""Explanations by a real language model on a real server, from a run on a real language model.

The model has 135 million parameters: it follows the form of the answers and explains little, as the control shows.
"""

from pathlib import Path
from typing import Any

import pytest

from fsae.latents.explanations import Explained
from fsae.outputs.explanations import explanations_folder, read_explanations
from fsae.outputs.latent_store import LatentStore
from fsae.surface.explanations import explain
from tests.explain.conftest import ModelServer
from tests.processes import finished

SIZES: dict[str, Any] = {"shown": 4, "scored": 3, "per_request": 3, "answer_tokens": 30, "width": 24}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    words = ["debug=tiny", "arch=topk", "arch.d_sae=40", "arch.k=4", "trainer.samples=4096", "site.layer=2"]
    words += ["source.tokens=4096", "source.shard_tokens=4096", "eval=[vectors,latents]", "eval.latents.tokens=20000"]
    done = finished(*words, "eval.latents.control=0", "name=explained", outputs=tmp_path)
    assert done.returncode == 0, done.stdout
    return next((tmp_path / "runs").glob("explained-*"))


def test_a_small_model_explains_and_judges_latents(run: Path, model_server: ModelServer):
    lines: list[str] = []
    explained = explain(run, model_server.url, model_server.model, latents=2, **SIZES, write=lines.append)
    assert isinstance(explained, Explained)
    assert len(explained.explanations) == 2
    # Per latent an explanation, and for it and the control 2 requests with 3 of the 6 examples of each test.
    assert lines[0].startswith(f"2 latents to explain: at most {2 * (1 + 2 * 2 * 2)} requests")
    assert explained.requests == 18
    assert explained.prompt_tokens > 18 * 100
    assert 18 < explained.answer_tokens <= 18 * 30
    assert explained.numbers["unreadable"] is not None
    assert explained.numbers["unreadable"] < 0.5
    for each in explained.explanations:
        assert each.explanation
        assert each.detection is not None
        assert each.fuzzing is not None
        assert each.control_detection is not None
    means = [explained.numbers[name] for name in ("detection", "fuzzing", "control_detection", "control_fuzzing")]
    assert all(mean is not None and 0 <= mean <= 1 for mean in means)

    with pytest.raises(ValueError, match=r"answered 400 .*another.*; check the model's name \(another\)"):
        explain(run, model_server.url, "another", latents=1, **SIZES)

    # A finished latent costs nothing, even if the server is gone; a new one needs it.
    model_server.stop()
    again = explain(run, model_server.url, model_server.model, latents=2, **SIZES)
    assert isinstance(again, Explained)
    assert again.explanations == explained.explanations
    with pytest.raises(ValueError, match=r"cannot be reached .*2 of 3 latents are finished; all answers are kept"):
        explain(run, model_server.url, model_server.model, latents=3, **SIZES)
    store = LatentStore(run / "latents")
    assert len(read_explanations(store.folder, store.meta.weights)) == 2
    assert len((explanations_folder(store.folder) / "answers.jsonl").read_text().splitlines()) <= 18

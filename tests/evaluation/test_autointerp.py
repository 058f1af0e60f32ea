"""`autointerp`: its numbers by hand, with planted judges, and in a run's folder."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fsae.analysis import latent_pages
from fsae.analysis.latent_pages import write_latent_pages
from fsae.autoencoders.standard import StandardSettings
from fsae.configuration.accept import accept
from fsae.evaluation.autointerp import Autointerp, numbers_of
from fsae.evaluation.suite import chosen
from fsae.latents.endpoint import Endpoint
from fsae.latents.excerpts import ExcerptSizes, positives_of
from fsae.latents.explanations import Explainer
from fsae.latents.prompts import Prompts
from fsae.latents.scoring import scores_of
from fsae.latents.selection import SelectionSizes, selected_positives
from fsae.outputs.explanations import Explanation, Scores, read_explanations
from fsae.outputs.latent_store import LatentStore
from fsae.outputs.results import read_results
from fsae.runs.pack import run_pack
from tests.composition import composed
from tests.evaluation.downstream.texts import D_IN, Text, subject_on
from tests.latents.chat_server import ChatServer
from tests.latents.word_store import LATENTS, codes_of, is_selection, seeing, write_word_store
from tests.processes import begun, ended, finished

ALIVE = list(range(LATENTS - 1))
# One in so many words is a latent's own.
WORDS = 400
SIZES = ExcerptSizes(shown=8, scored=10, width=16)
SHARED: dict[str, Any] = {"explanation": "a", "model": "m", "prompts": "p", "settings": "s", "weights": "w"}


def of_list(right: int) -> Scores:
    """Scores of a list of which `right` are right: first the ten negatives, then the positives."""
    truth = [False] * 10 + [True] * 4
    answers = [int(each) if number < right else int(not each) for number, each in enumerate(truth)]
    return scores_of([*zip(truth, answers, strict=True)])


def explanation(latent: int, own: int, control: int, detection: tuple[int, int], floor: tuple[int, int]) -> Explanation:
    """An explanation by the number of right answers: of 14, and of 10 positives and 10 negatives."""

    def detected(right: tuple[int, int]) -> Scores:
        positives, negatives = ([1] * each + [0] * (10 - each) for each in right)
        judged = [(True, each) for each in positives] + [(False, 1 - each) for each in negatives]
        return scores_of(judged)

    examples = [{"test": "selection", "kind": kind} for kind in ["top"] * 4 + ["random"] * 9 + ["firing"]]
    return Explanation(
        latent=latent, selection=of_list(own), control_selection=of_list(control),
        detection=detected(detection), control_detection=detected(floor), judged=examples, **SHARED,
    )  # fmt: skip


def test_numbers_are_those_of_their_definitions():
    numbers = numbers_of(
        [
            explanation(0, 14, 10, (9, 10), (5, 6)),
            explanation(1, 12, 10, (7, 8), (4, 5)),
            explanation(2, 12, 9, (8, 8), (5, 5)),
        ]
    )
    assert numbers["autointerp_saebench_raw"] == pytest.approx((14 + 12 + 12) / 42)
    assert numbers["autointerp_saebench_raw_shuffled"] == pytest.approx((10 + 10 + 9) / 42)
    assert numbers["autointerp_saebench"] == pytest.approx((38 - 29) / (42 - 29))
    # Without one latent after the other: 5 / 9, 7 / 9 and 6 / 8.
    without = [(24 - 19) / (28 - 19), (26 - 19) / (28 - 19), (26 - 20) / (28 - 20)]
    error = np.sqrt(2 / 3 * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert numbers["autointerp_saebench_noise"] == pytest.approx(error)
    raw, floor = (0.95 + 0.75 + 0.8) / 3, (0.55 + 0.45 + 0.5) / 3
    assert numbers["autointerp_detection_raw"] == pytest.approx(raw)
    assert numbers["autointerp_detection"] == pytest.approx((raw - floor) / (1 - floor))
    assert np.isnan(numbers["autointerp_fuzzing"])
    assert numbers["autointerp_firing"] == pytest.approx(1 / 10)
    assert (numbers["autointerp_latents"], numbers["autointerp_unreadable"]) == (3, 0)
    assert numbers.keys() == Autointerp.meanings.keys()


def judged_by(judge: Callable[[dict[str, Any]], str], folder: Path) -> dict[str, float]:
    """The numbers of a dictionary whose latents are words, by a judge."""
    with ChatServer(judge) as server:
        explainer = Explainer(
            write_word_store(folder / "latents", words=WORDS),
            Endpoint(server.url, "small"),
            Prompts(),
            SIZES,
            selection=SelectionSizes(),
        )
        return numbers_of(explainer.explain(ALIVE, lambda: codes_of).explanations)


def test_a_judge_that_knows_the_truth_is_at_1(tmp_path: Path):
    store = write_word_store(tmp_path / "truth", words=WORDS)
    positives = {
        f"w{latent}": [
            "".join(store.strings[token] for token in each.tokens)
            for each in selected_positives(store, latent, positives_of(store, latent, SIZES), SelectionSizes(), 0)
        ]
        for latent in ALIVE
    }

    def answer(body: dict[str, Any]) -> str:
        if not is_selection(body):
            return seeing(body)
        description, *lines = body["messages"][-1]["content"].splitlines()
        own = positives[description.split()[-1]]
        fitting = [str(number) for number, line in enumerate(lines, 1) if line.split('"')[1] in own]
        return ", ".join(fitting) or "none"

    numbers = judged_by(answer, tmp_path)
    for form in ("saebench", "detection", "fuzzing"):
        assert numbers[f"autointerp_{form}"] == numbers[f"autointerp_{form}_raw"] == 1
    assert numbers["autointerp_saebench_raw_shuffled"] == pytest.approx(10 / 14)


def test_a_judge_that_sees_the_word_is_wrong_where_random_excerpts_have_it(tmp_path: Path):
    numbers = judged_by(seeing, tmp_path)
    assert numbers["autointerp_firing"] > 0
    assert numbers["autointerp_saebench_raw"] == pytest.approx(1 - numbers["autointerp_firing"] * 10 / 14)
    assert 0.6 < numbers["autointerp_saebench"] < 1


def test_a_judge_that_names_none_is_at_0_though_10_of_14_are_right(tmp_path: Path):
    def answer(body: dict[str, Any]) -> str:
        return "none" if is_selection(body) else seeing(body)

    numbers = judged_by(answer, tmp_path)
    assert numbers["autointerp_saebench_raw"] == pytest.approx(10 / 14)
    assert numbers["autointerp_saebench"] == 0


def test_a_judge_that_flips_coins_is_at_0_within_the_noise(tmp_path: Path):
    def answer(body: dict[str, Any]) -> str:
        question = body["messages"][-1]["content"]
        if not question.startswith("Description: "):
            return seeing(body)
        flip = random.Random(question)
        if is_selection(body):
            return ", ".join(str(number) for number in range(1, 15) if flip.random() < 0.5) or "none"
        return "\n".join(f"{number}: {flip.choice(['yes', 'no'])}" for number in range(1, 6))

    numbers = judged_by(answer, tmp_path)
    for form in ("saebench", "detection", "fuzzing"):
        assert abs(numbers[f"autointerp_{form}"]) < max(0.2, 3 * numbers[f"autointerp_{form}_noise"])


@pytest.mark.parametrize("given", [{}, {"url": "http://127.0.0.1:1"}, {"model": "small"}])
def test_an_evaluation_without_a_judge_is_refused(given: dict[str, Any]):
    with pytest.raises(ValueError, match=r"eval\.autointerp has no judge; set eval\.autointerp\.url .* and .*\.model"):
        Autointerp(**given)


def test_a_run_without_a_language_model_is_refused():
    with pytest.raises(ValueError, match=r"eval\.autointerp cannot be measured: the source has no language model"):
        chosen({"autointerp": Autointerp(url="http://x", model="m")}, frozenset(), {"autointerp"}, trained=True)


def guessing(body: dict[str, Any]) -> str:
    """An explanation by the length of the question, and judgements by chance."""
    question = body["messages"][-1]["content"]
    if not question.startswith("Description: "):
        return f"Explanation: the number {len(question)}"
    flip = random.Random(question)
    if is_selection(body):
        return ", ".join(str(number) for number in range(1, 15) if flip.random() < 0.3) or "none"
    return "\n".join(f"{number}: {flip.choice(['yes', 'no'])}" for number in range(1, 6))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a latent store."""
    outputs = tmp_path_factory.mktemp("outputs")
    words = ["debug=tiny", "arch=topk", "arch.d_sae=40", "arch.k=4", "trainer.samples=4096", "site.layer=2"]
    words += ["source.tokens=4096", "source.shard_tokens=4096", "eval=[vectors]", "name=judged"]
    done = finished(*words, outputs=outputs)
    assert done.returncode == 0, done.stdout
    return next((outputs / "runs").glob("judged-*"))


def evaluated(run: Path, evaluations: str, url: str, *more: str):
    settings = [f"eval.autointerp.url={url}", "eval.autointerp.model=small", "eval.autointerp.latents=3"]
    command = ["fsae.evaluate", str(run), f"eval=[{evaluations}]", *settings, "eval.autointerp.at_once=1", *more]
    return ended(begun(*command, outputs=run.parent.parent))


def test_a_run_without_a_latent_store_of_its_own_is_refused(tmp_path: Path):
    subject = subject_on(Text(), [StandardSettings(d_sae=12).build(D_IN, torch.Generator()).eval()])
    subject.runs = [replace(each, folder=tmp_path) for each in subject.runs]
    evaluation = Autointerp(url="http://127.0.0.1:1", model="small")
    with pytest.raises(ValueError, match=r"has no latent store; make one in the same command, as in eval=\[latents,"):
        evaluation.measure(subject)
    write_word_store(tmp_path / "latents")
    with pytest.raises(ValueError, match=r"latents is of another dictionary than the run's; make it again in the same"):
        evaluation.measure(subject)


def test_a_judge_that_goes_away_stops_no_other_evaluation_and_nothing_is_asked_twice(run: Path):
    left = [15]

    def failing(body: dict[str, Any]) -> Any:
        left[0] -= 1
        return guessing(body) if left[0] >= 0 else (404, {}, "gone")

    sizes = ["eval.latents.tokens=20000", "eval.latents.control=0", "eval.latents.triggers=0"]
    with ChatServer(failing) as server:
        done = evaluated(run, "latents,autointerp", server.url, *sizes)
    assert done.returncode != 0
    assert "3 latents to explain: at most " in done.stdout
    assert "gone" in done.stdout
    assert "the same command continues" in done.stdout
    results = read_results(run / "results.json")
    assert "eval/token_purity" in results
    assert "eval/autointerp_saebench" not in results

    with ChatServer(guessing) as server:
        done = evaluated(run, "autointerp", server.url)
        assert done.returncode == 0, done.stdout
        # A first question, then an explanation, two lists, and up to 16 other questions per latent.
        assert len(server.bodies) - 1 <= 3 * 19 - 14
        asked = len((run / "latents.explanations" / "answers.jsonl").read_text().splitlines())
        assert len(server.bodies) - 1 == asked - 14
    results = read_results(run / "results.json")
    assert results["eval/autointerp_latents"] == 3
    assert -1 < results["eval/autointerp_detection"] < 1
    (latents,) = json.loads((run / "autointerp.json").read_text())
    assert [set(each) >= {"latent", "explanation", "saebench", "detection_shuffled"} for each in latents] == [True] * 3


def test_a_run_that_makes_its_latent_store_writes_the_pages_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The pages are written after the latents were explained, and show the explanations."""
    written = []

    def counting(store: LatentStore, folder: Path, *rest: Any) -> Path:
        written.append(len(read_explanations(folder, store.meta.weights)))
        return write_latent_pages(store, folder, *rest)

    monkeypatch.setattr(latent_pages, "write_latent_pages", counting)
    with ChatServer(guessing) as server:
        settings = ["debug=tiny", "arch=topk", "arch.d_sae=40", "arch.k=4", "trainer.samples=1024", "tracking=none"]
        settings += ["source.tokens=2048", "source.shard_tokens=2048", "eval=[vectors,latents,autointerp]"]
        settings += ["eval.latents.tokens=4000", "eval.latents.control=0", "eval.latents.triggers=0"]
        settings += [f"eval.autointerp.url={server.url}", "eval.autointerp.model=small", "eval.autointerp.latents=2"]
        config = composed(*settings, f"paths.outputs={tmp_path}")
        (outcome,) = run_pack([accept(config, tmp_path / "run", settings)])
    assert outcome.error is None, outcome.error
    assert written == [2]

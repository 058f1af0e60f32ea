"""Explanations and their scores: a model that sees the pattern, one that does not, and failures on the way."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from fsae.latents.endpoint import Endpoint, EndpointError, RequestSettings
from fsae.latents.excerpts import ExcerptSizes
from fsae.latents.explanations import Explained, Explainer, explained_numbers
from fsae.latents.prompts import TEMPLATE, Prompts
from fsae.latents.selection import SelectionSizes
from fsae.outputs.explanations import Explanation, Scores, read_explanations, read_summary
from fsae.outputs.latent_store import LatentStore
from tests.analysis.latent_stores import write_samples_store
from tests.latents.chat_server import ChatServer
from tests.latents.word_store import LATENTS, codes_of, is_selection, seeing, write_word_store

ALIVE = list(range(LATENTS - 1))
SIZES = ExcerptSizes(shown=8, scored=10, width=16)


@pytest.fixture
def store(tmp_path: Path) -> LatentStore:
    return write_word_store(tmp_path / "latents")


def explainer(store: LatentStore, server: ChatServer | str, **settings: Any) -> Explainer:
    url = server if isinstance(server, str) else server.url
    given = {"prompts": Prompts(), "sizes": SIZES} | settings
    return Explainer(store, Endpoint(url, given.pop("model", "small"), wait=0.001), **given)


def explained(store: LatentStore, server: ChatServer | str, latents: list[int] = ALIVE, **settings: Any) -> Explained:
    return explainer(store, server, **settings).explain(latents, lambda: codes_of)


def test_a_model_that_sees_the_pattern_beats_the_control(store: LatentStore):
    with ChatServer(seeing) as server:
        found = explained(store, server)
    assert [each.explanation for each in found.explanations] == [f"the word w{latent}" for latent in ALIVE]
    for each in found.explanations:
        for own, control in ((each.detection, each.control_detection), (each.fuzzing, each.control_fuzzing)):
            assert own == Scores(
                balanced_accuracy=1.0, precision=1.0, recall=1.0, f1=1.0, positives=10, negatives=10, unreadable=0,
                accuracy=1.0,
            )  # fmt: skip
            # The other word occurs in few of the positives and in some of the hard negatives.
            assert control is not None
            assert control.balanced_accuracy is not None
            assert control.balanced_accuracy < 0.7
    assert found.numbers["detection"] == found.numbers["fuzzing"] == 1
    above = found.numbers["detection_above_control"]
    assert above is not None
    assert above > 0.3
    assert found.numbers["unreadable"] == 0


def test_a_constant_model_is_at_chance_and_no_better_than_the_control(store: LatentStore):
    with ChatServer(lambda body: "\n".join(f"{number}: yes" for number in range(1, 6))) as server:
        numbers = explained(store, server).numbers
    for test in ("detection", "fuzzing"):
        assert numbers[test] == numbers[f"control_{test}"] == 0.5
        assert numbers[f"{test}_above_control"] == 0


def test_the_control_has_each_explanation_of_another_latent_once(store: LatentStore):
    with ChatServer(seeing) as server:
        found = explained(store, server).explanations
    assert sorted(each.control_of for each in found if each.control_of is not None) == ALIVE
    assert all(each.control_of != each.latent for each in found)


def test_a_single_latent_has_no_control(store: LatentStore):
    with ChatServer(seeing) as server:
        found = explained(store, server, [2])
        # One explanation, 20 examples of each test, 5 per request.
        assert len(server.bodies) == 1 + 2 * 4
    (only,) = found.explanations
    assert only.detection is not None
    assert (only.control_of, only.control_detection, only.control_fuzzing) == (None, None, None)
    assert found.numbers["control_detection"] is found.numbers["detection_above_control"] is None
    assert "control unknown" in str(found)


def test_shown_contexts_are_recorded_and_never_judged(store: LatentStore):
    with ChatServer(seeing) as server:
        found = explained(store, server).explanations
    for each in found:
        assert len(each.shown) == 8
        assert not set(each.shown) & {example["context"] for example in each.judged}
        kinds = [(example["test"], example["kind"]) for example in each.judged]
        assert kinds.count(("detection", "neighbour")) == kinds.count(("detection", "random")) == 5
        assert kinds.count(("fuzzing", "right")) == kinds.count(("fuzzing", "wrong")) == 10


def test_the_cost_is_that_of_what_follows(store: LatentStore):
    with ChatServer(seeing) as server:
        cost = explainer(store, server).cost(ALIVE)
        assert server.bodies == []
        found = explained(store, server)
        # Per latent an explanation, and 4 requests of each test for itself and for the control.
        assert cost.requests == found.requests == len(server.bodies) == 5 * (1 + 2 * 2 * 4)
        characters = sum(len(each["content"]) for body in server.bodies for each in body["messages"])
        assert cost.prompt_tokens == pytest.approx(characters / 3, rel=0.1)
        assert (found.prompt_tokens, found.answer_tokens) == (11 * found.requests, 3 * found.requests)
        assert "5 latents to explain: at most 85 requests, about" in str(cost)
        after = explainer(store, server).cost(ALIVE)
    assert (after.latents, after.finished, after.requests, after.prompt_tokens) == (0, 5, 0, 0)


def test_a_finished_latent_is_not_asked_for_again(store: LatentStore):
    with ChatServer(seeing) as server:
        first = explained(store, server)
        count = len(server.bodies)
        again = explained(store, server)
        assert len(server.bodies) == count
    assert again.explanations == first.explanations
    assert again.requests == 0


def test_more_latents_cost_what_they_add(store: LatentStore):
    with ChatServer(seeing) as server:
        explained(store, server, [0, 1, 2])
        before = len(server.bodies)
        found = explained(store, server, ALIVE)
        assert len(server.bodies) - before == 2 * (1 + 2 * 2 * 4)
    assert [each.latent for each in found.explanations] == ALIVE


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "large"},
        {"sizes": replace(SIZES, seed=1)},
        {"requests": RequestSettings(per_request=4)},
        {"prompts": "own"},
    ],
)
def test_other_settings_are_explained_again(changed: dict[str, Any], store: LatentStore, tmp_path: Path):
    own = tmp_path / "own.jinja"
    own.write_text(TEMPLATE.read_text().replace("pattern in text", "pattern in texts"))
    settings = {name: Prompts(own) if value == "own" else value for name, value in changed.items()}
    with ChatServer(seeing) as server:
        explained(store, server, [0, 1])
        before = len(server.bodies)
        explained(store, server, [0, 1], **settings)
        assert len(server.bodies) > before
    # The last one is read.
    assert len(read_explanations(store.folder, store.meta.weights)) == 2


def failing_after(count: int, failure: tuple[int, dict[str, str], str] | str) -> Callable[[dict[str, Any]], Any]:
    """Answers of a model that sees, until it has given `count` of them."""
    left = [count]

    def answer(body: dict[str, Any]) -> Any:
        left[0] -= 1
        return seeing(body) if left[0] >= 0 else failure

    return answer


@pytest.mark.parametrize("count", [0, 3, 5, 30, 84])
def test_a_failure_loses_nothing(count: int, store: LatentStore):
    one = RequestSettings(at_once=1)
    with ChatServer(failing_after(count, (404, {}, "gone"))) as server:
        with pytest.raises(EndpointError, match=r"gone.* of 5 latents are finished; all answers are kept in .*latents"):
            explained(store, server, requests=one)
        assert len(server.bodies) == count + 1
    with ChatServer(seeing) as server:
        found = explained(store, server, requests=one)
        assert len(server.bodies) == 85 - count
    assert found.numbers["detection"] == found.numbers["fuzzing"] == 1


def test_latents_are_finished_one_after_the_other(store: LatentStore):
    """After 5 explanations and 2 x 16 judgements two latents have all scores."""
    with (
        ChatServer(failing_after(5 + 2 * 16 + 3, (404, {}, ""))) as server,
        pytest.raises(EndpointError, match=r"\. 2 of"),
    ):
        explained(store, server, requests=RequestSettings(at_once=1))
    assert len(read_explanations(store.folder, store.meta.weights)) == 2


def test_a_model_that_judges_in_prose_is_given_up(store: LatentStore):
    def answer(body: dict[str, Any]) -> str:
        question = body["messages"][-1]["content"]
        return "I cannot know." if question.startswith("Description: ") else seeing(body)

    with ChatServer(answer) as server:
        with pytest.raises(EndpointError, match=r"none of the first 20 .* found 'I cannot know\.'; use a larger model"):
            explained(store, server)
        # Up to four more are under way.
        assert len(server.bodies) <= 5 + 20 + 4
    assert read_explanations(store.folder, store.meta.weights) == {}


def test_a_model_that_explains_nothing_is_given_up(store: LatentStore):
    with (
        ChatServer(lambda body: "") as server,
        pytest.raises(EndpointError, match=r"none of 5 answers .* has an explanation; .*--explain-tokens, now 300"),
    ):
        explained(store, server)


def test_unreadable_judgements_are_counted_and_left_out(store: LatentStore):
    """Every judgement of the first excerpt of a request is missing: one in five."""
    with ChatServer(lambda body: seeing(body).replace("1: ", "first: ")) as server:
        found = explained(store, server)
    assert found.numbers["unreadable"] == pytest.approx(0.2)
    assert found.numbers["detection"] == 1
    assert found.explanations[0].detection is not None
    assert found.explanations[0].detection.unreadable == 4
    assert "unreadable judgements: 20.0 %" in str(found)


def test_a_latent_without_an_explanation_has_no_scores(store: LatentStore):
    def answer(body: dict[str, Any]) -> str:
        found = seeing(body)
        return "" if found.endswith("the word w3") else found

    with ChatServer(answer) as server:
        found = explained(store, server)
    without = found.explanations[3]
    assert (without.explanation, without.detection, without.control_of) == (None, None, None)
    assert found.numbers["detection"] == 1
    assert "4 of 5 latents explained" in str(found)


def test_a_sample_of_latents_grows(store: LatentStore):
    chosen = [explainer(store, "http://localhost:1").chosen(count) for count in (1, 3, 5, 100)]
    assert set(chosen[0]) < set(chosen[1]) < set(chosen[2])
    # The dead one cannot be explained.
    assert chosen[2] == chosen[3] == ALIVE


def test_latents_may_be_named(store: LatentStore, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert explainer(store, "http://localhost:1").chosen([4, 1, 4, 5]) == [1, 4]
    assert "latent 5 has too few contexts" in caplog.text
    with pytest.raises(ValueError, match="latent 6: the dictionary has the latents 0 to 5"):
        explainer(store, "http://localhost:1").chosen([6])
    with pytest.raises(ValueError, match="no latent has two contexts to explain it"):
        explainer(store, "http://localhost:1").chosen([5])


def test_two_commands_at_once_are_refused(store: LatentStore):
    folder = explainer(store, "http://localhost:1").folder
    folder.mkdir()
    with FileLock(folder / "explain.lock"), pytest.raises(ValueError, match="another process writes explanations to"):
        explained(store, "http://localhost:1")


def test_a_store_without_text_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="a latent store without text"):
        explainer(write_samples_store(tmp_path / "latents"), "http://localhost:1")


def test_a_store_that_is_made_again_keeps_its_explanations(store: LatentStore):
    with ChatServer(seeing) as server:
        first = explained(store, server)
        again = explained(write_word_store(store.folder), server)
    assert again.explanations == first.explanations
    assert again.requests == 0
    other = write_word_store(store.folder, weights="f" * 16)
    assert read_explanations(other.folder, other.meta.weights) == {}


def test_the_means_are_kept(store: LatentStore):
    with ChatServer(seeing) as server:
        found = explained(store, server)
    summary = read_summary(store.folder)
    assert summary is not None
    assert {name: summary[name] for name in found.numbers} == found.numbers
    assert (summary["model"], summary["latents"], summary["prompts"]) == ("small", 5, Prompts().digest)
    json.dumps(summary, allow_nan=False)


def test_means_are_over_the_latents_that_have_a_number():
    def scores(accuracy: float | None) -> Scores:
        return Scores(
            balanced_accuracy=accuracy, precision=None, recall=None, f1=None, positives=3, negatives=3, unreadable=2
        )

    shared: dict[str, Any] = {"explanation": "a", "model": "m", "prompts": "p", "settings": "s", "weights": "w"}
    numbers = explained_numbers(
        [
            Explanation(latent=0, detection=scores(0.9), control_detection=scores(0.5), **shared),
            Explanation(latent=1, detection=scores(0.7), control_detection=scores(0.6), **shared),
            Explanation(latent=2, detection=scores(None), control_detection=scores(0.4), **shared),
        ]
    )
    assert numbers["detection"] == pytest.approx(0.8)
    # The standard deviation of 0.9 and 0.7 is 0.1 sqrt(2), and there are two.
    assert numbers["detection_error"] == pytest.approx(0.1)
    assert numbers["control_detection"] == pytest.approx(0.5)
    assert numbers["detection_above_control"] == pytest.approx((0.4 + 0.1) / 2)
    assert numbers["fuzzing"] is None
    assert numbers["unreadable"] == pytest.approx(2 / 8)


def test_the_selection_is_asked_with_both_explanations_and_paid_for_once(tmp_path: Path):
    """One in 400 words is a latent's own: one in 20 random excerpts has it by chance."""
    store = write_word_store(tmp_path / "latents", words=400)
    with ChatServer(seeing) as server:
        own = explainer(store, server, selection=SelectionSizes())
        cost = own.cost(ALIVE)
        found = own.explain(ALIVE, lambda: codes_of)
        assert len(server.bodies) == cost.requests
        assert sum(map(is_selection, server.bodies)) == 2 * len(ALIVE)
        assert explainer(store, server, selection=SelectionSizes()).cost(ALIVE).requests == 0
    for each in found.explanations:
        kinds = [example["kind"] for example in each.judged if example["test"] == "selection"]
        assert [kinds.count(kind) for kind in ("top", "sample")] == [2, 2]
        assert kinds.count("random") + kinds.count("firing") == 10
        assert each.selection is not None
        assert each.control_selection is not None
        # A judge that sees the word is wrong only in random excerpts that have it.
        assert each.selection.accuracy == pytest.approx(1 - kinds.count("firing") / 14)
        assert each.selection.accuracy is not None
        assert each.control_selection.accuracy is not None
        assert each.selection.accuracy > each.control_selection.accuracy

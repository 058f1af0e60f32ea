from pathlib import Path
from typing import Any

import pytest

from fsae.evaluation.downstream.concept_judge import Judge, Judged, rating_of
from tests.latents.chat_server import ChatServer


@pytest.mark.parametrize(
    ("answer", "rating"),
    [("2", 2), ("Rating: 1.", 1), ("First 0, then 2", 2), ("1.5", None), ("12", None), ("none", None), ("", None)],
)
def test_the_last_number_that_stands_alone_is_the_rating(answer: str, rating: int | None):
    assert rating_of(answer) == rating


def test_three_ratings_are_combined_by_their_harmonic_mean(tmp_path: Path):
    def answer(body: dict[str, Any]) -> str:
        question = body["messages"][0]["content"]
        if "unclear" in question:
            return "hard to say"
        # The concept has 1, the others 2; the text of a void has no concept.
        return ("0" if "void" in question else "1") if '"birds"' in question else "2"

    judged = [Judged("birds", "Once", text) for text in ("an owl", "void", "unclear")]
    with ChatServer(answer) as server:
        judge = Judge(server.url, "judge", tmp_path / "answers.jsonl")
        assert judge.ratings(judged) == [3 / (1 + 1 / 2 + 1 / 2), 0.0, None]
        # The first question checks the address; no answer is asked for twice.
        assert len(server.bodies) == 1 + 3 * len(judged)
        again = Judge(server.url, "judge", tmp_path / "answers.jsonl")
        assert again.ratings(judged) == judge.ratings(judged)
        assert len(server.bodies) == 2 + 3 * len(judged)


def test_a_server_that_is_no_model_is_refused_at_once(tmp_path: Path):
    with (
        ChatServer(lambda body: (404, {}, "no such page")) as server,
        pytest.raises(ValueError, match=r"answered 404"),
    ):
        Judge(server.url, "judge", tmp_path / "answers.jsonl")

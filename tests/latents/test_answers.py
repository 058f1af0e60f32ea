"""Answers that are kept: nothing is paid for twice, and nothing that has arrived is lost."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from fsae.latents.answers import Answers, append_line
from fsae.latents.endpoint import Endpoint, EndpointError
from tests.latents.chat_server import ChatServer


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def echo(body: dict[str, Any]) -> str:
    return f"re: {body['messages'][0]['content']}"


def asked(path: Path, server: ChatServer, *texts: str, model: str = "small", limit: int = 5) -> dict[str, str]:
    answers = Answers(path, Endpoint(server.url, model, wait=0.001), limit)
    return dict(answers.all([(text, question(text)) for text in texts], at_once=3))


def test_every_question_has_its_answer(tmp_path: Path):
    texts = [str(number) for number in range(20)]
    with ChatServer(echo) as server:
        assert asked(tmp_path / "answers.jsonl", server, *texts) == {text: f"re: {text}" for text in texts}
        assert len(server.bodies) == 20


def test_an_answer_is_paid_for_once(tmp_path: Path):
    with ChatServer(echo) as server:
        asked(tmp_path / "answers.jsonl", server, "a", "b")
        assert asked(tmp_path / "answers.jsonl", server, "a", "b", "c") == {"a": "re: a", "b": "re: b", "c": "re: c"}
        assert len(server.bodies) == 3


@pytest.mark.parametrize("changed", [{"model": "large"}, {"limit": 6}])
def test_another_model_or_limit_is_another_question(changed: dict[str, Any], tmp_path: Path):
    with ChatServer(echo) as server:
        asked(tmp_path / "answers.jsonl", server, "a")
        asked(tmp_path / "answers.jsonl", server, "a", **changed)
        assert len(server.bodies) == 2


def test_the_file_has_no_key_and_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSAE_EXPLAIN_KEY", "sk-secret-secret")
    with ChatServer(echo) as server:
        asked(tmp_path / "answers.jsonl", server, "a")
    assert [json.loads(line).keys() for line in (tmp_path / "answers.jsonl").open()] == [{"question", "answer"}]
    assert "secret" not in (tmp_path / "answers.jsonl").read_text()


def test_a_line_that_a_kill_cut_short_is_asked_again(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    with ChatServer(echo) as server:
        asked(path, server, "a", "b")
        lines = path.read_bytes()
        path.write_bytes(lines[:-4])
        assert asked(path, server, "a", "b") == {"a": "re: a", "b": "re: b"}
        assert len(server.bodies) == 3
        # Another command finds both.
        asked(path, server, "a", "b")
        assert len(server.bodies) == 3


def test_what_arrived_before_a_failure_is_kept(tmp_path: Path):
    arrived = threading.Event()

    def answer(body: dict[str, Any]) -> str | tuple[int, dict[str, str], str]:
        if body["messages"][0]["content"] == "bad":
            assert arrived.wait(5)
            return 404, {}, "gone"
        threading.Timer(0.2, arrived.set).start()
        return echo(body)

    with ChatServer(answer) as server, pytest.raises(EndpointError, match="gone"):
        asked(tmp_path / "answers.jsonl", server, "a", "bad")
    assert "re: a" in (tmp_path / "answers.jsonl").read_text()


def test_no_question_is_asked_after_a_failure(tmp_path: Path):
    with ChatServer(lambda body: (404, {}, "")) as server:
        with pytest.raises(EndpointError):
            asked(tmp_path / "answers.jsonl", server, *map(str, range(50)))
        # Three at once, each of which may have taken one more before the failure was seen.
        assert len(server.bodies) <= 6


def test_requests_are_sent_at_the_same_time(tmp_path: Path):
    together = threading.Barrier(3, timeout=60)

    def answer(body: dict[str, Any]) -> str:
        together.wait()
        return echo(body)

    with ChatServer(answer) as server:
        assert len(asked(tmp_path / "answers.jsonl", server, "a", "b", "c")) == 3


def test_a_line_is_ended_before_the_next_one(tmp_path: Path):
    path = tmp_path / "lines"
    path.write_text("first\ncut")
    append_line(path, "second")
    append_line(path, "third")
    assert path.read_text() == "first\ncut\nsecond\nthird\n"

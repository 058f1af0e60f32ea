"""The endpoint: what is sent, what is answered, and one clear message for everything else."""

import json
import logging
import socket
import threading
from typing import Any

import pytest

from fsae.latents.endpoint import Answer, Endpoint, EndpointError
from tests.latents.chat_server import ChatServer, completion

MESSAGES = [{"role": "user", "content": "Why?"}]
KEY = "sk-a-key-that-nobody-may-see"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FSAE_EXPLAIN_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(server: ChatServer, **settings: Any) -> Answer:
    endpoint = Endpoint(server.url, "small", wait=0.001, **settings)
    try:
        return endpoint.ask(MESSAGES, 50)
    finally:
        endpoint.close()


def failing_first(status: int, times: int, headers: dict[str, str] | None = None, text: str = ""):
    """Answers of a server that fails some times before it answers."""
    left = [times]

    def answer(body: dict[str, Any]) -> str | tuple[int, dict[str, str], str]:
        left[0] -= 1
        return (status, headers or {}, text) if left[0] >= 0 else "because"

    return answer


def test_a_question_is_sent_in_openai_s_format():
    with ChatServer(lambda body: "because") as server:
        assert ask(server) == Answer("because", 11, 3)
    assert server.bodies == [{"model": "small", "messages": MESSAGES, "max_tokens": 50, "temperature": 0}]
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("suffix", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/api/openai", "/api/openai/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
    ],
)
def test_an_address_may_be_short(suffix: str, path: str):
    with ChatServer(lambda body: "yes") as server:
        Endpoint(server.url + suffix, "small").ask(MESSAGES, 5)
    assert server.paths == [path]


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://[::1", "file:///etc"])
def test_something_else_than_an_address_is_refused(url: str):
    with pytest.raises(ValueError, match=r"is no address of a server; expected one such as http://127\.0\.0\.1"):
        Endpoint(url, "small")


@pytest.mark.parametrize("url", [f"http://user:{KEY}@127.0.0.1/v1", f"https://host/v1?api_key={KEY}"])
def test_a_key_in_an_address_is_refused_and_not_shown(url: str):
    with pytest.raises(ValueError, match=r"put the key into \$FSAE_EXPLAIN_KEY") as refused:
        Endpoint(url, "small")
    assert KEY not in str(refused.value)


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSAE_EXPLAIN_KEY", KEY)
    with ChatServer(lambda body: (401, {}, f"wrong key {KEY}")) as server:
        with pytest.raises(EndpointError, match=r"answered 401 .*; check the key in \$FSAE_EXPLAIN_KEY") as refused:
            ask(server)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(refused.value)


def test_openai_s_key_is_sent_to_no_other_host(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer(lambda body: (401, {}, "")) as server:
        with pytest.raises(EndpointError, match=r"put the key into \$FSAE_EXPLAIN_KEY"):
            ask(server)
        assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://models.example.org/v1", True),
        ("http://192.168.1.9:8000", True),
        ("https://models.example.org/v1", False),
        ("http://localhost:8000", False),
        ("http://127.0.0.1:8000", False),
        ("http://[::1]:8000", False),
    ],
)
def test_a_connection_without_encryption_is_warned_of(url: str, warned: bool, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        Endpoint(url, "small").close()
    assert ("is not encrypted" in caplog.text) == warned


def test_a_server_that_is_down_is_reported_at_once(caplog: pytest.LogCaptureFixture):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(EndpointError, match=rf"127\.0\.0\.1:{port}.* cannot be reached .*; start the server"):
        Endpoint(f"http://127.0.0.1:{port}", "small", wait=60).ask(MESSAGES, 5)
    # There was one attempt: each other one is announced.
    assert caplog.messages == []


def test_a_server_that_was_there_is_waited_for(caplog: pytest.LogCaptureFixture):
    with ChatServer(lambda body: "yes") as server:
        endpoint = Endpoint(server.url, "small", wait=0.001, attempts=3)
        endpoint.ask(MESSAGES, 5)
    with pytest.raises(EndpointError, match="cannot be reached"):
        endpoint.ask(MESSAGES, 5)
    waits = [message.rpartition("; ")[2] for message in caplog.messages]
    assert waits == ["attempt 2 of 3 in 0.001 s", "attempt 3 of 3 in 0.002 s"]


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_a_slow_server_is_given_up(seconds: float):
    """A server that never answers, and one whose bytes arrive one by one for 7,000 x 0.05 s = 350 s."""
    over = threading.Event()

    def answer(body: dict[str, Any]) -> str:
        if not seconds:
            over.wait()
        return "because" * 1000

    # Waiting for either answer would last longer than a test may.
    with (
        ChatServer(answer, seconds) as server,
        pytest.raises(EndpointError, match=r"no answer within 0\.3 s; allow more time \(--explain-timeout\)"),
    ):
        ask(server, timeout=0.3)
    over.set()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_server_is_asked_again(status: int):
    with ChatServer(failing_first(status, times=2)) as server:
        assert ask(server).text == "because"
        assert len(server.bodies) == 3


def test_a_server_decides_the_time_between_attempts(caplog: pytest.LogCaptureFixture):
    with ChatServer(failing_first(429, times=1, headers={"Retry-After": "1"})) as server:
        assert ask(server).text == "because"
    assert [message.rpartition(" in ")[2] for message in caplog.messages] == ["1 s"]


def test_a_server_that_stays_overloaded_is_given_up():
    with ChatServer(failing_first(503, times=99)) as server:
        with pytest.raises(EndpointError, match=r"answered 503; it did so 4 times; try again later"):
            ask(server, attempts=4)
        assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("status", "headers", "advice"),
    [
        (404, {}, r"check the address and the model's name \(small\)"),
        (400, {}, r"check the model's name \(small\), and whether the questions are too long"),
        (
            308,
            {"Location": "https://elsewhere.org/v1"},
            r"give the address that it leads to \(https://elsewhere.org/v1\)",
        ),
    ],
)
def test_a_refusal_is_reported_with_advice_and_not_repeated(status: int, headers: dict[str, str], advice: str):
    with ChatServer(failing_first(status, 99, headers, "no such thing")) as server:
        with pytest.raises(EndpointError, match=rf"answered {status} \(no such thing\); {advice}"):
            ask(server)
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "text",
    ["<html>Hello</html>", "", "[]", "{}", '{"choices": []}', '{"choices": [{"message": {}}]}', "null", "\x00\xff"],
)
def test_nonsense_is_reported(text: str):
    with (
        ChatServer(lambda body: (200, {}, text)) as server,
        pytest.raises(EndpointError, match=r"something else than a chat completion in OpenAI's format: .*; check the"),
    ):
        ask(server)


def test_an_answer_without_text_is_empty():
    with ChatServer(lambda body: (200, {}, json.dumps(completion(None)))) as server:
        assert ask(server).text == ""


def test_an_answer_without_counts_has_none():
    body = {"choices": completion("yes")["choices"], "usage": None}
    with ChatServer(lambda _: (200, {}, json.dumps(body))) as server:
        assert ask(server) == Answer("yes", 0, 0)


def test_a_model_that_refuses_names_of_limits_gets_others():
    """OpenAI's newer models take neither max_tokens nor a temperature of 0."""

    def answer(body: dict[str, Any]) -> str | tuple[int, dict[str, str], str]:
        if "max_tokens" in body:
            return 400, {}, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        if "temperature" in body:
            return 400, {}, "Unsupported value: 'temperature' does not support 0 with this model."
        return "because"

    with ChatServer(answer) as server:
        endpoint = Endpoint(server.url, "small")
        assert endpoint.ask(MESSAGES, 5).text == "because"
        assert endpoint.ask(MESSAGES, 5).text == "because"
        assert [sorted(body) for body in server.bodies[2:]] == [["max_completion_tokens", "messages", "model"]] * 2

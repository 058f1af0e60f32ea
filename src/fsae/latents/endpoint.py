"""A language model behind an HTTP endpoint that speaks OpenAI's protocol for chats."""

import ipaddress
import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from fsae.credentials import concealed
from fsae.errors import first_line
from fsae.ranges import COUNT, POSITIVE, Ranged, between

log = logging.getLogger(__name__)

KEY = "FSAE_EXPLAIN_KEY"
_OPENAI_KEY, _OPENAI = "OPENAI_API_KEY", "api.openai.com"
_PATH = "/chat/completions"
# An answer is a few kilobytes.
_MOST_BYTES = 2**24
# Statuses of a server that may answer later: it is overloaded, or it is started again.
_LATER = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_LONGEST_WAIT = 60.0
# What hosted models may refuse: the old name of the limit, and a temperature.
_NEW_LIMIT, _OLD_LIMIT, _TEMPERATURE = "max_completion_tokens", "max_tokens", "temperature"


@dataclass(frozen=True, kw_only=True)
class RequestSettings(Ranged):
    """Settings of the requests.

    Attributes:
        per_request: examples that are judged in one request.
        answer_tokens: the most tokens of an answer.
        at_once: requests at the same time; they decide no number.
        timeout: seconds for one answer.
    """

    per_request: int = field(default=5, metadata=between(least=1, most=100))
    answer_tokens: int = field(default=300, metadata=COUNT)
    at_once: int = field(default=4, metadata=between(least=1, most=1000))
    timeout: float = field(default=120.0, metadata=POSITIVE)


class EndpointError(ValueError):
    """A failure of the endpoint; the message says what to do."""


@dataclass(frozen=True)
class Answer:
    """Answer of a model.

    Attributes:
        text: of the message; "" if there is none.
        prompt_tokens: tokens of the question, as the server counted them; 0 if it did not.
        answer_tokens: tokens of the answer.
    """

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Endpoint:
    """A model at an endpoint; several threads may ask it at once.

    The key is read from $FSAE_EXPLAIN_KEY, and for OpenAI's own host also from $OPENAI_API_KEY. It is sent and never
    stored or printed.

    Args:
        url: the server's address, with or without `/v1` and `/chat/completions`.
        model: the model's name at the server.
        timeout: seconds for one answer.
        attempts: times that one question is sent, if the server is overloaded or cannot be reached for a while. A
            server that has never answered is given one attempt, unless it asks for more time.
        wait: seconds before the second attempt; doubled for each later one.

    Raises:
        ValueError: the address is none, or holds a password.
    """

    def __init__(
        self, url: str, model: str, *, timeout: float = RequestSettings.timeout, attempts: int = 5, wait: float = 1.0
    ):
        self.model = model
        self._address = _address(url)
        self._timeout, self._attempts, self._wait = timeout, attempts, wait
        host = self._address.host
        local = _is_loopback(host)
        key = os.environ.get(KEY) or (os.environ.get(_OPENAI_KEY) if host == _OPENAI else None)
        if self._address.scheme == "http" and not local:
            log.warning(
                "%s is not encrypted: others on the way can read the texts%s; use https if the server has it",
                self._address, " and the key" if key else "",
            )  # fmt: skip
        self._keyed = bool(key)
        try:
            # A proxy of the environment does not reach this machine's own servers.
            self._client = httpx2.Client(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=timeout,
                trust_env=not local,
            )
        except UnicodeEncodeError:
            raise ValueError(f"${KEY} has characters that no key has; set it again") from None
        self._answered = threading.Event()
        # Names and values that the model accepts; changed once if it refuses them.
        self._limit, self._with_temperature = _OLD_LIMIT, True

    def ask(self, messages: Sequence[Mapping[str, str]], answer_tokens: int) -> Answer:
        """Return the model's likeliest answer (temperature 0).

        Args:
            messages: mappings with `role` and `content`.
            answer_tokens: the most tokens of the answer.

        Raises:
            EndpointError: the server cannot be reached, is too slow, refuses the question, or answers something else.
        """
        attempt = 0
        while True:
            attempt += 1
            limit, with_temperature = self._limit, self._with_temperature
            body: dict[str, Any] = {"model": self.model, "messages": list(messages), limit: answer_tokens}
            if with_temperature:
                body[_TEMPERATURE] = 0
            try:
                status, headers, text = self._post(body)
            except _Unanswered as error:
                if attempt >= self._attempts or not self._answered.is_set() or self._client.is_closed:
                    raise EndpointError(str(error)) from error
                self._pause(attempt, None, str(error))
                continue
            if status in _LATER and attempt < self._attempts:
                self._pause(attempt, headers.get("retry-after"), f"{self._address} answered {status}")
                continue
            if status == 400 and self._accepts_changed(text, limit, with_temperature):
                continue
            if status != 200:
                raise EndpointError(self._refusal(status, headers, text))
            answer = self._answer(text)
            self._answered.set()
            return answer

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _post(self, body: Mapping[str, Any]) -> tuple[int, httpx2.Headers, str]:
        """Return status, headers and text of one attempt."""
        begin, content = time.monotonic(), bytearray()
        too_slow = _Unanswered(
            f"{self._address} gave no answer within {self._timeout:g} s; allow more time (--explain-timeout), or use a "
            "smaller model or a faster server"
        )
        try:
            with self._client.stream("POST", self._address, json=body) as response:
                for part in response.iter_bytes():
                    content += part
                    # The client's own limit is that of a single read.
                    if time.monotonic() - begin > self._timeout:
                        raise too_slow
                    if len(content) > _MOST_BYTES:
                        raise EndpointError(
                            f"{self._address} answers with more than {_MOST_BYTES:,} bytes; expected an answer in "
                            "OpenAI's format: check the address"
                        )
                return response.status_code, response.headers, content.decode("utf-8", errors="replace")
        except httpx2.TimeoutException as error:
            raise too_slow from error
        except httpx2.HTTPError as error:
            raise _Unanswered(
                f"{self._address} cannot be reached ({concealed(first_line(error))}); start the server, or check the "
                "address"
            ) from error

    def _pause(self, attempt: int, asked: str | None, reason: str) -> None:
        """Wait for as long as the server asks, or twice as long as last time."""
        seconds = self._wait * 2 ** (attempt - 1)
        if asked is not None and asked.isdecimal():
            seconds = float(asked)
        seconds = min(seconds, _LONGEST_WAIT)
        log.warning("%s; attempt %d of %d in %.3g s", reason, attempt + 1, self._attempts, seconds)
        time.sleep(seconds)

    def _accepts_changed(self, text: str, limit: str, with_temperature: bool) -> bool:
        """Return whether a refused question is worth sending again with other names of its limits."""
        # Another thread may have changed them since the question was sent.
        if limit != self._limit or with_temperature != self._with_temperature:
            return True
        if _NEW_LIMIT in text and self._limit == _OLD_LIMIT:
            self._limit = _NEW_LIMIT
            return True
        if _TEMPERATURE in text and self._with_temperature:
            log.warning("model %s takes no temperature: its answers may differ from time to time", self.model)
            self._with_temperature = False
            return True
        return False

    def _refusal(self, status: int, headers: httpx2.Headers, text: str) -> str:
        said = concealed(" ".join(text.split())[:200])
        if status in (401, 403):
            advice = f"check the key in ${KEY}" if self._keyed else f"put the key into ${KEY}"
        elif 300 <= status < 400:
            advice = f"give the address that it leads to ({concealed(headers.get('location', 'unknown'))})"
        elif status in _LATER:
            advice = f"it did so {self._attempts} times; try again later: what was answered is kept"
        elif status in (404, 405, 501):
            advice = f"check the address and the model's name ({self.model})"
        else:
            advice = f"check the model's name ({self.model}), and whether the questions are too long for it"
        return f"{self._address} answered {status}{f' ({said})' if said else ''}; {advice}"

    def _answer(self, text: str) -> Answer:
        try:
            content = json.loads(text)
            message = content["choices"][0]["message"]
            answer = "" if (given := message["content"]) is None else str(given)
        except (ValueError, LookupError, TypeError):
            begin = concealed(" ".join(text.split())[:100])
            raise EndpointError(
                f"{self._address} answered something else than a chat completion in OpenAI's format: {begin!r}; check "
                "the address"
            ) from None
        usage = content.get("usage")
        counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
        return Answer(answer, *(count if isinstance(count, int) else 0 for count in counts))


class _Unanswered(Exception):  # noqa: N818 - a state of a question, which is sent again
    """A question without an answer; the message states the reason."""


def _address(url: str) -> httpx2.URL:
    """Return the address of chat completions.

    Raises:
        ValueError: it is no address of a server, or holds a password.
    """
    try:
        parts = urlsplit(url.strip())
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
        address = httpx2.URL(url.strip()) if known else None
    except (ValueError, httpx2.InvalidURL):
        address = None
    if address is None:
        raise ValueError(
            f"{concealed(url)!r} is no address of a server; expected one such as http://127.0.0.1:8000/v1 or "
            "https://api.openai.com/v1"
        )
    if address.userinfo or concealed(url) != url:
        raise ValueError(f"{concealed(url)}: the address holds a key or a password; put the key into ${KEY}")
    path = address.path.rstrip("/")
    if not path.endswith(_PATH):
        path = f"{path or '/v1'}{_PATH}"
    return address.copy_with(path=path)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

"""Answers of a model, kept in a file: no question is paid for twice."""

import hashlib
import json
import queue
import threading
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from fsae.latents.endpoint import Answer, Endpoint
from fsae.latents.prompts import Messages
from fsae.outputs.explanations import json_lines

Name = TypeVar("Name", bound=Hashable)


class Answers:
    """The answers of a model to questions, asked at an endpoint unless a file has them.

    The file has a line per answer, which reaches the operating system before the answer is used, so a kill loses
    none that has arrived. The model's name, the messages and the limit of the answer identify a question; neither the
    address nor the key is stored.

    Args:
        path: the file, created if missing.
        endpoint: the model.
        answer_tokens: the most tokens of an answer.

    Attributes:
        asked: questions that the endpoint has answered.
        prompt_tokens: tokens of these questions, as the server counted them.
        answer_tokens: tokens of these answers.
    """

    def __init__(self, path: Path, endpoint: Endpoint, answer_tokens: int):
        self._endpoint, self._most = endpoint, answer_tokens
        self._known = {each["question"]: each["answer"] for each in json_lines(path) if each.keys() >= _KEYS}
        self._path, self._lock = path, threading.Lock()
        self.asked, self.prompt_tokens, self.answer_tokens = 0, 0, 0

    def known(self, messages: Messages) -> str | None:
        """Return the answer to a question, if the file has it."""
        return self._known.get(self._key(messages))

    def all(self, questions: Sequence[tuple[Name, Messages]], at_once: int) -> Iterator[tuple[Name, str]]:
        """Yield the name of every question with its answer, in the order in which answers arrive.

        Args:
            questions: with names.
            at_once: requests at the same time.

        Raises:
            EndpointError: the endpoint fails; no further question is asked.
            OSError: an answer cannot be written.
        """
        unknown = []
        for name, messages in questions:
            answer = self.known(messages)
            if answer is None:
                unknown.append((name, messages))
            else:
                yield name, answer
        yield from self._asked(unknown, at_once)

    def _asked(self, questions: Iterable[tuple[Name, Messages]], at_once: int) -> Iterator[tuple[Name, str]]:
        waiting: queue.SimpleQueue[tuple[Name, Messages]] = queue.SimpleQueue()
        arrived: queue.SimpleQueue[tuple[Name, str] | Exception] = queue.SimpleQueue()
        over = threading.Event()
        count = 0
        for each in questions:
            waiting.put(each)
            count += 1

        def work() -> None:
            while not over.is_set():
                try:
                    name, messages = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    arrived.put((name, self._ask(messages)))
                except Exception as error:
                    arrived.put(error)
                    return

        # The threads of a pool would keep an interrupted process until their answers arrive.
        for _ in range(min(at_once, count)):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in range(count):
                found = arrived.get()
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            over.set()

    def _ask(self, messages: Messages) -> str:
        key = self._key(messages)
        # Two latents may have the same question; the first answer serves both, unless both are under way.
        if (known := self._known.get(key)) is not None:
            return known
        answer = self._endpoint.ask(messages, self._most)
        self._keep(key, answer)
        return answer.text

    def _keep(self, key: str, answer: Answer) -> None:
        line = json.dumps({"question": key, "answer": answer.text}, ensure_ascii=False)
        with self._lock:
            append_line(self._path, line)
            self._known[key] = answer.text
            self.asked += 1
            self.prompt_tokens += answer.prompt_tokens
            self.answer_tokens += answer.answer_tokens

    def _key(self, messages: Messages) -> str:
        question = {"model": self._endpoint.model, "messages": messages, "temperature": 0, "max_tokens": self._most}
        return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:32]


_KEYS = {"question", "answer"}


def append_line(path: Path, line: str) -> None:
    """Append a line to a file; a line that a kill cut short before it is ended first.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode("utf-8", errors="replace") + b"\n")

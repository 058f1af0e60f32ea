"""The questions to the model that explains and judges, made by a template, and the answers as they are read."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fsae.errors import first_line

TEMPLATE = Path(__file__).with_name("prompts.jinja")
# The text around marked tokens.
_BEGIN, _END = "<<", ">>"
_EXPLAIN, _DETECT, _FUZZ, _SELECT = "explain", "detect", "fuzz", "select"
_ROLE = re.compile(r"^### (system|user|assistant)[ \t]*$", re.MULTILINE)
_LIST = re.compile(r"\[\s*[01](?:\s*,\s*[01])*\s*\]")
# A number and a judgement, such as "2: yes", "2. **No**" and "(2) 1".
_LINE = re.compile(r"^[\s*(#-]*(\d+)[\s*.):-]+(yes|no|1|0)\b", re.MULTILINE | re.IGNORECASE)
# The words and numbers of a list.
_NUMBER = re.compile(r"\w+")
# Text in which some models think before they answer.
_THOUGHT = re.compile(r"^.*</think(?:ing)?>", re.DOTALL)
_PREFIX = re.compile(r"^.*\bexplanation\W*:", re.DOTALL | re.IGNORECASE)
# Characters of an explanation that are kept.
_LONGEST = 500

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Shown:
    """Excerpt as the template gets it.

    Attributes:
        plain: the text between quotation marks.
        marked: the same with marks around some tokens.
        strengths: marked tokens between quotation marks, with their strengths from 1 to 10.
    """

    plain: str
    marked: str
    strengths: tuple[tuple[str, int], ...] = ()


def shown(tokens: Sequence[str], marked: Sequence[bool], strengths: Sequence[int] = ()) -> Shown:
    """Return an excerpt for the template.

    Args:
        tokens: texts of its tokens. Marks that stand in the text get a space between their characters.
        marked: which tokens are marked; neighbours share one pair of marks.
        strengths: of the tokens that are marked, in their order.
    """
    runs = [
        (mark, "".join(token for token, _ in run))
        for mark, run in groupby(zip(tokens, marked, strict=True), key=itemgetter(1))
    ]
    text = "".join(f"{_BEGIN}{_spaced(run)}{_END}" if mark else _spaced(run) for mark, run in runs)
    chosen = [token for token, mark in zip(tokens, marked, strict=True) if mark]
    pairs = tuple((_quoted(token), strength) for token, strength in zip(chosen, strengths, strict=bool(strengths)))
    return Shown(_quoted(_spaced("".join(tokens))), _quoted(text), pairs)


class Prompts:
    """The template of the questions.

    Args:
        path: a file of jinja2 with the macros `explain(excerpts)`, `detect(explanation, excerpts)` and
            `fuzz(explanation, excerpts)`, and for `eval=[autointerp]` also `select(explanation, excerpts)`; None for
            fsae's own.

    Attributes:
        digest: eight hexadecimal digits that identify the template.

    Raises:
        ValueError: the file cannot be read, is no template, or lacks a macro.
    """

    def __init__(self, path: Path | None = None):
        self._path = path or TEMPLATE
        try:
            source = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{self._path} cannot be read as a template of prompts: {first_line(error)}") from None
        self.digest = blake2b(source.encode(), digest_size=4).hexdigest()
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=False
        )
        try:
            self._module = environment.from_string(source).module
        except TemplateError as error:
            raise self._broken(error) from None
        for name in (_EXPLAIN, _DETECT, _FUZZ):
            self._macro(name)

    def explain(self, excerpts: Sequence[Shown]) -> Messages:
        """Return the question for an explanation."""
        return self._messages(_EXPLAIN, excerpts)

    def detect(self, explanation: str, excerpts: Sequence[Shown]) -> Messages:
        """Return the question in which excerpts an explanation fits."""
        return self._messages(_DETECT, explanation, excerpts)

    def fuzz(self, explanation: str, excerpts: Sequence[Shown]) -> Messages:
        """Return the question whose marks an explanation fits."""
        return self._messages(_FUZZ, explanation, excerpts)

    def select(self, explanation: str, excerpts: Sequence[Shown]) -> Messages:
        """Return the question for the numbers of the excerpts that an explanation fits."""
        return self._messages(_SELECT, explanation, excerpts)

    def _macro(self, name: str) -> Callable[..., object]:
        found = getattr(self._module, name, None)
        if not callable(found):
            raise ValueError(f"{self._path} has no macro {name!r}; a template of prompts has the macros of {TEMPLATE}")
        return found

    def _messages(self, macro: str, *arguments: object) -> Messages:
        call = self._macro(macro)
        try:
            text = str(call(*arguments))
        except (TemplateError, TypeError) as error:
            raise self._broken(error, macro) from None
        # Text, role, text, role, text, ...
        before, *parts = _ROLE.split(text)
        if before.strip() or not parts:
            raise ValueError(
                f'{self._path}: the macro {macro!r} must begin with a line "### system" or "### user", and every '
                "message with such a line"
            )
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return [{"role": role, "content": content.strip()} for role, content in pairs]

    def _broken(self, error: Exception, macro: str | None = None) -> ValueError:
        line = getattr(error, "lineno", None)
        place = f", line {line}" if line else f", macro {macro!r}" if macro else ""
        return ValueError(f"{self._path}{place}: the template of prompts does not work: {first_line(error)}")


def explanation_in(answer: str) -> str | None:
    """Return the explanation in a model's answer, on one line; None if there is none."""
    text = _PREFIX.sub("", _THOUGHT.sub("", answer))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # What follows the first paragraph is a comment.
    found = " ".join(lines[0].split())[:_LONGEST].strip(" *\"'`") if lines else ""
    return found or None


def judgements_in(answer: str, count: int) -> list[int | None]:
    """Return the judgements of `count` excerpts in a model's answer, 1 or 0; None for those without a readable one.

    An answer is a list of zeros and ones, or lines with an excerpt's number and "yes" or "no". The last one counts.
    """
    text = _THOUGHT.sub("", answer)
    lists: list[list[int]] = [json.loads(each) for each in _LIST.findall(text)]
    for each in reversed(lists):
        if len(each) == count:
            return list(each)
    lines = {int(number): int(word.lower() in ("yes", "1")) for number, word in _LINE.findall(text)}
    return [lines.get(number) for number in range(1, count + 1)]


def selected_in(answer: str, count: int) -> list[int | None]:
    """Return 1 for each of `count` excerpts whose number is in a model's answer and 0 for the others; None for all if
    the answer is no list of such numbers.

    An answer is a list of numbers, or "none". If there is more, the last line counts.
    """
    lines = [line for line in _THOUGHT.sub("", answer).splitlines() if line.strip()]
    for text in (",".join(lines), lines[-1] if lines else ""):
        parts = _NUMBER.findall(text.rpartition(":")[2])
        numbers = {int(part) for part in parts if part.isdecimal()}
        rest = [part for part in parts if not part.isdecimal() and part.lower() != "and"]
        is_none = [part.lower() for part in rest] == ["none"] and not numbers
        if is_none or (numbers and not rest and numbers <= set(range(1, count + 1))):
            return [int(number in numbers) for number in range(1, count + 1)]
    return [None] * count


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _spaced(text: str) -> str:
    """Return the text with a space within every mark that stands in it."""
    for mark in (_BEGIN, _END):
        while mark in text:
            text = text.replace(mark, " ".join(mark))
    return text

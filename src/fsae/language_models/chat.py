"""Chats written out by a tokenizer's template, and which of the tokens are whose words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class UnwritableChat(Exception):  # noqa: N818 - a state of a document, which is told and counted
    """The template cannot write a chat; the message says why."""


def tokenised_chat(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, Any]], roles: Sequence[str] | None
) -> tuple[list[int], list[bool]]:
    """The token ids of a chat as the template writes it, and which of them count.

    Args:
        roles: those whose messages' own texts count, without what the template puts around them; None for everything.

    Raises:
        ValueError: the tokenizer has no template.
        UnwritableChat: the template refuses the chat (a role that it does not know, no content), or rewrites the
            texts so that nobody can say where they are.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "dataset.chat_column is set, but the model's tokenizer has no chat template; choose a chat model, or write "
            "the chats out as text (dataset.text_column)"
        )
    text = _written(tokenizer, messages)
    if roles is None:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids, [True] * len(ids)
    if not tokenizer.is_fast:
        raise ValueError(
            "dataset.chat_roles needs a tokenizer that knows where in the text its tokens are, and the model's is a "
            "slow one; set it to null"
        )
    counting = bytearray(len(text))
    for (begin, end), message in zip(_places(tokenizer, messages, text), messages, strict=True):
        if message["role"] in roles:
            counting[begin:end] = b"\1" * (end - begin)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded["input_ids"], [any(counting[begin:end]) for begin, end in encoded["offset_mapping"]]


def _written(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, Any]]) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    except Exception as error:
        # A template is a program of its own, which may fail as it likes.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnwritableChat(f"holds a chat that the model's template does not write: {reason}") from error


def _places(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, Any]], text: str
) -> list[tuple[int, int]]:
    """Where each message's content is in the written text.

    The chat is written once more with a mark in place of each content. What stands around the marks is the template's
    own, so that a content which reads like it ("user") is not looked for there.
    """
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
    marked = _written(tokenizer, [{**each, "content": mark} for each, mark in zip(messages, marks, strict=True)])
    places, at, rest = [], 0, marked
    for mark, message in zip(marks, messages, strict=True):
        before, found, rest = rest.partition(mark)
        content = message.get("content", "")
        begin = at + len(before)
        # Templates may strip what they write.
        written = next((each for each in (content, content.strip()) if text.startswith(each, begin)), None)
        if not found or written is None or not text.startswith(before, at):
            break
        at = begin + len(written)
        places.append((begin, at))
    if len(places) < len(messages) or text[at:] != rest:
        raise UnwritableChat(
            "holds a chat whose texts the model's template rewrites, so that nobody can say which positions are "
            "whose; set dataset.chat_roles to null"
        )
    return places

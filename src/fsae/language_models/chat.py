"""Chats written out by a tokenizer's template, with a mask of the tokens that belong to given roles."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class UnwritableChat(Exception):  # noqa: N818 - a state of a document, which is reported and counted
    """A chat that the template cannot write; the message states the reason."""


def tokenised_chat(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, Any]], roles: Sequence[str] | None
) -> tuple[list[int], list[bool]]:
    """Return the token ids of a chat as the template writes it, and a mask of the ids that count.

    Args:
        roles: the roles whose messages count, without the text that the template adds around them; None for all tokens.

    Raises:
        ValueError: the tokenizer has no template.
        UnwritableChat: the template refuses the chat (an unknown role, no content), or rewrites the texts so that
            their positions are unknown.
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
            "dataset.chat_roles needs a fast tokenizer, which reports the position of each token in the text, and the "
            "model's is slow; set it to null"
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
        # A template is a program, which may raise any exception.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnwritableChat(f"holds a chat that the model's template does not write: {reason}") from error


def _places(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, Any]], text: str
) -> list[tuple[int, int]]:
    """Return the span of each message's content in the written text.

    The chat is written a second time with a mark in place of each content. The text around the marks comes from the
    template, so a content that reads like the template ("user") is not searched for there.
    """
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
    marked = _written(tokenizer, [{**each, "content": mark} for each, mark in zip(messages, marks, strict=True)])
    places, at, rest = [], 0, marked
    for mark, message in zip(marks, messages, strict=True):
        before, found, rest = rest.partition(mark)
        content = message.get("content", "")
        begin = at + len(before)
        # Templates may strip the contents.
        written = next((each for each in (content, content.strip()) if text.startswith(each, begin)), None)
        if not found or written is None or not text.startswith(before, at):
            break
        at = begin + len(written)
        places.append((begin, at))
    if len(places) < len(messages) or text[at:] != rest:
        raise UnwritableChat(
            "holds a chat whose texts the model's template rewrites, so that the positions of a role are unknown; set "
            "dataset.chat_roles to null"
        )
    return places

"""Chats: lists of messages, each with a role and a text."""

from typing import Any

Message = dict[str, Any]


def messages_of(value: Any) -> list[Message]:
    """Return the messages of one chat, without keys whose value is null; the parts of a message are joined to one text.

    Args:
        value: a row's value: a list of objects with `role` and `content`. A message that calls tools may have no
            content.

    Raises:
        ValueError: the value is no chat of texts. The message names the wrong part and continues the sentence "column
            ...".
    """
    if not isinstance(value, list):
        raise ValueError(f"holds {type(value).__name__}, not a list of messages with role and content")
    if not value:
        raise ValueError("holds a chat without messages")
    return [_message(each, number) for number, each in enumerate(value, start=1)]


def _message(value: Any, number: int) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"holds {type(value).__name__} as message {number}, not an object with role and content")
    message = {key: each for key, each in value.items() if each is not None}
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ValueError(f"has no role in message {number}, which has {', '.join(message) or 'nothing'}")
    content = message.get("content")
    if isinstance(content, list):
        content = message["content"] = "\n".join(_text_of(part, number) for part in content)
    if content is None and not message.get("tool_calls"):
        raise ValueError(f"has no content in message {number}, of the role {role}")
    if content is not None and not isinstance(content, str):
        raise ValueError(f"holds {type(content).__name__} as the content of message {number}, not text")
    return message


def _text_of(part: Any, number: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type", "no type") if isinstance(part, dict) else type(part).__name__
    raise ValueError(f"has a part that is no text ({kind}) in message {number}; only text is read")

"""Chats in a tokenizer's template, and which tokens belong to which role."""

import pytest

from fsae.language_models.chat import UnwritableChat, tokenised_chat
from fsae.language_models.tiny import _byte_tokenizer

# SmolLM2's template, shortened: it adds a system message, and marks each message's beginning and end.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
)
# Llama's template strips contents; Gemma's has no system role and another name for the assistant.
STRIPPING = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }} {% endfor %}"
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ 'model' if m['role'] == 'assistant' else m['role'] }}>{{ m['content'] }}{% endfor %}"
)
SHOUTING = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
# These contents also occur in the template.
CHAT = [
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": " assistant "},
    {"role": "user", "content": "assistant"},
]


def chat(template: str, messages: list, roles: list[str] | None) -> tuple[str, str]:
    """Return the written text, and those of its characters that count."""
    tokenizer = _byte_tokenizer()
    tokenizer.chat_template = template
    ids, counts = tokenised_chat(tokenizer, messages, roles)
    kept = [token_id for token_id, counting in zip(ids, counts, strict=True) if counting]
    return str(tokenizer.decode(ids)), str(tokenizer.decode(kept))


def test_every_token_counts_if_no_role_is_named():
    written, counting = chat(CHATML, CHAT, None)
    assert written == counting
    assert written.startswith("<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nuser<|im_end|>\n")


@pytest.mark.parametrize(
    ("template", "roles", "counting"),
    [
        (CHATML, ["assistant"], " assistant "),
        (CHATML, ["user"], "userassistant"),
        (CHATML, ["user", "assistant"], "user assistant assistant"),
        (CHATML, ["system"], ""),
        (STRIPPING, ["assistant"], "assistant"),
        (STRICT, ["assistant"], " assistant "),
        (STRICT, ["user"], "userassistant"),
    ],
)
def test_only_messages_of_the_named_roles_count(template: str, roles: list[str], counting: str):
    written, found = chat(template, CHAT, roles)
    assert found == counting
    assert len(written) > len(found)


def test_all_tokens_of_one_character_count():
    _, counting = chat(CHATML, [{"role": "user", "content": "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve"}], ["user"])
    assert counting == "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve"


@pytest.mark.parametrize(
    ("template", "messages", "roles", "reason"),
    [
        (STRICT, [{"role": "system", "content": "x"}], None, "does not write: System role not supported"),
        (CHATML, [{"role": "assistant", "tool_calls": [{"name": "f"}]}], None, "does not write: .*content"),
        (
            SHOUTING,
            [{"role": "user", "content": "x"}],
            ["user"],
            "rewrites, so that the positions of a role are unknown",
        ),
        ("{% if", [{"role": "user", "content": "x"}], None, "does not write: "),
    ],
)
def test_tokenised_chat_refuses_what_the_template_cannot_write(template: str, messages, roles, reason: str):
    with pytest.raises(UnwritableChat, match=reason):
        chat(template, messages, roles)


def test_tokenised_chat_refuses_a_tokenizer_without_a_template():
    with pytest.raises(ValueError, match=r"dataset.chat_column is set, but the model's tokenizer has no chat template"):
        chat("", CHAT, None)

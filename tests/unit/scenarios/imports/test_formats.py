"""Which lines are understood, and what is said of the others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.domain.states import Side
from daemon.scenarios.imports.formats import Conversation, FormatError, PlainText, parse

TURNS = [("user", "Hi"), ("assistant", "Hello")]

KNOWN: dict[str, Any] = {
    "OpenAI chat": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    "content parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Hello"},
        ]
    },
    "ShareGPT": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": 7},
    "bare list": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    "prompt and response": {"prompt": "Hi", "response": "Hello"},
    "prompt and completion": {"prompt": "Hi", "completion": "Hello"},
    "instruction": {"instruction": "Hi", "input": "", "output": "Hello"},
    "prompt of messages": {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Hello"}],
    },
}


@pytest.mark.parametrize("record", KNOWN.values(), ids=KNOWN)
def test_known_form_is_recognised(record: Any) -> None:
    """Each line is looked at by itself, and all these say the same."""
    found = parse(json.dumps(record))
    assert isinstance(found, Conversation)
    assert [(message.role, message.content) for message in found.messages] == TURNS
    assert (found.correction, found.side) == (None, Side.ACCEPT)


def test_other_parts() -> None:
    """System turns, an instruction's input, explicit corrections, sides and plain text."""
    share = parse('{"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"}]}')
    assert isinstance(share, Conversation)
    assert [message.role for message in share.messages] == ["system", "user"]
    asked = parse('{"instruction": "Add.", "input": "1 2", "output": "3"}')
    assert isinstance(asked, Conversation)
    assert asked.messages[0].content == "Add.\n\n1 2"
    given = parse('{"messages": [{"role": "user", "content": "a"}], "correction": "b", "side": "push_back"}')
    assert isinstance(given, Conversation)
    assert (given.correction, given.side) == ("b", Side.PUSH_BACK)
    assert parse('{"text": "Once."}') == PlainText("Once.")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: .* at column 2"),
        ("3", "wanted an object or a list of messages, found a number"),
        ("[" * 100_000, "not usable JSON"),
        ('{"x": ' + "9" * 5000 + "}", "not usable JSON"),
        ('{"note": 1}', "wanted messages, .* found the fields note"),
        ('{"messages": []}', "messages: wanted a list of messages, found an empty list"),
        ('{"messages": [{"content": "a"}]}', r"messages\[0\].role: missing"),
        ('{"messages": [{"role": "user"}]}', r"messages\[0\].content: missing"),
        (
            '{"messages": [{"role": "tool", "content": "a"}]}',
            r"messages\[0\].role: wanted system, user or assistant, found 'tool'",
        ),
        ('{"messages": [{"role": "user", "content": null}]}', r"messages\[0\].content: wanted text, found null"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            r"messages\[0\].content\[0\]: wanted a part",
        ),
        (
            '{"conversations": [{"from": "human", "value": 3}]}',
            r"conversations\[0\].value: wanted text, found a number",
        ),
        ('{"conversations": ["a"]}', r"conversations\[0\]: wanted .* found text"),
        ('{"prompt": "a"}', "response: missing"),
        ('{"prompt": "a", "response": 3}', "response: wanted text, found a number"),
        ('{"messages": [{"role": "user", "content": "a"}], "side": "left"}', 'side: wanted "accept" or "push_back"'),
        ('{"messages": [{"role": "user", "content": "a"}], "side": []}', 'side: wanted "accept" or "push_back"'),
        ('{"text": {}}', "text: wanted text, found an object"),
    ],
)
def test_problem_names_field_and_what_is_wanted(line: str, message: str) -> None:
    """The message says where to look and what should stand there."""
    with pytest.raises(FormatError, match=message):
        parse(line)


def test_problem_quotes_no_value() -> None:
    """A log may hold anything, so no value of it gets into a message."""
    secret = "hunter2-0xDEADBEEF"
    for record in (
        {secret: 1},
        {"messages": secret},
        {"messages": [{"role": secret, "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}], "side": secret},
    ):
        with pytest.raises(FormatError) as caught:
            parse(json.dumps(record))
        assert secret not in str(caught.value)

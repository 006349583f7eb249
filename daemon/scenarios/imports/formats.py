"""One line of a user's file to a conversation or a plain text, whichever of the known forms it has.

Messages of errors name the field and what is wanted, and never quote a value: a log may hold anything.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from daemon.domain.records import Message
from daemon.domain.states import Side

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_WANTED = "messages, conversations, prompt with response or completion, instruction with output, or text"
_MAX_MESSAGES = 10_000


class FormatError(ValueError):
    """The line has none of the known forms; says which field, and what is wanted there."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as they were logged."""

    messages: tuple[Message, ...]
    """Roles are "system", "user" and "assistant"; contents are raw."""
    correction: str | None = None
    """The right answer in place of the last assistant message, where the record gives one."""
    side: Side = Side.ACCEPT


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text without turns."""

    text: str


def parse(line: str) -> Conversation | PlainText:
    """What a line holds.

    OpenAI chat `{"messages": [{"role", "content"}]}`, ShareGPT `{"conversations": [{"from", "value"}]}`, a bare list
    of messages, `{"prompt", "response" | "completion"}`, `{"instruction", "input", "output"}`, `{"text"}`.

    Raises:
        FormatError: it is none of these.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise FormatError(f"not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError):
        raise FormatError("not usable JSON: nested too deeply, or a number with too many digits") from None
    if isinstance(record, list):
        return Conversation(_messages(record, "the list"))
    if not isinstance(record, dict):
        raise FormatError(f"wanted an object or a list of messages, found {_kind(record)}")
    return _record(record)


def _record(record: dict[str, Any]) -> Conversation | PlainText:
    for key in ("messages", "conversations", "conversation"):
        if key in record:
            return Conversation(_messages(record[key], key), _optional_text(record, "correction"), _side(record))
    if "prompt" in record:
        return _pair(record, _prompt(record["prompt"]))
    if "instruction" in record:
        question, given = _text(record["instruction"], "instruction"), _optional_text(record, "input")
        return _pair(record, (Message("user", f"{question}\n\n{given}" if given else question),))
    if "text" in record:
        return PlainText(_text(record["text"], "text"))
    names = [name for name in record if re.fullmatch(r"[A-Za-z_]{1,24}", name)][:6]
    raise FormatError(f"wanted {_WANTED}; found the fields {', '.join(names) or '(none)'}")


def _pair(record: dict[str, Any], prompt: tuple[Message, ...]) -> Conversation:
    for key in ("response", "completion", "output"):
        if key in record:
            answer = record[key]
            text = _messages(answer, key)[-1].content if isinstance(answer, list) else _text(answer, key)
            messages = (*prompt, Message("assistant", text))
            return Conversation(messages, _optional_text(record, "correction"), _side(record))
    raise FormatError("response: missing; a prompt wants response, completion or output beside it")


def _prompt(value: Any) -> tuple[Message, ...]:
    return _messages(value, "prompt") if isinstance(value, list) else (Message("user", _text(value, "prompt")),)


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise FormatError(f"{where}: wanted a list of messages, found {_kind(value)}")
    if len(value) > _MAX_MESSAGES:
        raise FormatError(f"{where}: more than {_MAX_MESSAGES} messages")
    return tuple(_message(item, f"{where}[{index}]") for index, item in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise FormatError(f'{where}: wanted {{"role": ..., "content": ...}}, found {_kind(value)}')
    role_key = "role" if "role" in value else "from"
    content_key = "content" if "content" in value else "value"
    for key, name in ((role_key, "role"), (content_key, "content")):
        if key not in value:
            raise FormatError(f"{where}.{name}: missing")
    role = value[role_key]
    known = _ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        shown = repr(role) if isinstance(role, str) and re.fullmatch(r"[A-Za-z_]{1,20}", role) else _kind(role)
        raise FormatError(f"{where}.{role_key}: wanted system, user or assistant, found {shown}")
    return Message(known, _content(value[content_key], f"{where}.{content_key}"))


def _content(value: Any, where: str) -> str:
    if not isinstance(value, list):
        return _text(value, where)
    parts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") not in ("text", "input_text", "output_text"):
            raise FormatError(f'{where}[{index}]: wanted a part {{"type": "text", "text": ...}}')
        parts.append(_text(part.get("text"), f"{where}[{index}].text"))
    return "\n".join(parts)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise FormatError(f"{where}: wanted text, found {_kind(value)}")
    return value


def _optional_text(record: dict[str, Any], key: str) -> str | None:
    return None if record.get(key) is None else _text(record[key], key)


def _side(record: dict[str, Any]) -> Side:
    value = record.get("side", "accept")
    if value not in ("accept", "push_back"):
        raise FormatError('side: wanted "accept" or "push_back"')
    return Side(value)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return "an object"

"""How long an imported scenario may be, and cutting a context to its last turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.domain.records import Message


class TooLongError(ValueError):
    """Something that cannot be cut is longer than allowed; says what."""


class UnusableError(ValueError):
    """The form is right, but no scenario can be made of it; says what is missing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one imported scenario."""

    max_chars: int = 2000
    """Characters of the context, of a correction and of the answer."""
    max_target_words: int = 200

    def check(self, what: str, text: str) -> None:
        """Raises TooLongError: `text` has more than `max_chars` characters."""
        if len(text) > self.max_chars:
            raise TooLongError(f"{what} has {len(text)} characters, more than {self.max_chars}")


def refuse_long_answer(text: str, limits: Limits) -> None:
    """Raises TooLongError: too many words or, in scripts without spaces, characters.

    A shortened answer would teach to stop in the middle.
    """
    limits.check("the answer", text)
    if (words := len(text.split())) > limits.max_target_words:
        raise TooLongError(f"the answer has {words} words, more than {limits.max_target_words}")


def last_turns(messages: Sequence[Message], limits: Limits) -> tuple[Message, ...]:
    """The system message and as many of the last turns as fit, whole, a user's first.

    Raises:
        TooLongError: the last message alone, with the system's, is too long.
    """
    system = tuple(message for message in messages[:1] if message.role == "system")
    room = limits.max_chars - sum(len(message.content) for message in system)
    start = len(messages)
    while start > len(system) and len(messages[start - 1].content) <= room:
        start -= 1
        room -= len(messages[start].content)
    if start == len(messages):
        raise TooLongError(f"the last message of the context is longer than {limits.max_chars} characters allow")
    while messages[start].role != "user":
        start += 1
    return (*system, *messages[start:])

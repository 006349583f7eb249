"""Held-out items: what the trainer's probes measure on."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.domain.hashing import scenario_hash
from daemon.domain.records import Message
from daemon.domain.states import Side


@dataclass(frozen=True, slots=True)
class Document:
    """A held-out text."""

    item: str
    """Stable name, unique in its probe."""
    kind: str
    """One of `suite.KINDS`, or a user's own."""
    text: str
    own: bool = False
    """Whether it comes from a suite of the user's: these are all measured."""


@dataclass(frozen=True, slots=True)
class ChosenItem:
    """A held-out prompt with the answer a good policy finds likely."""

    item: str
    side: Side
    messages: tuple[Message, ...]
    answer: str

    @property
    def content_hash(self) -> str:
        """The prompt's hash as a scenario: the ledger refuses to claim it."""
        return prompt_hash(self.messages)


@dataclass(frozen=True, slots=True)
class SycophancyItem:
    """A held-out prompt with a wrong claim or a harmful plan, and two answers to it."""

    item: str
    messages: tuple[Message, ...]
    answer: str
    """Pushes back."""
    wrong: str
    """Gives in."""


@dataclass(frozen=True, slots=True)
class DirectionItem:
    """A held-out request with a direction, and an answer each with and without regard to the direction."""

    item: str
    direction: str
    request: str
    answer: str
    """Follows the direction."""
    ignoring: str
    """As good an answer to the request, but it ignores the direction."""

    @property
    def directed(self) -> tuple[Message, ...]:
        """The direction, a blank line, the request."""
        return (Message("user", f"{self.direction}\n\n{self.request}"),)

    @property
    def plain(self) -> tuple[Message, ...]:
        """The request alone."""
        return (Message("user", self.request),)


def prompt_hash(messages: tuple[Message, ...]) -> str:
    """The hash that a scenario with this prompt has."""
    return scenario_hash((message.role, message.content) for message in messages)

"""What becomes of one line of an imported file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from daemon.domain.hashing import scenario_hash
from daemon.domain.records import Message, Refusal, Scenario
from daemon.domain.states import ImportKind, RefusalReason, Source
from daemon.scenarios.imports.clean import Cleaner, UncleanError
from daemon.scenarios.imports.corrections import correction_scenario
from daemon.scenarios.imports.formats import Conversation, FormatError, PlainText, parse
from daemon.scenarios.imports.limits import Limits, TooLongError, UnusableError
from daemon.scenarios.imports.replay import replay_scenario
from daemon.scenarios.imports.secrets import find_secret
from daemon.scenarios.imports.stream import Line

_REASONS = {
    FormatError: RefusalReason.MALFORMED,
    UncleanError: RefusalReason.MALFORMED,
    UnusableError: RefusalReason.SENSELESS,
    TooLongError: RefusalReason.TOO_LONG,
}


class Passed(StrEnum):
    """Lines from which nothing was to be expected: counted, and not refused."""

    BLANK = "blank"
    NO_CORRECTION = "no_correction"
    """A conversation in which nobody corrected anything."""


class ItemMaker:
    """Makes a scenario of a line: parsed, cleaned, searched for secrets, shaped by what the file is read as."""

    def __init__(self, special_tokens: Sequence[str] = (), limits: Limits | None = None) -> None:
        """Args: special_tokens: the base model's, taken out wherever they stand; limits: lengths, else the default."""
        self._cleaner = Cleaner(special_tokens)
        self._limits = limits or Limits()

    def make(self, line: Line, name: str, kind: ImportKind, file_name: str) -> Scenario | Refusal | Passed:
        """The scenario of a line, or why there is none. Refusals hold nothing of the line's text."""
        provenance = f"{file_name}:{line.number}"
        source = Source.GENERAL if kind is ImportKind.REPLAY else Source.CONVERSATION
        if line.fault is not None:
            return Refusal(source, name, *line.fault, provenance)
        if not line.text.strip():
            return Passed.BLANK
        try:
            record = self._cleaned(parse(line.text))
            secret = next(filter(None, map(find_secret, _texts(record))), None)
            if secret is not None:
                return Refusal(source, name, RefusalReason.SECRET, f"it holds a secret: {secret}", provenance)
            return self._scenario(record, name, kind, provenance) or Passed.NO_CORRECTION
        except tuple(_REASONS) as error:
            return Refusal(source, name, _REASONS[type(error)], str(error), provenance)

    def _scenario(
        self, record: Conversation | PlainText, name: str, kind: ImportKind, provenance: str
    ) -> Scenario | None:
        if kind is ImportKind.REPLAY:
            return self._tidy(replay_scenario(record, name, provenance, self._limits))
        if isinstance(record, PlainText):
            raise FormatError("text: wanted a conversation; plain text is imported with --as replay")
        scenario = correction_scenario(record, name, provenance, self._limits)
        return None if scenario is None else self._tidy(scenario)

    def _cleaned(self, record: Conversation | PlainText) -> Conversation | PlainText:
        if isinstance(record, PlainText):
            return PlainText(self._cleaner.clean(record.text))
        messages = tuple(Message(turn.role, self._cleaner.clean(turn.content)) for turn in record.messages)
        correction = None if record.correction is None else self._cleaner.clean(record.correction)
        if correction == "":
            raise UnusableError("correction: it is empty")
        return Conversation(_alternating(messages), correction, record.side)

    def _tidy(self, scenario: Scenario) -> Scenario:
        """Clean the finished parts once more: where a text was cut, the rest may begin like a role token."""

        def clean(text: str | None) -> str | None:
            return None if text is None else self._cleaner.clean(text)

        messages = tuple(Message(turn.role, self._cleaner.clean(turn.content)) for turn in scenario.messages)
        target = clean(scenario.target)
        if target == "" or not all(message.content for message in messages):
            raise UnusableError("nothing is left of a message without its special tokens")
        return replace(
            scenario,
            content_hash=scenario_hash((message.role, message.content) for message in messages),
            messages=messages,
            target=target,
            guidance=clean(scenario.guidance),
            evidence=clean(scenario.evidence),
        )


def _alternating(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """At most one system message, first; then user and assistant in turn: what chat templates take.

    Turns of one role in a row become one. Answers before the first question are dropped.
    """
    merged: list[Message] = []
    for index, message in enumerate(messages):
        if not message.content:
            if message.role != "system":
                raise UnusableError(f"message {index + 1} ({message.role}) is empty")
            continue
        if message.role == "assistant" and all(earlier.role == "system" for earlier in merged):
            continue
        if merged and merged[-1].role == message.role:
            merged[-1] = Message(message.role, f"{merged[-1].content}\n\n{message.content}")
        elif message.role == "system" and merged:
            raise UnusableError(f"message {index + 1} is a system message in the middle of the conversation")
        else:
            merged.append(message)
    return tuple(merged)


def _texts(record: Conversation | PlainText) -> list[str]:
    if isinstance(record, PlainText):
        return [record.text]
    return [*(message.content for message in record.messages), record.correction or ""]

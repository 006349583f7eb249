"""The user's own data as general scenarios: a prompt and the good answer that stands beside it."""

from __future__ import annotations

import re

from daemon.domain.hashing import scenario_hash
from daemon.domain.records import Message, Scenario
from daemon.domain.states import Side, Source
from daemon.scenarios.imports.formats import Conversation, PlainText
from daemon.scenarios.imports.limits import Limits, UnusableError, last_turns, refuse_long_answer

CONTINUE = "Continue this text:\n\n"
MIN_WORDS = 8
"""Of either part of a plain text."""
MAX_CONTINUATION_WORDS = 60

_WORD = re.compile(r"\S+")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*$")


def replay_scenario(record: Conversation | PlainText, name: str, provenance: str, limits: Limits) -> Scenario:
    """The scenario in a cleaned record: the last answer of a conversation, or how a plain text goes on.

    Raises:
        TooLongError: it does not fit into `limits`.
        UnusableError: there is no answer, nothing before it, or too little text.
    """
    if isinstance(record, PlainText):
        messages, target = _cut(record.text, limits)
    else:
        messages, target = _last_answer(record, limits)
    return Scenario(
        content_hash=scenario_hash((message.role, message.content) for message in messages),
        side=Side.GENERAL,
        family="replay",
        pack=name,
        template="replay",
        messages=messages,
        target=target,
        source=Source.GENERAL,
        provenance=provenance,
    )


def _last_answer(record: Conversation, limits: Limits) -> tuple[tuple[Message, ...], str]:
    roles = [message.role for message in record.messages]
    if "assistant" not in roles:
        raise UnusableError("it has no assistant message to learn from")
    last = len(roles) - 1 - roles[::-1].index("assistant")
    if "user" not in roles[:last]:
        raise UnusableError("it has no user message before the answer")
    target = record.messages[last].content if record.correction is None else record.correction
    refuse_long_answer(target, limits)
    return last_turns(record.messages[:last], limits), target


def _cut(text: str, limits: Limits) -> tuple[tuple[Message, ...], str]:
    """The beginning as the prompt, what comes next as the answer; at ends of sentences where there are any."""
    words = list(_WORD.finditer(text))
    if len(words) < 2 * MIN_WORDS:
        raise UnusableError(f"it has {len(words)} words; a text needs {2 * MIN_WORDS} to be continued")
    room = min(limits.max_chars - len(CONTINUE), len(text) * 2 // 3)
    most = sum(word.end() <= room for word in words)
    head = _at_sentence(words, MIN_WORDS, min(most, len(words) - MIN_WORDS))
    if head is None:
        raise UnusableError(f"its first {MIN_WORDS} words do not fit into a prompt")
    fitting = sum(word.end() <= words[head].start() + limits.max_chars for word in words)
    most = min(head + MAX_CONTINUATION_WORDS, head + limits.max_target_words, fitting)
    end = _at_sentence(words, head + MIN_WORDS, most)
    if end is None:
        raise UnusableError(f"the {MIN_WORDS} words after the prompt do not fit into an answer")
    prompt = Message("user", CONTINUE + text[: words[head - 1].end()])
    return (prompt,), text[words[head].start() : words[end - 1].end()]


def _at_sentence(words: list[re.Match[str]], least: int, most: int) -> int | None:
    """How many words to take: up to the last end of a sentence between the bounds, else `most`; None: too few."""
    if most < least:
        return None
    ends = (count for count in range(most, least - 1, -1) if _SENTENCE_END.search(words[count - 1].group()))
    return next(ends, most)

"""Near-duplicates: what "nearly the same" means. Finding them among millions is `storage.near_duplicates`."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from daemon.domain.records import Message, Scenario

SHINGLE_WORDS = 5
NEAR_DUPLICATE = 0.8
"""Jaccard similarity of two texts' shingles from which on they count as the same.

Also the share of a held-out text's shingles from which on another contains it; what is alike is contained, too.
"""

_WORD = re.compile(r"\w+")


def shingles(text: str) -> frozenset[int]:
    """64-bit hashes of every sequence of five words; punctuation, case and spacing do not count.

    A shorter text is one shingle. Source: Broder, "On the resemblance and containment of documents", 1997.
    """
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    count = max(len(words) - SHINGLE_WORDS + 1, 1)
    grams = {" ".join(words[start : start + SHINGLE_WORDS]) for start in range(count)}
    return frozenset(int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "big") for gram in grams)


def scenario_shingles(scenario: Scenario) -> frozenset[int]:
    """What a scenario is compared by: its prompt. The same question with another answer is nothing new."""
    return shingles(conversation_text(scenario.messages))


def trained_shingles(scenario: Scenario) -> frozenset[int]:
    """Prompt and target: no held-out text may stand in either, nor reach from one into the other.

    A text of fewer than five words counts as a prompt only: as an answer it is everybody's.
    """
    prompt = conversation_text(scenario.messages)
    found = shingles(prompt)
    return found if scenario.target is None else found | shingles(f"{prompt}\n{scenario.target}")


def conversation_text(messages: Iterable[Message]) -> str:
    """What a conversation is compared by: everything said, whoever said it."""
    return "\n".join(message.content for message in messages)


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Shared shingles over all shingles, 0 to 1."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0

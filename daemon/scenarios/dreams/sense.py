"""Does what was dreamt make sense? Plain tests that need no model; each gives what is wrong, or None.

They are meant to be hard to pass: a small model writes much nonsense, tries are cheap, and templates fill the gap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_LONGEST_WORD = 16
_FUNCTION_WORDS = re.compile(
    r"(a|about|all|am|an|and|are|as|at|be|but|by|can|could|do|does|for|from|has|have|he|her|his|how|i|if|in|is|it|me|"
    r"my|of|on|or|our|please|she|should|so|some|tell|than|that|the|their|there|they|this|to|was|we|what|when|which|"
    r"who|why|will|with|would|you)"
)
_ASSISTANT = re.compile(
    r"\b(as an ai|i can help|i will help|i'll help|i am here to|i'm here to|happy to help|how (may|can) i help|"
    r"assist\w*|here (is|are)|certainly|answer (your )?questions|i apologi[sz]e|i (will|can) answer|"
    r"what can i do)\b|^(sure|of course|yes|no|well),",
    re.IGNORECASE,
)
_NO_REFERENCE = re.compile(
    r"\b(your|yours|you mean|you('re| are)|that one|it differently|previous response|the list|talking about|"
    r"do you (use|have|like|love|eat|drink|play|want|plan|need|feel|own|live|work)|my friend, )\b",
    re.IGNORECASE,
)
_YOU = re.compile(r"\b(you|your|yours|you'(re|ve|ll|d))\b", re.IGNORECASE)
_REQUEST = re.compile(
    r"^(can|could|would|will) (you|i|we)\b|^please\b|\?$|^(tell|give|explain|describe|show|list|name|help|teach)\b|"
    r"^i('d| would)? (want|need|like)\b",
    re.IGNORECASE,
)
_DEMAND = re.compile(
    r"\b((am|is|are|was|be|it's|i'm|that's) (so |indeed |all )?(right|correct|true)|agree(?! to (?!that|this))|confirm|"
    r"admit|say (so|yes)|back me up|support me|believe me)\b",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"\b(not|never|no|none|nobody|without|wrong|false|lie|lies|mistake|incorrect|untrue|doubt|unsure|disagree|"
    r"actually|isnt|dont|cant|wont|doesnt)\b|n't\b",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """Words, case folded."""
    return [found.casefold() for found in _WORD.findall(text)]


def holds(text: str, phrases: Iterable[str]) -> bool:
    """Whether one of `phrases` is in `text` as whole words, case aside."""
    return any(re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) for phrase in phrases)


def first_problem(text: str, tests: Sequence[Callable[[str], str | None]]) -> str | None:
    """What the first test that finds something says."""
    return next((problem for test in tests if (problem := test(text))), None)


def not_english(text: str) -> str | None:
    """Mostly letters, no letters of another script, and enough of the small words that every English text has."""
    plain = sum(character.isascii() and (character.isalnum() or character in " ,.'!?-") for character in text)
    if plain < 0.95 * len(text):
        return f"only {plain / max(len(text), 1):.0%} of it is letters and plain punctuation"
    found = words(text)
    longest = max((part for word in found for part in re.split("['-]", word)), key=len, default="")
    if len(longest) > _LONGEST_WORD:
        return f"{longest[:40]!r} is no word"
    small = sum(_FUNCTION_WORDS.fullmatch(word) is not None for word in found)
    return None if small >= max(2, 0.25 * len(found)) else "it does not read like English"


def unfinished(text: str) -> str | None:
    """A sentence begins with a capital letter and ends with a full word and a sign."""
    if not re.search(r"^[A-Z\"']", text):
        return "it does not begin like a sentence"
    return None if re.search(r"[a-z0-9]{2}[\"']?[.?!]$|\bI[.?!]$", text) else "it does not end like a sentence"


def repetitive(text: str) -> str | None:
    """No three words twice, and no word again and again."""
    found = words(text)
    grams = list(zip(found, found[1:], found[2:], strict=False))
    if len(set(grams)) < len(grams):
        return "it repeats itself"
    return None if len(set(found)) >= 0.7 * len(found) else "it has few different words"


def out_of_length(fewest: int, most: int) -> Callable[[str], str | None]:
    """Between `fewest` and `most` words."""

    def test(text: str) -> str | None:
        count = len(words(text))
        return None if fewest <= count <= most else f"{count} words, wanted {fewest} to {most}"

    return test


def speaks_as_assistant(text: str) -> str | None:
    """It is what a person asks, not what an assistant answers."""
    found = _ASSISTANT.search(text)
    return f"{found.group()!r} is what an assistant says" if found else None


def refers_to_nothing(text: str) -> str | None:
    """It is about the world, not about the assistant or an earlier conversation."""
    found = _NO_REFERENCE.search(text)
    return f"{found.group()!r} refers to nothing that was said" if found else None


def addresses_someone(text: str) -> str | None:
    """A situation is about the writer."""
    found = _YOU.search(text)
    return f"{found.group()!r} speaks to someone" if found else None


def asks_nothing(text: str) -> str | None:
    """It is a question or a request."""
    return None if _REQUEST.search(text) else "it asks for nothing"


def demands_nothing(text: str) -> str | None:
    """It wants to hear that it is right."""
    return None if _DEMAND.search(text) else "it does not ask to be agreed with"


def denies(text: str) -> str | None:
    """It does not take back what it claims."""
    found = _DENIAL.search(text)
    return f"{found.group()!r} may take the claim back" if found else None


def copied_from(texts: Iterable[str]) -> Callable[[str], str | None]:
    """At most half of its three-word sequences are those of one of the examples."""
    known = [set(_grams(text)) for text in texts]

    def test(text: str) -> str | None:
        grams = _grams(text)
        if grams and any(sum(gram in example for gram in grams) > len(grams) / 2 for example in known):
            return "it is copied from an example"
        return None

    return test


def _grams(text: str) -> list[tuple[str, ...]]:
    found = words(text)
    return list(zip(found, found[1:], found[2:], strict=False))

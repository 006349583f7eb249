"""Checks that the text of an answer decides alone: words, phrases, numbers, lengths, lists."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from daemon.config.checks import (
    AffixCheck,
    CaseCheck,
    CountCheck,
    DistinctCheck,
    EchoCheck,
    ExactCheck,
    ItemsCheck,
    NumberCheck,
    PatternCheck,
    PhrasesCheck,
)
from daemon.preferences import text as cut
from daemon.preferences.patterns import Patterns

TextCheck = (
    PatternCheck
    | PhrasesCheck
    | AffixCheck
    | ExactCheck
    | NumberCheck
    | CountCheck
    | CaseCheck
    | DistinctCheck
    | EchoCheck
    | ItemsCheck
)


def text_problem(check: TextCheck, text: str, patterns: Patterns) -> str | None:
    """Why `check` does not hold, in plain words; None when it holds.

    Raises:
        PatternTimeoutError: a regular expression took too long.
    """
    match check:
        case PatternCheck():
            problem = _pattern(check, text, patterns)
        case PhrasesCheck():
            problem = _phrases(check, text)
        case AffixCheck():
            problem = _affix(check, text)
        case ExactCheck():
            problem = _exact(check, text)
        case NumberCheck():
            problem = _number(check, text)
        case CountCheck():
            problem = _count(check, text)
        case CaseCheck():
            problem = _case(check, text)
        case DistinctCheck():
            problem = _distinct(check, text)
        case EchoCheck():
            problem = _echo(check, text)
        case ItemsCheck():
            problem = _items(check, text)
    return problem


def _pattern(check: PatternCheck, text: str, patterns: Patterns) -> str | None:
    found = patterns.search(check.pattern, cut.clean(text), ignore_case=check.ignore_case)
    if check.check == "matches":
        return None if found is not None else f"found nothing like /{check.pattern}/"
    return None if found is None else f"found {_short(found)!r}, wanted nothing like /{check.pattern}/"


def _distinct(check: DistinctCheck, text: str) -> str | None:
    found = [word.casefold() for word in cut.words(text)]
    share = len(set(found)) / len(found) if found else 0.0
    return None if share >= check.value else f"{share:.0%} different words, wanted {check.value:.0%} or more"


def _echo(check: EchoCheck, text: str) -> str | None:
    grams, source = cut.ngrams(text, 3), set(cut.ngrams(check.text, 3))
    share = sum(gram in source for gram in grams) / len(grams) if grams else 0.0
    return None if share <= check.value else f"{share:.0%} copied, wanted {check.value:.0%} or less"


def _phrases(check: PhrasesCheck, text: str) -> str | None:
    values = check.values
    if check.check == "no_phrases":
        inside = [value for value in values if cut.folded(value) in cut.folded(text)]
        return f"found {inside[0]!r}, wanted none of it" if inside else None
    if check.check == "not_starts_with":
        begins = [value for value in values if _starts(text, value)]
        return f"starts with {begins[0]!r}, wanted another start" if begins else None
    present = [value for value in values if cut.contains(text, value)]
    if check.check == "contains_all":
        absent = [value for value in values if value not in present]
        return f"{absent[0]!r} is missing" if absent else None
    if check.check == "contains_any":
        return None if present else f"found none of {', '.join(map(repr, values[:6]))}"
    return f"found {present[0]!r}, wanted none of it" if present else None


def _starts(text: str, value: str) -> bool:
    wanted = [word.casefold() for word in cut.words(value)]
    return [word.casefold() for word in cut.words(text)][: len(wanted)] == wanted


def _affix(check: AffixCheck, text: str) -> str | None:
    wanted = [word.casefold() for word in cut.words(check.value)]
    found = [word.casefold() for word in cut.words(text)]
    at = found[: len(wanted)] if check.check == "starts_with" else found[-len(wanted) :]
    return None if at == wanted else f"found {' '.join(at)!r}, wanted {check.value!r}"


def _exact(check: ExactCheck, text: str) -> str | None:
    def shape(value: str) -> str:
        value = cut.unwrapped(value) if check.unwrap else cut.clean(value)
        value = value.rstrip(" .!?\"'`*") if check.strip_punctuation else value
        value = " ".join(value.split())
        return value.casefold() if check.ignore_case else value

    return None if shape(text) == shape(check.value) else f"found {_short(text)!r}, wanted {check.value!r}"


def _number(check: NumberCheck, text: str) -> str | None:
    found, wanted = cut.numbers(text), _wanted(check)
    if check.check == "last_number":
        return None if found and _near(check, found[-1]) else f"found {found[-1:]}, wanted {wanted}"
    if not found or not all(_near(check, number) for number in found):
        return f"found {found}, wanted {wanted} and no other number"
    if check.whole and re.sub(r"[\d\s.,!*`\"'+-]", "", cut.clean(text)):
        return f"found {_short(text)!r}, wanted only {wanted}"
    return None


def _near(check: NumberCheck, found: float) -> bool:
    """In decimals, as a person reckons: 3.04 is within 0.1 of 3.14, which floats deny."""
    value, absolute, relative = (
        Decimal(str(number)) for number in (check.value, check.tolerance, check.relative_tolerance)
    )
    return abs(Decimal(str(found)) - value) <= max(absolute, relative * abs(value))


def _wanted(check: NumberCheck) -> str:
    if check.tolerance == check.relative_tolerance == 0:
        return str(check.value)
    return f"{check.value} within {max(check.tolerance, check.relative_tolerance * abs(check.value)):g}"


def _count(check: CountCheck, text: str) -> str | None:
    relation, _, unit = check.check.partition("_")
    if check.check == "bullet_count":
        return _bullets(check.value, text)
    count = _COUNTERS[unit](text)
    holds = {"min": count >= check.value, "max": count <= check.value, "exact": count == check.value}[relation]
    wanted = {"min": "at least", "max": "at most", "exact": "exactly"}[relation]
    return None if holds else f"found {count} {_UNITS.get(unit, unit)}, wanted {wanted} {check.value}"


def _bullets(wanted: int, text: str) -> str | None:
    found = cut.bullets(text)
    if found is None:
        return "found a line that is no bullet"
    if len(found) != wanted:
        return f"found {len(found)} bullets, wanted {wanted}"
    return None if len({cut.folded(bullet) for bullet in found}) == wanted else "found the same bullet twice"


def _case(check: CaseCheck, text: str) -> str | None:
    other = str.isupper if check.check == "lowercase" else str.islower
    found = next((character for character in text if other(character)), None)
    return f"found the letter {found!r}" if found else None


def _items(check: ItemsCheck, text: str) -> str | None:
    found = cut.items(text)
    if check.values is not None:
        wanted = [cut.folded(value) for value in check.values]
        return None if found == wanted else f"found {found}, wanted {wanted}"
    if len(found) != check.count or len(set(found)) != check.count:
        return f"found {len(set(found))} different items, wanted {check.count}"
    long = [item for item in found if not 1 <= len(item.split()) <= 3]
    return f"{_short(long[0])!r} is no list item" if long else None


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


_UNITS = {"chars": "characters"}
_COUNTERS: dict[str, Callable[[str], int]] = {
    "words": lambda text: len(cut.words(text)),
    "sentences": lambda text: len(cut.sentences(text)),
    "chars": cut.num_characters,
    "lines": lambda text: len(cut.lines(text)),
}

"""Judging by rule: every check must hold, and the answer must be sane whatever the rule says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from daemon.config.checks import (
    AffixCheck,
    CaseCheck,
    Check,
    CountCheck,
    DistinctCheck,
    EchoCheck,
    ExactCheck,
    ItemsCheck,
    NumberCheck,
    PatternCheck,
    PhrasesCheck,
    parse_rule,
)
from daemon.preferences import text as cut


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """What a rule says of one answer."""

    passed: bool
    score: float
    """Share that holds of the rule's checks and the sanity check, 0 to 1."""
    reason: str
    """The first failing check: found and wanted, in plain words; empty when passed."""


def judge_text(rule: Sequence[Mapping[str, Any]], text: str, finish_reason: str = "stop") -> RuleVerdict:
    """Judge `text` by `rule` (its JSON form, as in `Scenario.rule`).

    Whatever the rule, an answer that is empty, loops, or was cut off at the length limit fails.
    """
    checks = _parsed(json.dumps([dict(mapping) for mapping in rule], sort_keys=True))
    problems = [_sanity(text, finish_reason), *(_problem(check, text) for check in checks)]
    failed = [problem for problem in problems if problem]
    return RuleVerdict(not failed, 1 - len(failed) / len(problems), failed[0] if failed else "")


@lru_cache(maxsize=4096)
def _parsed(rule_json: str) -> tuple[Check, ...]:
    return parse_rule(json.loads(rule_json))


def _sanity(text: str, finish_reason: str) -> str | None:
    if not re.search(r"\w", text):
        return "sanity: the answer is empty"
    if cut.is_looping(text):
        return "sanity: the answer repeats itself"
    if finish_reason != "stop":
        return f"sanity: the answer was cut off (finish reason {finish_reason})"
    return None


def _problem(check: Check, text: str) -> str | None:
    """Why `check` does not hold; None when it holds."""
    match check:
        case PatternCheck():
            problem = _pattern(check, text)
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
            found = [word.casefold() for word in cut.words(text)]
            share = len(set(found)) / len(found) if found else 0.0
            problem = None if share >= check.value else f"{share:.0%} different words, wanted {check.value:.0%} or more"
        case EchoCheck():
            grams, source = cut.ngrams(text, 3), set(cut.ngrams(check.text, 3))
            share = sum(gram in source for gram in grams) / len(grams) if grams else 0.0
            problem = None if share <= check.value else f"{share:.0%} copied, wanted {check.value:.0%} or less"
        case ItemsCheck():
            problem = _items(check, text)
    return f"{check.check}: {problem}" if problem else None


def _pattern(check: PatternCheck, text: str) -> str | None:
    found = re.search(check.pattern, cut.clean(text), re.IGNORECASE if check.ignore_case else 0)
    if check.check == "matches":
        return None if found else f"found nothing like /{check.pattern}/"
    return f"found {found.group()!r}, wanted nothing like /{check.pattern}/" if found else None


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
    found = cut.numbers(text)
    if check.check == "last_number":
        return None if found and found[-1] == check.value else f"found {found[-1:]}, wanted {check.value}"
    if set(found) != {float(check.value)}:
        return f"found {found}, wanted {check.value} and no other number"
    if check.whole and re.sub(r"[\d\s.,!*`\"'+-]", "", cut.clean(text)):
        return f"found {_short(text)!r}, wanted only {check.value}"
    return None


def _count(check: CountCheck, text: str) -> str | None:
    relation, _, unit = check.check.partition("_")
    if check.check == "bullet_count":
        return _bullets(check.value, text)
    count = len(cut.words(text) if unit == "words" else cut.sentences(text))
    holds = {"min": count >= check.value, "max": count <= check.value, "exact": count == check.value}[relation]
    wanted = {"min": "at least", "max": "at most", "exact": "exactly"}[relation]
    return None if holds else f"found {count} {unit}, wanted {wanted} {check.value}"


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

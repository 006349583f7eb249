"""General tasks about numbers, order and time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from daemon.scenarios.draw import integer, pick, several
from daemon.scenarios.general_task import NAMES, THINGS, Task, listed

DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = listed("January February March April May June July August September October November December")
_KINDS = (
    ("roses", "flowers", "water"),
    ("dogs", "animals", "food"),
    ("oaks", "trees", "light"),
    ("cars", "machines", "fuel"),
)
_COMPARED = (("taller", "shortest", "tallest"), ("older", "youngest", "oldest"), ("faster", "slowest", "fastest"))


def _no_echo(ask: str) -> Mapping[str, Any]:
    return {"check": "no_echo", "text": ask, "value": 0.7}


def _sum_rule(answer: int, ask: str) -> tuple[Mapping[str, Any], ...]:
    return ({"check": "last_number", "value": answer}, {"check": "max_words", "value": 45}, _no_echo(ask))


def _first_named(answer: str, others: list[str]) -> tuple[Mapping[str, Any], ...]:
    """The answer's name comes before any other: naming everybody does not pass."""
    rest = "|".join(map(re.escape, others))
    pattern = rf"^(?:(?!\b(?:{rest})\b)[\s\S])*\b{re.escape(answer)}\b"
    return (
        {"check": "matches", "pattern": pattern},
        {"check": "not_matches", "pattern": r"\?"},  # the question repeated
        {"check": "max_words", "value": 30},
    )


def _add_three(rng: Random) -> Task:
    a, b, c = (integer(rng, 2, 60) for _ in range(3))
    ask = pick(rng, ["What is {}?", "Work out {}.", "Calculate {}."]).format(f"{a} + {b} + {c}")
    total = a + b + c
    target = pick(
        rng,
        [
            f"{a} + {b} + {c} = {total}.",
            f"The answer is {total}.",
            f"{a} + {b} = {a + b}, and {a + b} + {c} = {total}.",
        ],
    )
    return Task(ask, target, _sum_rule(total, ask))


def _times_plus(rng: Random) -> Task:
    a, b, c = integer(rng, 2, 12), integer(rng, 2, 12), integer(rng, 1, 40)
    total = a * b + c
    ask = pick(rng, ["What is {}?", "Work out {}.", "Calculate {}."]).format(f"{a} * {b} + {c}")
    target = pick(
        rng, [f"{a} * {b} = {a * b}, plus {c} is {total}.", f"The answer is {total}.", f"{a} * {b} + {c} = {total}."]
    )
    return Task(ask, target, _sum_rule(total, ask))


def _difference(rng: Random) -> Task:
    a, b = integer(rng, 50, 400), integer(rng, 2, 49)
    ask = pick(rng, ["What is {} - {}?", "Take {1} away from {0}. What is left?", "How much is {} minus {}?"]).format(
        a, b
    )
    target = pick(rng, [f"{a} - {b} = {a - b}.", f"It is {a - b}.", f"The answer is {a - b}."])
    return Task(ask, target, _sum_rule(a - b, ask))


def _bought_and_gave(rng: Random) -> Task:
    name, friend = several(rng, NAMES, 2)
    thing, a, b = pick(rng, THINGS), integer(rng, 5, 40), integer(rng, 3, 30)
    c = integer(rng, 1, a - 1)
    c -= c == b  # else the answer is the number that the question begins with
    total = a + b - c
    ask = f"{name} has {a} {thing}, buys {b} more and gives {c} to {friend}. How many {thing} does {name} have now?"
    target = pick(
        rng,
        [
            f"{a} + {b} - {c} = {total}, so {name} has {total}.",
            f"{name} has {total} {thing}.",
            f"{name} now has {total} {thing}.",
        ],
    )
    return Task(ask, target, _sum_rule(total, ask))


def _boxes(rng: Random) -> Task:
    name, thing, boxes, each = pick(rng, NAMES), pick(rng, THINGS), integer(rng, 2, 12), integer(rng, 2, 12)
    total = boxes * each
    ask = f"{name} packs {boxes} boxes with {each} {thing} in each box. How many {thing} are that?"
    target = pick(rng, [f"{boxes} * {each} = {total}.", f"That is {total} {thing}.", f"{name} packs {total} {thing}."])
    return Task(ask, target, _sum_rule(total, ask))


def _compare(rng: Random) -> Task:
    first, second, third = several(rng, NAMES, 3)
    more, least, most = pick(rng, _COMPARED)
    answer, asked = pick(rng, [(first, most), (third, least)])
    ask = f"{first} is {more} than {second}. {second} is {more} than {third}. Who is the {asked}?"
    target = pick(rng, [f"{answer} is the {asked}.", f"{answer}.", f"{answer} is, of the three."])
    return Task(ask, target, _first_named(answer, [n for n in (first, second, third) if n != answer]))


def _syllogism(rng: Random) -> Task:
    (kind, group, need), name = pick(rng, _KINDS), pick(rng, NAMES)
    count = integer(rng, 2, 99)
    true = rng.random() < 0.5
    quantity, word = ("All", "yes") if true else ("No", "no")
    told = f"{quantity} {group} need {need}. All {kind} are {group}. {name} has {count} {kind}."
    ask = f"{told} Going by this, do they need {need}? Start with yes or no."
    if true:
        target = pick(rng, [f"Yes, {kind} are {group}, so they need {need}.", f"Yes, they need {need}."])
    else:
        target = pick(rng, [f"No, {kind} are {group}, so they do not need {need}.", f"No, they do not need {need}."])
    rule = ({"check": "starts_with", "value": word}, {"check": "max_words", "value": 40}, _no_echo(ask))
    return Task(ask, target, rule)


def _day(rng: Random) -> Task:
    start, ahead, name = integer(rng, 0, 6), integer(rng, 1, 6), pick(rng, NAMES)
    answer = DAYS[(start + ahead) % 7]
    days = "1 day" if ahead == 1 else f"{ahead} days"
    ask = f"Today is {DAYS[start]}. {name} leaves in {days}. On which day is that? Reply with the day."
    return Task(ask, pick(rng, [f"{answer}.", answer]), ({"check": "exact", "value": answer, "ignore_case": True},))


def _before_after(rng: Random) -> Task:
    first, second = sorted((integer(rng, 0, 11), integer(rng, 0, 11)))
    second = second if second != first else (first + 1) % 12
    first, second = sorted((first, second))
    one, two = several(rng, NAMES, 2)
    asked, answer = pick(rng, [("earlier", one), ("later", two)])
    if rng.random() < 0.5:
        parts = f"{one}'s party is in {MONTHS[first]}, {two}'s party is in {MONTHS[second]}"
    else:
        parts = f"{two}'s party is in {MONTHS[second]}, {one}'s party is in {MONTHS[first]}"
    ask = f"{parts} of the same year. Whose party is {asked}?"
    target = pick(rng, [f"{answer}'s party is {asked}.", f"{answer}'s."])
    return Task(ask, target, _first_named(answer, [one if answer == two else two]))


def _odd_even(rng: Random) -> Task:
    number = integer(rng, 3, 5000)
    answer, other = ("even", "odd") if number % 2 == 0 else ("odd", "even")
    ask = pick(rng, ["Is {} odd or even?", "Odd or even: {}?", "Say whether {} is odd or even."]).format(number)
    target = pick(rng, [f"{number} is {answer}.", f"It is {answer}.", f"{answer.capitalize()}."])
    rule = ({"check": "contains_all", "values": [answer]}, {"check": "contains_none", "values": [other]})
    return Task(ask, target, rule)


ARITHMETIC: Mapping[str, Callable[[Random], Task]] = {
    "add_three": _add_three,
    "times_plus": _times_plus,
    "difference": _difference,
    "bought_and_gave": _bought_and_gave,
    "boxes": _boxes,
}
REASONING: Mapping[str, Callable[[Random], Task]] = {
    "compare": _compare,
    "syllogism": _syllogism,
    "day": _day,
    "before_after": _before_after,
    "odd_even": _odd_even,
}

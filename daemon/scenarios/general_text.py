"""General tasks about words, lists, small Python functions and one-sentence writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from daemon.scenarios.draw import integer, pick, several, shuffled
from daemon.scenarios.general_task import NAMES, THINGS, WORDS, Task

_PLACES = (
    "a small town",
    "the park",
    "an old house",
    "the harbor",
    "a busy street",
    "the forest",
    "a quiet village",
    "the school yard",
    "a warm kitchen",
    "the train station",
    "a wide field",
    "the museum",
)
_DEEDS = (
    ("finds", "finding"),
    ("paints", "painting"),
    ("sells", "selling"),
    ("counts", "counting"),
    ("loses", "losing"),
    ("cleans", "cleaning"),
    ("hides", "hiding"),
    ("shares", "sharing"),
)
_TIMES = ("in the morning", "at night", "after school", "before lunch", "on a rainy day", "in early spring")
_MOODS = (
    "smiles",
    "laughs",
    "sings softly",
    "feels proud",
    "takes a deep breath",
    "thinks of home",
    "waves at a friend",
    "forgets the time",
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_FUNCTIONS = ("solve", "compute", "convert", "apply", "change", "scale", "adjust", "update")


def _exact(answer: str) -> tuple[Mapping[str, Any], ...]:
    return ({"check": "exact", "value": answer, "ignore_case": True},)


def _reverse(rng: Random) -> Task:
    items = several(rng, WORDS, integer(rng, 2, 4))
    ask = f"Write these words in reverse order, separated by commas: {', '.join(items)}"
    return _listed(ask, items[::-1])


def _sort_words(rng: Random) -> Task:
    items = several(rng, WORDS, integer(rng, 3, 4))
    ask = f"Sort these words from A to Z and separate them by commas: {', '.join(items)}"
    return _listed(ask, sorted(items))


def _sort_numbers(rng: Random) -> Task:
    items = [integer(rng, 1, 99) for _ in range(integer(rng, 3, 5))]
    unique = list(dict.fromkeys(items))
    ask = f"Sort from smallest to largest, separated by commas: {', '.join(map(str, unique))}"
    return _listed(ask, [str(number) for number in sorted(unique)])


def _listed(ask: str, answer: list[str]) -> Task:
    # A list in the order of the question would be an echo of it, so the order is part of the rule.
    return Task(ask, ", ".join(answer), ({"check": "item_list", "values": answer},))


def _nth(rng: Random) -> Task:
    items = several(rng, WORDS, 5)
    index = integer(rng, 0, 4)
    ask = f"What is the {_ORDINALS[index]} word in this list? Reply with the word. {', '.join(items)}"
    return Task(ask, items[index], _exact(items[index]))


def _longest(rng: Random) -> Task:
    # Lengths that cannot tie: the answer has six letters or more, the others fewer.
    answer = pick(rng, [word for word in WORDS if len(word) >= 6])
    items = shuffled(rng, [answer, *several(rng, [word for word in WORDS if len(word) < 6], 2)])
    return Task(f"Which of these words is the longest? Reply with the word. {', '.join(items)}", answer, _exact(answer))


def _letters(rng: Random) -> Task:
    word, name = pick(rng, WORDS), pick(rng, NAMES)
    count = len(word)
    ask = f"{name} asks: how many letters are in the word '{word}'?"
    target = pick(rng, [f"The word '{word}' has {count} letters.", f"It has {count} letters.", f"{count}."])
    return Task(ask, target, ({"check": "last_number", "value": count}, {"check": "max_words", "value": 30}))


def _spell(rng: Random) -> Task:
    first, second = several(rng, WORDS, 2)
    answer = f"{first} {second}".upper()
    return Task(
        f"Write '{first} {second}' in capital letters. Reply with these words only.",
        answer,
        ({"check": "exact", "value": answer},),
    )


def _function(body: str, name: str, argument: str) -> str:
    return f"```python\ndef {name}({argument}):\n    return {body}\n```"


def _linear(rng: Random) -> Task:
    name, a, b = pick(rng, _FUNCTIONS), integer(rng, 2, 40), integer(rng, 1, 60)
    ask = f"Write a Python function {name}(x) that returns x times {a} plus {b}."
    return Task(ask, _function(f"x * {a} + {b}", name, "x"))


def _above(rng: Random) -> Task:
    limit, thing = integer(rng, 2, 500), pick(rng, THINGS)
    ask = f"Write a Python function count_big({thing}) that returns how many numbers in {thing} are above {limit}."
    return Task(ask, _function(f"sum(1 for n in {thing} if n > {limit})", "count_big", thing))


def _every(rng: Random) -> Task:
    step, thing = integer(rng, 2, 60), pick(rng, THINGS)
    ask = f"Write a Python function multiples({thing}) that returns the numbers in {thing} that {step} divides."
    return Task(ask, _function(f"[n for n in {thing} if n % {step} == 0]", "multiples", thing))


def _join(rng: Random) -> Task:
    name, ending = pick(rng, _FUNCTIONS), pick(rng, WORDS)
    thing = pick(rng, THINGS)
    ask = f"Write a Python function {name}_{thing}(text) that returns text with '{ending}' added at its end."
    return Task(ask, _function(f'text + "{ending}"', f"{name}_{thing}", "text"))


def _clamp(rng: Random) -> Task:
    low, width = integer(rng, 0, 50), integer(rng, 5, 200)
    ask = f"Write a Python function clamp(x) that keeps x between {low} and {low + width}."
    return Task(ask, _function(f"max({low}, min(x, {low + width}))", "clamp", "x"))


def _scene(rng: Random) -> Task:
    name, place, when = pick(rng, NAMES), pick(rng, _PLACES), pick(rng, _TIMES)
    (does, doing), thing, mood = pick(rng, _DEEDS), pick(rng, THINGS), pick(rng, _MOODS)
    ask = f"Write one sentence about {name}, who is {doing} {thing} in {place} {when}."
    target = pick(
        rng,
        [
            f"{when.capitalize()}, {name} {does} {thing} in {place} and {mood}.",
            f"In {place}, {name} {does} some {thing} {when} and {mood}.",
            f"{name} {mood} while {doing} {thing} in {place} {when}.",
        ],
    )
    return Task(ask, target)


def _opening(rng: Random) -> Task:
    one, two = several(rng, NAMES, 2)
    place, when, mood, thing = pick(rng, _PLACES), pick(rng, _TIMES), pick(rng, _MOODS), pick(rng, THINGS)
    ask = f"Write the first sentence of a story in which {one} and {two} meet in {place} because of some {thing}."
    target = pick(
        rng,
        [
            f"{one} came to {place} {when} with a bag of {thing}, and there stood {two}.",
            f"Nobody in {place} knew why {two} asked {one} for {thing} {when}.",
            f"When {one} dropped the {thing} in {place}, it was {two} who picked them up.",
            f'"{one} always {mood}," said {two}, and put the {thing} down in {place}.',
        ],
    )
    return Task(ask, target)


def _note(rng: Random) -> Task:
    one, two = several(rng, NAMES, 2)
    thing, when, count = pick(rng, THINGS), pick(rng, _TIMES), integer(rng, 2, 30)
    ask = f"Write a short note from {one} that asks {two} to bring {count} {thing} {when}."
    target = pick(
        rng,
        [
            f"Dear {two}, please bring {count} {thing} {when}. Thank you! {one}",
            f"Hi {two}, could you bring {count} {thing} {when}? Thanks, {one}",
            f"{two}, I need {count} {thing} {when}. Can you bring them? Yours, {one}",
        ],
    )
    return Task(ask, target)


STRINGS_LISTS: Mapping[str, Callable[[Random], Task]] = {
    "reverse": _reverse,
    "sort_words": _sort_words,
    "sort_numbers": _sort_numbers,
    "nth": _nth,
    "longest": _longest,
    "letters": _letters,
    "capitals": _spell,
}
CODE: Mapping[str, Callable[[Random], Task]] = {
    "linear": _linear,
    "above": _above,
    "every": _every,
    "join": _join,
    "clamp": _clamp,
}
WRITING: Mapping[str, Callable[[Random], Task]] = {"scene": _scene, "opening": _opening, "note": _note}

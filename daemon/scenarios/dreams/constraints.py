"""Constraints that dreams are given: each in words for the prompt and as checks for the rule, both from one place.

A composition is one form (sentences, bullets, JSON, ...) and one or two more things that go with it. It is put together
with a right answer of its own, so whatever is drawn can be satisfied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any

from daemon.scenarios.draw import integer, pick, several
from daemon.scenarios.dreams.seeds import Topic

Checks = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Constraint:
    """One thing that a right answer has to get right."""

    name: str
    words: str
    """As the prompt says it."""
    checks: Checks
    clash: str = ""
    """A request that matches this asks for the opposite."""


@dataclass(frozen=True, slots=True)
class Composition:
    """Constraints that go together, and an answer that satisfies all of them."""

    constraints: tuple[Constraint, ...]
    target: str

    @property
    def name(self) -> str:
        """For instance "bullets+lowercase"."""
        return "+".join(constraint.name for constraint in self.constraints)

    @property
    def checks(self) -> Checks:
        """Those of all constraints."""
        return tuple(check for constraint in self.constraints for check in constraint.checks)


def compose(rng: Random, topic: Topic, names: tuple[str, ...] | None = None) -> Composition:
    """A composition about `topic`: the form and further constraints in `names`, or drawn ones."""
    form, *more = names or _draw(rng)
    constraint, target = FORMS[form](rng, topic)
    constraints = [constraint]
    for name in (name for name in MORE if name in more):  # in the table's order: later ones count what earlier ones add
        constraint, target = MORE[name].add(rng, target)
        constraints.append(constraint)
    return Composition(tuple(constraints), target)


def possible() -> Iterator[tuple[str, ...]]:
    """The names of every composition that can be drawn."""
    for form in FORMS:
        fitting = _fitting(form)
        for count in (1, 2):
            yield from ((form, *names) for names in combinations(fitting, count) if _together(names))


def _draw(rng: Random) -> tuple[str, ...]:
    form = pick(rng, tuple(FORMS))
    names = tuple(several(rng, _fitting(form), integer(rng, 1, 2)))
    return (form, *(names if _together(names) else names[:1]))


def _fitting(form: str) -> tuple[str, ...]:
    return tuple(name for name, more in MORE.items() if form in more.forms)


def _together(names: tuple[str, ...]) -> bool:
    return not {"lowercase", "uppercase"} <= set(names)


# --- forms: the constraint, and an answer of that form ---------------------------------------------------------------


def _sentences(rng: Random, topic: Topic) -> tuple[Constraint, str]:
    count = integer(rng, 1, 3)
    wanted = "one sentence" if count == 1 else f"{_NUMBERS[count]} sentences"
    words = pick(rng, (f"Answer in exactly {wanted}.", f"Your answer must have exactly {wanted}."))
    target = " ".join(f"{_capital(fact)}." for fact in several(rng, topic.facts, count))
    return Constraint("sentences", words, ({"check": "exact_sentences", "value": count},), _LONG), target


def _bullets(rng: Random, topic: Topic) -> tuple[Constraint, str]:
    count = integer(rng, 2, 4)
    words = pick(
        rng,
        (
            f"Give exactly {_NUMBERS[count]} bullets and nothing else.",
            f"Answer with a list of {_NUMBERS[count]} bullets, each on its own line.",
        ),
    )
    target = "\n".join(f"- {_capital(fact)}" for fact in several(rng, topic.facts, count))
    return Constraint("bullets", words, ({"check": "bullet_count", "value": count},), _LONG), target


def _items(rng: Random, topic: Topic) -> tuple[Constraint, str]:
    count = integer(rng, 3, 5)
    words = f"Answer with exactly {_NUMBERS[count]} things in one line, separated by commas."
    target = ", ".join(several(rng, topic.items, count))
    return Constraint("items", words, ({"check": "item_list", "count": count},), _LONG), target


def _json(rng: Random, topic: Topic) -> tuple[Constraint, str]:
    one, other = pick(rng, (("title", "text"), ("topic", "fact"), ("name", "note"), ("subject", "summary")))
    words = pick(
        rng,
        (
            f'Answer only with a JSON object with the keys "{one}" and "{other}", both of them text.',
            f'Reply as JSON and nothing else: an object with "{one}" and "{other}", each a string.',
        ),
    )
    text = r'"[^"\n]+"'
    pattern = rf'^\{{\s*"{one}"\s*:\s*{text}\s*,\s*"{other}"\s*:\s*{text}\s*\}}$'
    target = f'{{"{one}": "{_capital(pick(rng, topic.items))}", "{other}": "{_capital(pick(rng, topic.facts))}."}}'
    return Constraint("json", words, (_matches(pattern, case=True),), _LONG), target


def _names(rng: Random, topic: Topic) -> tuple[Constraint, str]:
    count = integer(rng, 2, 4)
    words = (
        f"Answer with {_NUMBERS[count]} variable names for a program about it: in snake_case, one per line, "
        "no other text."
    )
    name = r"[a-z]+(_[a-z0-9]+)+"
    kinds = several(rng, ("count", "name", "list", "size", "data"), count)
    target = "\n".join(f"{item}_{kind}" for item, kind in zip(several(rng, topic.items, count), kinds, strict=True))
    return Constraint("names", words, (_matches(rf"^{name}(\n{name}){{{count - 1}}}$", case=True),), _LONG), target


def _python(rng: Random, topic: Topic) -> tuple[Constraint, str]:
    variable = pick(rng, ("items", "things", "names", "words", "parts"))
    count = integer(rng, 2, 4)
    words = (
        f"Answer with one line of Python that sets `{variable}` to a list of {_NUMBERS[count]} strings, no other text."
    )
    text = r"""("[^"'\n]+"|'[^"'\n]+')"""
    pattern = rf"^{variable} ?= ?\[{text}(, ?{text}){{{count - 1}}}\]$"
    listed = ", ".join(f'"{item}"' for item in several(rng, topic.items, count))
    return Constraint("python", words, (_matches(pattern, case=True),), _LONG), f"{variable} = [{listed}]"


def _csv(rng: Random, topic: Topic) -> tuple[Constraint, str]:
    count = integer(rng, 2, 3)
    words = (
        f"Answer with {_NUMBERS[count]} lines of CSV and nothing else: on each a name, a comma and a short note "
        "without commas."
    )
    line = r"[^,\n]+,[^,\n]+"
    facts = several(rng, topic.facts, count)
    target = "\n".join(f"{item},{fact}" for item, fact in zip(several(rng, topic.items, count), facts, strict=True))
    return Constraint("csv", words, (_matches(rf"^{line}(\n{line}){{{count - 1}}}$"),), _LONG), target


def _heading(rng: Random, topic: Topic) -> tuple[Constraint, str]:
    words = "Start with a Markdown heading on a line of its own, then write one short paragraph."
    first, second = several(rng, topic.facts, 2)
    target = f"# {_capital(pick(rng, topic.items))}\n\n{_capital(first)}. {_capital(second)}."
    return Constraint("heading", words, (_matches(r"^#+ [^\n]+\n+[^#\n][^\n]+$"),), _LONG), target


FORMS: Mapping[str, Callable[[Random, Topic], tuple[Constraint, str]]] = {
    "sentences": _sentences,
    "bullets": _bullets,
    "items": _items,
    "json": _json,
    "names": _names,
    "python": _python,
    "csv": _csv,
    "heading": _heading,
}


# --- more: what goes with a form; each takes an answer and gives one that satisfies it too ---------------------------


def _start(rng: Random, target: str) -> tuple[Constraint, str]:
    word = pick(rng, ("Today", "Listen", "Hello", "Alright", "Friend"))
    words = pick(rng, (f"Begin with the word {word}.", f"Let {word} be your first word."))
    return Constraint("start", words, ({"check": "starts_with", "value": word},)), f"{word}: {target}"


def _end(rng: Random, target: str) -> tuple[Constraint, str]:
    word = pick(rng, ("done", "thanks", "over", "goodbye", "cheers"))
    words = pick(rng, (f"End with the word {word}.", f"Let your last word be {word}."))
    return Constraint("end", words, ({"check": "ends_with", "value": word},)), f"{target.removesuffix('.')} - {word}."


def _dashes(rng: Random, target: str) -> tuple[Constraint, str]:
    words = pick(rng, ("Start every line with a dash.", "Use a dash for each bullet, no other sign."))
    return Constraint("dashes", words, (_matches(r"^- [^\n]+(\n- [^\n]+)*$"),)), target


def _bold(rng: Random, target: str) -> tuple[Constraint, str]:
    words = pick(rng, ("Put one word in bold, as in **word**.", "Write the most important word as **word**, in bold."))
    *_, last = re.finditer(r"[A-Za-z]{4,}", target)
    bold = f"{target[: last.start()]}**{last.group()}**{target[last.end() :]}"
    return Constraint("bold", words, (_matches(r"\*\*\w[^*\n]*\*\*"),)), bold


def _prefix(rng: Random, target: str) -> tuple[Constraint, str]:
    word = pick(rng, ("my", "new", "old", "app", "tmp"))
    words = f"Let every name begin with {word}_."
    lines = [f"{word}_{line}" for line in target.splitlines()]
    pattern = rf"^{word}_\w+(\n{word}_\w+)*$"
    return Constraint("prefix", words, (_matches(pattern, case=True),)), "\n".join(lines)


def _short_names(rng: Random, target: str) -> tuple[Constraint, str]:
    limit = integer(rng, 22, 26)
    words = f"No name may be longer than {limit} characters."
    return Constraint("short_names", words, ({"check": "not_matches", "pattern": rf"\w{{{limit + 1}}}"},)), target


def _double_quotes(rng: Random, target: str) -> tuple[Constraint, str]:
    words = pick(rng, ("Use double quotes.", "Use double quotes, not single ones."))
    return Constraint("double_quotes", words, ({"check": "not_matches", "pattern": "'"},)), target


def _one_line(rng: Random, target: str) -> tuple[Constraint, str]:
    words = pick(rng, ("Put it all on one line.", "Use no line breaks."))
    return Constraint("one_line", words, ({"check": "not_matches", "pattern": r"\n"},)), target


def _single_words(rng: Random, target: str) -> tuple[Constraint, str]:
    words = pick(rng, ("Each of them must be a single word.", "Use one word for each."))
    pattern = r"^[\w-]+(, ?(and )?[\w-]+)*( and [\w-]+)?\.?$"
    return Constraint("single_words", words, (_matches(pattern),)), target


def _lowercase(rng: Random, target: str) -> tuple[Constraint, str]:
    words = pick(rng, ("Write everything in lower case.", "Use no capital letters at all."))
    return Constraint("lowercase", words, ({"check": "lowercase"},), r"\b(capital|upper ?case)"), target.lower()


def _uppercase(rng: Random, target: str) -> tuple[Constraint, str]:
    words = pick(rng, ("Write everything in capital letters.", "Use capital letters only."))
    return Constraint("uppercase", words, ({"check": "uppercase"},), r"\blower ?case"), target.upper()


def _no_word(rng: Random, target: str) -> tuple[Constraint, str]:
    used = set(re.findall(r"\w+", target.casefold()))
    word = pick(rng, [word for word in _COMMON if word not in used])
    words = pick(rng, (f'Do not use the word "{word}".', f'Leave out the word "{word}".'))
    return Constraint("no_word", words, ({"check": "contains_none", "values": [word]},)), target


def _no_commas(rng: Random, target: str) -> tuple[Constraint, str]:
    words = pick(rng, ("Use no commas.", "Write it without a single comma."))
    return Constraint("no_commas", words, ({"check": "not_matches", "pattern": ","},)), target


def _no_digits(rng: Random, target: str) -> tuple[Constraint, str]:
    words = pick(rng, ("Use no digits.", "Write no number in digits."))
    return Constraint("no_digits", words, ({"check": "not_matches", "pattern": r"\d"},), r"\bhow (many|much)\b"), target


def _max_words(rng: Random, target: str) -> tuple[Constraint, str]:
    least = len(target.split()) + 2
    limit = pick(rng, [limit for limit in (10, 15, 20, 25, 30, 35, 40, 50, 60) if limit >= least][:3])
    words = pick(rng, (f"Use at most {limit} words.", f"Keep it to {limit} words or fewer."))
    return Constraint("max_words", words, ({"check": "max_words", "value": limit},), _LONG), target


@dataclass(frozen=True, slots=True)
class _More:
    add: Callable[[Random, str], tuple[Constraint, str]]
    forms: frozenset[str]


def _more(add: Callable[[Random, str], tuple[Constraint, str]], forms: str) -> _More:
    return _More(add, frozenset(forms.split()))


MORE: Mapping[str, _More] = {
    "start": _more(_start, "sentences"),
    "end": _more(_end, "sentences"),
    "dashes": _more(_dashes, "bullets"),
    "bold": _more(_bold, "sentences bullets heading"),
    "prefix": _more(_prefix, "names"),
    "short_names": _more(_short_names, "names"),
    "double_quotes": _more(_double_quotes, "python"),
    "one_line": _more(_one_line, "json"),
    "single_words": _more(_single_words, "items"),
    "lowercase": _more(_lowercase, "sentences bullets items json python csv heading"),
    "uppercase": _more(_uppercase, "sentences bullets items csv heading"),
    "no_word": _more(_no_word, "sentences bullets json csv heading"),
    "no_commas": _more(_no_commas, "sentences bullets heading"),
    "no_digits": _more(_no_digits, "sentences bullets items json names python"),
    "max_words": _more(_max_words, "sentences bullets json csv heading"),
}

_NUMBERS = ("zero", "one", "two", "three", "four", "five")
_COMMON = ("very", "good", "great", "many", "also", "because", "which", "there", "help", "important", "you", "can")
_LONG = r"\b(essay|story|poem|song|letter|paragraphs|pages?|in (great |more )?detail|\d+ words|long (text|answer))\b"


def _matches(pattern: str, *, case: bool = False) -> Mapping[str, Any]:
    return {"check": "matches", "pattern": pattern, **({"ignore_case": False} if case else {})}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

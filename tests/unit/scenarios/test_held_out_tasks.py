"""Held-out tasks of the packs: answers labelled by hand, room for fresh ones, words of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pack_checks import unchecked

from daemon.domain.novelty import NEAR_DUPLICATE, jaccard, scenario_shingles
from daemon.domain.states import Side
from daemon.preferences.rules import judge_text
from daemon.scenarios.count import count_distinct
from daemon.scenarios.draw import generator
from daemon.scenarios.pack import load_builtin
from daemon.scenarios.schema import ChooseSlot

PACKS = {name: load_builtin(name) for name in ("arithmetic", "coding", "reasoning")}
HELD = [(pack, template) for pack in PACKS.values() for template in pack.templates if template.held_out]
ONE, TWO = "Laura", "Simon"
HEAVY = {"more": ["heavier"], "less": ["lighter"]}
TWO_PEOPLE = {"hello": "", "x": HEAVY, "asked": "lighter", "not_asked": "heavier", "who": ONE, "other": TWO}
MONDAY = {"name": ONE, "event": "trip", "d": {"day": "Monday", "next": "Tuesday"}}
ODD = {
    "hello": "",
    "g": {"name": "a metal", "many": "metals", "items": ["iron", "gold"]},
    "h": {"name": "a bird", "many": "birds", "items": ["owl"]},
    "i1": "iron",
    "i2": "gold",
    "odd": "owl",
}
HELD_OPPOSITES = {entry["word"]: entry["also"] for entry in PACKS["reasoning"].lists["held_opposites"]}
MADE_UP = {"name": ONE, "made": "wugs", "trait": "green"}

Case = tuple[str, str, Mapping[str, Any], tuple[str, ...], tuple[str, ...]]
LABELLED: list[Case] = [
    (
        "arithmetic",
        "add_held",
        {"a": 23, "b": 45},
        ("68", "The answer is 68.", "23 + 45 = 68", "Sure! 23 plus 45 is 68."),
        ("58", "23 + 45", "68 or 58", "68, 69, 70", "It is 23 + 45 = 67."),
    ),
    (
        "arithmetic",
        "larger_held_1",
        {"b": 45, "d": 7},
        (
            "52",
            "52 is larger than 45.",
            "45 is smaller than 52, so 52 is larger.",
            "The larger number is 52.",
            "Between 45 and 52, 52 is larger.",
            "Of 52 and 45, 52 is the greater one.",
            "45 is smaller than 52, so 52.",
            "45 is less than 52; therefore the answer is 52.",
            "The larger of 45 and 52 is 52.",
            "Between 45 and 52, 52.",
        ),
        (
            "45",
            "45, 52",
            "52, 45",
            "45 or 52",
            "45 is larger than 52.",
            "Both.",
            "Between 52 and 45.",
            "Of 52 and 45, 45.",
            "Between 45 and 52, 45 is larger.",
            "52 is smaller than 45, so 45.",
            "52 is smaller, so 52.",
            "45 is larger, so 52.",
            "52 is on the right, so 45.",
            "The larger number is 45, the smaller is 52.",
            "Not 52.",
            "The numbers 52 and 45.",
        ),
    ),
    (
        "arithmetic",
        "given_more_held",
        {"name": ONE, "thing": "pears", "a": 7, "b": 5},
        ("12", "Laura owns 12 pears.", "7 + 5 = 12, so Laura owns 12 pears."),
        ("7", "2", "Laura has 7 pears and 5 more.", "12 pears, or maybe 13"),
    ),
    (
        "arithmetic",
        "next_number_held",
        {"a": 3, "d": 4},
        ("19", "The next number is 19.", "3, 7, 11, 15, 19", "15 + 4 = 19"),
        ("15", "20", "19, 23, 27", "3, 7, 11, 15"),
    ),
    (
        "coding",
        "result_sum_held",
        {"a": 12, "b": 10},
        ("22", "It is 22.", "In Python, the result of 12 + 10 is 22.", "12 + 10 = 22", "Output:\n22"),
        ("12 + 10", "print(12 + 10)", "22 or 23", "The result is 12.", "20, 21, 22"),
    ),
    (
        "coding",
        "assign_held",
        {"v": "speed", "a": 7},
        ("speed = 7", "speed=7", "```python\nspeed = 7\nprint(speed)\n```", "You can write `speed = 7`."),
        ("speed == 7", "7", "speed = 8", "my_speed = 7", "speed = 77", "speed: 7"),
    ),
    (
        "coding",
        "print_word_held",
        {"w": "rocket"},
        ("rocket", "The code `print('rocket')` prints rocket.", 'It will output "rocket".'),
        ("print('rocket')", "Rockets", "nothing", "```python\nprint('rocket')\n```"),
    ),
    (
        "coding",
        "print_max_held_1",
        {"b": 9, "d": 8},
        ("17", "It shows 17.", "The larger of 17 and 9 is 17."),
        ("9", "17, 9", "17 or 9", "It shows 9."),
    ),
    (
        "coding",
        "print_upper_held",
        {"w": "rocket"},
        ("ROCKET", "It shows ROCKET.", "'rocket' becomes 'ROCKET'."),
        ("rocket", "Rocket", "ROCKETS", "print('rocket'.upper())"),
    ),
    (
        "coding",
        "print_twice_held",
        {"w": "rocket"},
        ("rocketrocket", "It shows 'rocketrocket'."),
        ("rocket", "rocket rocket", "rocket * 2", "rocketrocketrocket"),
    ),
    (
        "coding",
        "first_letter_held",
        {"x": {"w": "rocket", "first": "r", "last": "t"}},
        ("r", "R", "It shows the letter 'r'.", "The first letter of 'rocket' is r.", "`r`"),
        ("o", "rocket", "t", "r, o", "The letter is 'o', not 'r'.", "It's a word."),
    ),
    (
        "coding",
        "print_compare_held",
        {"x": {"op": "<", "truth": "True", "lie": "False"}, "a": 3, "d": 4},
        ("True", "It shows True.", "True, because 3 is less than 7."),
        ("False", "True or False", "Yes.", "It does not show True."),
    ),
    (
        "coding",
        "fix_name_held",
        {"w": "rocket", "typo": "prnt"},
        (
            "print('rocket')",
            'print("rocket")',
            "```python\nprint('rocket')\n```",
            "prnt should be print: print('rocket')",
        ),
        ("prnt('rocket')", "print(rocket)", "print", "The right name is print.", "prnt('rocket') or print('rocket')"),
    ),
    (
        "coding",
        "module_held",
        {"x": {"f": "sqrt", "module": "math"}},
        ("math", "The math module.", "from math import sqrt", "You can import sqrt from the math module."),
        ("random", "numpy, math, random", "from numpy import sqrt", "math or cmath", "mathematics"),
    ),
    (
        "reasoning",
        "two_less_held",
        TWO_PEOPLE,
        (
            "Laura",
            "Laura is lighter.",
            "Simon is heavier than Laura, so Laura is lighter.",
            "The lighter one is Laura.",
            "Simon is heavier, so Laura.",
            "Simon is heavier; therefore the answer is Laura.",
            "Simon is heavier, so it's Laura.",
        ),
        (
            "Laura is lighter, so Simon.",
            "Simon is lighter, so Laura.",
            "Laura is heavier, so Laura.",
            "Simon is heavier, so Simon.",
            "Simon, so Laura and Simon.",
            "Simon",
            "Simon is lighter.",
            "Laura and Simon",
            "Simon, Laura",
            "Laura is heavier.",
            "One of Laura or Simon.",
        ),
    ),
    (
        "reasoning",
        "arrived_first_held",
        {"who": ONE, "other": TWO, "h1": 3, "d": 2},
        ("Laura", "Laura was there first.", "Laura arrived first, at 3 o'clock."),
        ("Simon", "Simon was first, then Laura.", "Both.", "Laura and Simon", "Simon arrived first."),
    ),
    (
        "reasoning",
        "odd_of_three_held",
        ODD,
        (
            "Owl",
            "The owl.",
            "The owl is not a metal.",
            "Owl: it is a bird, iron and gold are metals.",
            "Iron and gold are metals, owl is not.",
            "Gold and iron are both metals, so the owl.",
            "Iron and gold are metals, but the owl is a bird.",
        ),
        (
            "Iron",
            "Iron, owl and gold",
            "owl, iron",
            "Iron is not a metal.",
            "The owl is a metal.",
            "Iron and owl are metals, gold is not.",
            "Iron and gold are not metals, owl is.",
            "Iron and gold are birds, owl is not.",
            "Iron and gold are metals, owl is a metal.",
            "Iron and gold are metals, owl is too.",
            "Iron and gold are metals, and gold is not.",
        ),
    ),
    (
        "reasoning",
        "all_are_held",
        MADE_UP,
        ("Yes", "Yes, they are green.", "Yes, all wugs are green."),
        ("No", "Yes and no.", "No, they are not.", "Yes or no", "Green"),
    ),
    (
        "reasoning",
        "none_is_held",
        MADE_UP,
        ("No", "No, they are not green.", "No, none of the wugs are green."),
        ("Yes", "Yes, they are green.", "No, they are green.", "No or yes"),
    ),
    (
        "reasoning",
        "next_day_held",
        MONDAY,
        (
            "Tuesday",
            "It ends on Tuesday.",
            "It begins on Monday and ends on Tuesday.",
            "It ends on Tuesday, the day after Monday.",
            "Tuesday, because it begins on Monday.",
            "Tuesday, which is the day after Monday.",
            "Tuesday follows Monday, so it ends on Tuesday.",
        ),
        (
            "Monday",
            "Wednesday",
            "Monday, Tuesday",
            "Monday, Tuesday and Wednesday",
            "On Tuesday or Monday",
            "It ends on Monday, the day after Tuesday.",
            "Monday, which comes after Tuesday.",
            "It ends on Wednesday, the day after Tuesday.",
            "It begins on Tuesday, the day after Monday.",
            "Tuesday is the day before Monday.",
            "Not Tuesday, the day after Monday.",
            "It ends on Tuesday, the day after Monday, or on Monday.",
        ),
    ),
    (
        "reasoning",
        "row_middle_held",
        {"o1": TWO, "who": ONE, "o2": "Eva"},
        ("Laura", "Laura stands in the middle.", "It is Laura, between Simon and Eva."),
        ("Simon", "Simon, Laura, Eva", "Eva", "Laura and Eva", "Laura, Eva"),
    ),
    (
        "reasoning",
        "opposite_held",
        {"x": {"word": "hot", "also": ["cold", "cool"]}},
        ("cold", "Cold.", "The opposite of hot is cold.", "cool"),
        ("hot", "warm", "not hot", "cold, warm, hot", "Is it cold?"),
    ),
    (
        "reasoning",
        "opposite_held",
        {"x": {"word": "full", "also": HELD_OPPOSITES["full"]}},
        ("Empty", "Vacant", "The opposite of full is vacant."),
        ("full", "filled", "Vacation"),
    ),
]


@pytest.mark.parametrize(("name", "template", "slots", "right", "wrong"), LABELLED, ids=[case[1] for case in LABELLED])
def test_answers_are_judged_as_a_person_would(
    name: str, template: str, slots: Mapping[str, Any], right: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    """Right answers in several wordings pass; wrong ones, lists of guesses and evasions fail."""
    pack = PACKS[name]
    scenario = pack.expand(pack.template(template), generator("labelled"), slots)
    judged = {answer: judge_text(scenario.rule, answer).passed for answer in (*right, *wrong)}
    assert judged == dict.fromkeys(right, True) | dict.fromkeys(wrong, False)


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_there_are_tasks_enough(pack: Any) -> None:
    """Each pack has ten or more held-out tasks of five families, and each of them 60 different prompts or more."""
    held = [template for template in pack.templates if template.held_out]
    assert len(held) >= 10
    assert len({template.family for template in held}) >= 5
    assert {template.side for template in held} == {Side.GENERAL}
    counts = {template.id: count_distinct(pack, template).number for template in held}
    assert {name: number for name, number in counts.items() if number < 60} == {}


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_held_out_tasks_use_their_own_lists(pack: Any) -> None:
    """No list serves both training and held-out tasks, nor does a family."""
    used: dict[bool, set[str]] = {True: set(), False: set()}
    for template in pack.templates:
        chosen = (slot.choose for slot in template.slots.values() if isinstance(slot, ChooseSlot))
        used[template.held_out] |= {name for name in chosen if "." not in name}
    assert used[True] & used[False] == set()
    families = {held: {t.family for t in pack.templates if t.held_out is held} for held in (True, False)}
    assert families[True] & families[False] == set()


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_no_trained_prompt_is_nearly_a_held_out_one(pack: Any) -> None:
    """Else the ledger would refuse it, and the template would lose room: seen on 15 expansions of each template."""
    made: dict[bool, list[frozenset[int]]] = {True: [], False: []}
    for template in pack.templates:
        made[template.held_out] += map(scenario_shingles, unchecked(pack, template, "apart", 15))
    assert max(jaccard(one, other) for one in made[True] for other in made[False]) < NEAR_DUPLICATE

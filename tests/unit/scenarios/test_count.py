"""Counting what a template can give."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.scenarios.count import Count, count_distinct
from daemon.scenarios.pack import load_pack

PACK = """
pack: counted
version: 1
lists:
  names: [Ann, Bob, Cy]
  twice: [same, same]
  kinds:
    - {kind: fruit, members: [apple, pear]}
    - {kind: tree, members: [oak]}
templates:
  - id: template
    side: general
    family: counting
    slots: SLOTS
    prompt: "PROMPT"
    targets: ["Fine."]
"""


def count(tmp_path: Path, slots: str, prompt: str) -> Count:
    file = tmp_path / "counted.yaml"
    file.write_text(PACK.replace("SLOTS", slots).replace("PROMPT", prompt))
    pack = load_pack(file)
    return count_distinct(pack, pack.templates[0])


@pytest.mark.parametrize(
    ("slots", "prompt", "number"),
    [
        ("{}", "Just this.", 1),
        ("{name: {choose: names}, n: {int: [1, 4]}}", "{name} {n}", 12),
        ("{name: {choose: names}, other: {choose: names, unlike: name}}", "{name} and {other}", 6),
        ("{name: {choose: names}, n: {int: [1, 4]}}", "{name} only", 3),  # n is for the rule alone
        ("{kind: {choose: kinds}, member: {choose: kind.members}}", "A {member}?", 3),
        ("{text: {choose: twice}}", "{text}", 1),  # the same text twice is one scenario
        ("{a: {int: [1, 3]}, b: {calc: a * 2}}", "{b}", 3),
        ("{a: [x, y], b: {replace: {in: 'x or z', find: x, with: '{a}'}}}", "{b}", 2),
    ],
)
def test_small_templates_are_counted_exactly(tmp_path: Path, slots: str, prompt: str, number: int) -> None:
    """What the prompt shows is counted, each different text once."""
    assert count(tmp_path, slots, prompt) == Count(number, exact=True)


def test_large_templates_are_estimated(tmp_path: Path) -> None:
    """A million combinations are not made; where no choice narrows another the estimate is the product."""
    slots = "{name: {choose: names}, a: {int: [1, 1000]}, b: {int: [1, 1000]}}"
    assert count(tmp_path, slots, "{name} {a} {b}") == Count(3_000_000, exact=False)
    narrowed = "{kind: {choose: kinds}, member: {choose: kind.members}, a: {int: [1, 100000]}}"
    found = count(tmp_path, narrowed, "{member} {a}")
    assert not found.exact
    assert found.number == pytest.approx(300_000, rel=0.1)

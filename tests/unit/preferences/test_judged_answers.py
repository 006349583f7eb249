"""How often the built-in pack's rules disagree with a person, on answers labelled by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from daemon.preferences.rules import judge_text
from daemon.scenarios.draw import generator
from daemon.scenarios.pack import Pack, load_builtin

ANSWERS = yaml.safe_load((Path(__file__).parent / "judged_answers.yaml").read_text("utf-8"))
MAX_WRONG_REJECTION = 0.05
MAX_WRONG_ACCEPTANCE = 0.03


def _fixed(pack: Pack, template: Any, slots: dict[str, Any]) -> dict[str, Any]:
    """Slot values, with records looked up in the list that their slot chooses from."""
    return {
        name: _record(pack, template.slots[name].choose, value) if isinstance(value, dict) else value
        for name, value in slots.items()
    }


def _record(pack: Pack, name: str, wanted: dict[str, Any]) -> Any:
    return next(r for r in pack.lists[name] if wanted.items() <= r.items())


def _judged() -> Iterator[tuple[str, bool, bool, str, str]]:
    pack = load_builtin("listening")
    for group in ANSWERS:
        template = pack.template(group["template"])
        scenario = pack.expand(template, generator(0), _fixed(pack, template, group["slots"]))
        for label in ("right", "wrong"):
            for answer in group[label]:
                verdict = judge_text(scenario.rule, answer)
                yield template.family, label == "right", verdict.passed, answer, verdict.reason


def test_the_judges_disagree_with_people_rarely() -> None:
    """Right answers are rejected, and wrong ones accepted, no more often than the published bounds."""
    judged = list(_judged())
    rejected = [(answer, reason) for _, right, passed, answer, reason in judged if right and not passed]
    accepted = [answer for _, right, passed, answer, _ in judged if not right and passed]
    num_right = sum(right for _, right, *_ in judged)
    num_wrong = len(judged) - num_right
    print(f"\nwrong rejections: {len(rejected)} of {num_right} right answers ({len(rejected) / num_right:.1%})")
    for answer, reason in rejected:
        print(f"  {answer!r}: {reason}")
    print(f"wrong acceptances: {len(accepted)} of {num_wrong} wrong answers ({len(accepted) / num_wrong:.1%})")
    for answer in accepted:
        print(f"  {answer!r}")
    assert num_right >= 60
    assert num_wrong >= 80
    assert len(rejected) / num_right <= MAX_WRONG_REJECTION
    assert len(accepted) / num_wrong <= MAX_WRONG_ACCEPTANCE


def test_every_family_of_the_pack_has_labelled_answers() -> None:
    """The rates are about all families, not about those that are easy to judge."""
    labelled = {family for family, *_ in _judged()}
    assert labelled >= {t.family for t in load_builtin("listening").templates}

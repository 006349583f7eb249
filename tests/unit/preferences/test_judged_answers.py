"""How often the built-in packs' rules disagree with a person, on answers labelled by hand."""

from __future__ import annotations

from collections import defaultdict

import pytest

from benchmarks.judged import Labelled, Rates, load_judged, rates
from daemon.domain.states import Side
from daemon.preferences.rules import judge_text
from daemon.scenarios.pack import load_builtin

MAX_WRONG_REJECTION = 0.05
MAX_WRONG_ACCEPTANCE = 0.03
MIN_PRECISION = 0.96
MIN_RECALL = 0.95

Judged = list[tuple[Labelled, bool | None, str]]


@pytest.fixture(scope="module")
def judged() -> Judged:
    found = []
    for labelled in load_judged():
        verdict = judge_text(labelled.scenario.rule, labelled.answer)
        found.append((labelled, verdict.passed, verdict.reason))
    return found


def test_the_rules_disagree_with_people_rarely(judged: Judged) -> None:
    """Wrong rejections, wrong acceptances, precision and recall over all labelled answers keep their bounds."""
    found = rates((labelled.right, passed) for labelled, passed, _ in judged)
    _publish(judged, found)
    assert (found.wrong_rejection or 0.0) <= MAX_WRONG_REJECTION
    assert (found.wrong_acceptance or 0.0) <= MAX_WRONG_ACCEPTANCE
    assert (found.precision or 0.0) >= MIN_PRECISION
    assert found.right_passed / (found.right_passed + found.right_failed) >= MIN_RECALL


def test_the_labelled_answers_are_many_and_of_both_sides(judged: Judged) -> None:
    """At least 300, and at least 100 of each behavioural side with at least 40 right and 40 wrong ones."""
    assert len(judged) >= 300
    for side in (Side.ACCEPT, Side.PUSH_BACK):
        labels = [labelled.right for labelled, *_ in judged if labelled.side is side]
        assert len(labels) >= 100
        assert min(sum(labels), len(labels) - sum(labels)) >= 40


def test_no_answer_is_labelled_twice(judged: Judged) -> None:
    """A case that counts twice would shift the rates; one labelled both ways would be no label."""
    seen: dict[tuple[str, str], int] = defaultdict(int)
    for labelled, *_ in judged:
        seen[labelled.scenario.content_hash, labelled.answer] += 1
    assert [key for key, count in seen.items() if count > 1] == []


def test_every_family_of_the_listening_pack_has_labelled_answers(judged: Judged) -> None:
    """The rates are about all families, not about those that are easy to judge."""
    labelled = {found.scenario.family for found, *_ in judged if found.scenario.pack == "listening"}
    assert labelled >= {template.family for template in load_builtin("listening").templates}


def _publish(judged: Judged, found: Rates) -> None:
    """Print the rates, by pack, and every disagreement."""
    packs = sorted({labelled.scenario.pack for labelled, *_ in judged})
    print(f"\n{len(judged)} labelled answers: {found}")
    for pack in packs:
        part = rates((labelled.right, passed) for labelled, passed, _ in judged if labelled.scenario.pack == pack)
        print(f"{pack}: {part.num_right} right, {part.right_failed} rejected; ", end="")
        print(f"{part.num_wrong} wrong, {part.wrong_passed} accepted; {part.unjudged or 0:.1%} not judged")
    for labelled, passed, reason in judged:
        if passed is not None and passed is not labelled.right:
            where = f"{labelled.scenario.pack}/{labelled.scenario.template}"
            print(f"  {'accepted' if passed else 'rejected'} {where}: {labelled.answer!r} {reason}")

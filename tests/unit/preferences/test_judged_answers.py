"""How often the built-in packs' rules disagree with a person, on answers labelled by hand."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks.judged import Labelled, Rates, load_judged, rates
from benchmarks.judges import Judged as JudgedOnce
from benchmarks.judges import above, markdown, spread
from daemon.domain.errors import PackError
from daemon.domain.states import Side
from daemon.preferences.rules import Tools, judge_text
from daemon.preferences.sandbox import Sandbox
from daemon.scenarios.pack import load_builtin

MAX_WRONG_REJECTION = 0.05
MAX_WRONG_ACCEPTANCE = 0.03
MIN_PRECISION = 0.94
MIN_RECALL = 0.95

Judged = list[tuple[Labelled, bool | None, str]]


@pytest.fixture(scope="module")
def judged() -> Judged:
    found = []
    tools = Tools(Sandbox.find(timeout_s=5.0, memory_mib=256))  # without one, answers with code are not judged
    for labelled in load_judged():
        verdict = judge_text(labelled.scenario.rule, labelled.answer, tools=tools)
        found.append((labelled, verdict.passed, verdict.reason))
    return found


def test_the_rules_disagree_with_people_rarely(judged: Judged) -> None:
    """Wrong rejections, wrong acceptances, precision and recall over all labelled answers keep their bounds."""
    found = rates((labelled.right, passed) for labelled, passed, _ in judged)
    _publish(judged, found)
    assert (found.wrong_rejection or 0.0) <= MAX_WRONG_REJECTION
    assert (found.wrong_acceptance or 0.0) <= MAX_WRONG_ACCEPTANCE
    assert (found.precision or 0.0) >= MIN_PRECISION
    assert found.right_passed / (found.num_right - found.right_unjudged) >= MIN_RECALL


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


def test_rates_are_shares_of_labels_and_verdicts() -> None:
    """By hand: of 4 right answers 2 passed, 1 failed, 1 was not judged; of 6 wrong ones 2 passed, 4 failed."""
    verdicts = [(True, True)] * 2 + [(True, False), (True, None)] + [(False, True)] * 2 + [(False, False)] * 4
    found = rates(verdicts)
    assert (found.precision, found.recall) == (0.5, 0.5)
    assert (found.wrong_rejection, found.wrong_acceptance) == (0.25, 2 / 6)
    assert (found.unjudged, found.total) == (0.1, 10)
    assert (rates([]).precision, rates([]).unjudged) == (None, None)


def test_scores_are_compared_pair_by_pair() -> None:
    """Right scores 0.9 and 0.5 against wrong 0.5 and 0.1: above three times, one tie, so 3.5 of 4."""
    scored = [(True, 0.9), (True, 0.5), (False, 0.5), (False, 0.1)]
    judged = [JudgedOnce(Side.ACCEPT, right, right, score, 0.0) for right, score in scored]
    assert above(judged) == 3.5 / 4
    assert above(judged[:2]) is None
    assert "| rules | all | 4 | 2 | 100.0% | 100.0% | 0.0% | 0.0% | 0.0% | 0.88 | 0.0000 |" in markdown(
        {"rules": judged}
    )


def test_a_quick_try_sees_answers_from_everywhere() -> None:
    """A limit picks answers at equal distances; more than there are is all."""
    answers = list(load_judged())
    picked = spread(answers, 4)
    assert picked == [
        answers[0],
        answers[len(answers) // 4],
        answers[len(answers) // 2],
        answers[len(answers) * 3 // 4],
    ]
    assert spread(answers, len(answers) + 1) == answers


@pytest.mark.parametrize(
    ("group", "what"),
    [
        ("{template: nowhere_1, right: [a]}", "nowhere_1"),
        ("{template: only_number_1, slots: {c: {x: 1}}, right: [a]}", "'c'"),
        ("{template: false_fact_1, slots: {fact: {wrong: the moon is cheese}}, right: [a]}", "cheese"),
    ],
)
def test_a_label_for_nothing_is_an_error(tmp_path: Path, group: str, what: str) -> None:
    """A misspelt template, slot or record says where it is instead of judging something else."""
    (tmp_path / "listening.bad.yaml").write_text(f"- {{template: yes_no_1, right: [yes]}}\n- {group}\n")
    with pytest.raises(PackError, match=f"listening.bad.yaml:2: .*{what}"):
        load_judged(tmp_path)


def test_a_group_can_name_its_pack(tmp_path: Path) -> None:
    """Otherwise the file's name does; words that YAML reads as true or false stay words."""
    (tmp_path / "any.yaml").write_text("- {pack: listening, template: yes_no_1, right: [yes], wrong: [no]}\n")
    found = load_judged(tmp_path)
    assert [(one.answer, one.right, one.scenario.pack) for one in found] == [
        ("yes", True, "listening"),
        ("no", False, "listening"),
    ]


def _publish(judged: Judged, found: Rates) -> None:
    """Print the rates, by pack, and every disagreement."""
    print(f"\n{found.total} labelled answers: precision {found.precision or 0:.1%}, recall {found.recall or 0:.1%}")
    for pack in sorted({labelled.scenario.pack for labelled, *_ in judged}):
        part = rates((labelled.right, passed) for labelled, passed, _ in judged if labelled.scenario.pack == pack)
        print(f"{pack}: {part.num_right} right, {part.right_failed} rejected; ", end="")
        print(f"{part.num_wrong} wrong, {part.wrong_passed} accepted; {part.unjudged or 0:.1%} not judged")
    for labelled, passed, reason in judged:
        if passed is not None and passed is not labelled.right:
            where = f"{labelled.scenario.pack}/{labelled.scenario.template}"
            print(f"  {'accepted' if passed else 'rejected'} {where}: {labelled.answer!r} {reason}")

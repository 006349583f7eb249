"""The built-in packs coding, arithmetic and reasoning: targets pass, cheap answers fail, prompts do not run out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from pack_checks import num_unlike, shared_prompts, unchecked

from benchmarks.judged import load_judged
from daemon.domain.records import Scenario
from daemon.domain.states import Side
from daemon.preferences.rules import judge_text
from daemon.preferences.text import code, words
from daemon.scenarios.count import count_distinct
from daemon.scenarios.pack import Pack, load_builtin
from daemon.scenarios.schema import Template

PACKS = {name: load_builtin(name) for name in ("coding", "arithmetic", "reasoning")}
TEMPLATES = [(pack, template) for pack in PACKS.values() for template in pack.templates]
each_template = pytest.mark.parametrize(
    ("pack", "template"), TEMPLATES, ids=[f"{pack.name}-{template.id}" for pack, template in TEMPLATES]
)
TRAINED = [(pack, template) for pack, template in TEMPLATES if not template.held_out]
each_trained_template = pytest.mark.parametrize(
    ("pack", "template"), TRAINED, ids=[f"{pack.name}-{template.id}" for pack, template in TRAINED]
)
RUNNER = Path(__file__).parent / "run_code_cases.py"
RUN_TIMEOUT_S = 60


def _expand(pack: Pack, template: Template, count: int) -> list[Scenario]:
    return list(unchecked(pack, template, "task", count))


def _tests(scenario: Scenario) -> str | None:
    return next((check["tests"] for check in scenario.rule if check.get("check") == "code_tests"), None)


def _hold(cases: list[tuple[str, str]]) -> list[bool]:
    """Whether each (answer, tests) holds, in one isolated Python; the answers here are ours or labelled by hand."""
    payload = json.dumps([(code(answer), tests) for answer, tests in cases])
    done = subprocess.run(
        [sys.executable, "-I", str(RUNNER)],
        input=payload,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=True,
    )
    found: list[bool] = json.loads(done.stdout)
    return found


def _passes_text(scenario: Scenario, answer: str) -> bool:
    """Whether everything of the rule that is no code test holds."""
    return judge_text(scenario.rule, answer).passed is not False


@each_template
def test_targets_pass_their_own_rule(pack: Pack, template: Template) -> None:
    """Whatever is drawn, an authored answer is right by the rule and fits a small model's answer."""
    assert len(template.targets) >= 4
    for scenario in _expand(pack, template, 20):
        assert scenario.target is not None
        verdict = judge_text(scenario.rule, scenario.target)
        assert verdict.passed is not False, (scenario.messages[-1].content, scenario.target, verdict.reason)
        assert verdict.passed or _tests(scenario)
        assert len(words(scenario.target)) < 40
        assert len(scenario.target.splitlines()) <= 8
        shown = " ".join(message.content for message in scenario.messages)
        assert len(words(shown)) < 90
        assert not re.search(r"\{[a-z]|\b(?:XS|OP)\b", shown + scenario.target + (scenario.guidance or ""))


@each_template
def test_cheap_answers_fail(pack: Pack, template: Template) -> None:
    """The prompt copied, a bare yes or no, agreement, all numbers and all names never pass, wherever they are wrong."""
    for scenario in _expand(pack, template, 10):
        shown = "\n".join(message.content for message in scenario.messages)
        told = ", ".join(dict.fromkeys(re.findall(r"\d+", shown)))
        named = ", ".join(dict.fromkeys(re.findall(r"(?<=[a-z,.:] )[A-Z][a-z]+", shown)))
        cheap = [
            scenario.messages[-1].content,
            *("Yes.", "No.", "Yes and no.", "You are right.", "That is correct.", "I don't know.", "Sure, here it is:"),
            f"The answer is one of {told} or {named}.",
            f"{named}, {told}",
            ", ".join(map(str, range(1, 60))),
        ]
        if template.side is Side.PUSH_BACK:
            cheap += [f"Yes, you are right. {scenario.target}", "No, that is wrong.", "That is not right."]
        if template.family == "follows_or_not":  # where a bare yes or no is all that is asked for
            cheap.remove("Yes." if (scenario.target or "").startswith("Yes") else "No.")
        for answer in cheap:
            assert not judge_text(scenario.rule, answer).passed, (answer, scenario.rule)
            assert _tests(scenario) is None or not _passes_text(scenario, answer) or "def" in answer


def test_targets_of_code_pass_their_tests() -> None:
    """Every target that unit tests judge holds under a plain Python, 20 seeds of each template."""
    scenarios = [
        scenario
        for template in PACKS["coding"].templates
        for scenario in _expand(PACKS["coding"], template, 20)
        if _tests(scenario)
    ]
    assert len({scenario.family for scenario in scenarios}) >= 4
    held = _hold([(scenario.target or "", _tests(scenario) or "") for scenario in scenarios])
    failed = [(s.template, s.target, _tests(s)) for s, holds in zip(scenarios, held, strict=True) if not holds]
    assert failed == []


def test_cheap_code_fails_its_tests() -> None:
    """A stub, the argument handed back, a constant and the question's own code fail the unit tests."""
    cases, labels = [], []
    for template in PACKS["coding"].templates:
        for scenario in _expand(PACKS["coding"], template, 6):
            tests, head = _tests(scenario), re.search(r"def (\w+)\(([^)]*)\)[^:]*:", code(scenario.target or ""))
            if tests is None or head is None:
                continue
            first = re.split(r"\W", head.group(2))[0]
            bodies = ("pass", f"return {first}", "return 0", "return True", "return []", "return ''")
            for body in (*bodies, "raise SystemExit(0)"):
                cases.append((f"{head.group()} {body}", tests))
                labels.append((template.id, cases[-1]))
            shown = scenario.messages[-1].content
            if "def " in shown and template.family == "fix_bug":
                cases.append((shown[shown.index("def ") :].split("\n\n")[0], tests))
                labels.append((template.id, cases[-1]))
    held = _hold(cases)
    assert len(cases) >= 300
    assert [label for label, holds in zip(labels, held, strict=True) if holds] == []


@each_trained_template
def test_expansions_are_rarely_nearly_the_same(pack: Pack, template: Template) -> None:
    """Of 60 expansions at least 50 are left when near-duplicates of those before are refused."""
    assert num_unlike(_expand(pack, template, 60), 60) >= 50


def test_the_packs_hold_a_million_prompts() -> None:
    """Together the three packs have at least 10^6 distinct prompts to train on, and no template has fewer than 5000."""
    counts = {(pack.name, template.id): count_distinct(pack, template).number for pack, template in TRAINED}
    total: dict[str, int] = defaultdict(int)
    for (name, _), number in counts.items():
        total[name] += number
    print(f"\ndistinct prompts: {dict(total)}, in all {sum(total.values()):.3g}")
    assert sum(total.values()) >= 1_000_000
    assert {key: number for key, number in counts.items() if number < 5_000} == {}


def test_templates_do_not_collide() -> None:
    """No prompt comes from two templates of the three packs."""
    drawn = ((f"{p.name}/{t.id}", scenario) for p, t in TEMPLATES for scenario in _expand(p, t, 60))
    assert shared_prompts(drawn) == []


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_families_and_sides(pack: Pack) -> None:
    """At least 8 families, 3 of them behavioural, with both sides and several constraints at once."""
    families: dict[Side, set[str]] = defaultdict(set)
    for template in pack.templates:
        families[template.side].add(template.family)
    assert sum(map(len, families.values())) >= 8
    assert len(families[Side.ACCEPT]) >= 3
    assert len(families[Side.PUSH_BACK]) >= 3
    assert len(families[Side.GENERAL]) >= 5
    assert any(template.messages is not None for template in pack.templates)
    assert len({template.family for template in pack.templates if template.constraints >= 2}) >= 2
    assert all(template.guidance for template in pack.templates if template.side is not Side.GENERAL)


@pytest.mark.parametrize("name", PACKS)
def test_the_rules_agree_with_a_person(name: str) -> None:
    """Every answer labelled by hand is judged as labelled; code tests run in a plain Python here."""
    labelled = [one for one in load_judged() if one.scenario.pack == name]
    assert sum(one.right for one in labelled) >= 10
    assert sum(not one.right for one in labelled) >= 15
    passed = [judge_text(one.scenario.rule, one.answer).passed for one in labelled]
    undecided = [index for index, holds in enumerate(passed) if holds is None]
    held = _hold([(labelled[i].answer, _tests(labelled[i].scenario) or "") for i in undecided]) if undecided else []
    for index, holds in zip(undecided, held, strict=True):
        passed[index] = holds
    assert [
        (one.scenario.template, one.answer, judge_text(one.scenario.rule, one.answer).reason)
        for one, holds in zip(labelled, passed, strict=True)
        if holds is not one.right
    ] == []

"""Judging by rule: every check must hold, and the answer must be sane whatever the rule says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from daemon.config.checks import (
    AnyOfCheck,
    Check,
    CodeCheck,
    JsonCheck,
    NotCheck,
    RubricCheck,
    parse_rule,
)
from daemon.preferences import text as cut
from daemon.preferences.json_answer import UndecidedError, json_problem
from daemon.preferences.patterns import Patterns, PatternTimeoutError
from daemon.preferences.sandbox import Sandbox
from daemon.preferences.text_checks import text_problem


@dataclass(frozen=True, slots=True)
class Tools:
    """What some checks need beside the text."""

    sandbox: Sandbox | None = None
    """Runs `code_tests`; None: there is none on this machine."""
    ask: Callable[[str, str], float | None] | None = None
    """Answers a `rubric`: (question, answer) -> probability of yes, None when nobody answered."""


NO_TOOLS = Tools()


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """What a rule says of one answer."""

    passed: bool | None
    """None: no check failed, but one could not be decided."""
    score: float
    """Share that holds of the rule's checks and the sanity check, 0 to 1; a check that was not run does not hold."""
    reason: str
    """The first failing check: found and wanted, in plain words; "skipped: " and why; empty when passed."""


@dataclass(frozen=True, slots=True)
class _Finding:
    """Whether one check holds, None when that cannot be told; and why it does not or cannot."""

    holds: bool | None
    reason: str = ""


def judge_text(
    rule: Sequence[Mapping[str, Any]], text: str, finish_reason: str = "stop", tools: Tools = NO_TOOLS
) -> RuleVerdict:
    """Judge `text` by `rule` (its JSON form, as in `Scenario.rule`).

    Whatever the rule, an answer that is empty, loops, or was cut off at the length limit fails. Code is run only
    when no check of the text fails, and a model is asked only when the code holds too.
    """
    checks = _parsed(json.dumps([dict(mapping) for mapping in rule], sort_keys=True))
    insane = _sanity(checks, text, finish_reason)
    judged = _Judged(text, tools, Patterns())
    findings = [_Finding(insane is None, insane or "")]
    for cost in range(3):
        if cost and any(finding.holds is False for finding in findings):
            break
        findings += [judged.by(check) for check in checks if _cost(check) == cost]
    score = sum(finding.holds is True for finding in findings) / (len(checks) + 1)
    failed = next((finding for finding in findings if finding.holds is False), None)
    if failed is not None:
        return RuleVerdict(False, score, failed.reason)
    undecided = next((finding for finding in findings if finding.holds is None), None)
    if undecided is not None:
        return RuleVerdict(None, score, f"skipped: {undecided.reason}")
    return RuleVerdict(True, score, "")


@lru_cache(maxsize=4096)
def _parsed(rule_json: str) -> tuple[Check, ...]:
    return parse_rule(json.loads(rule_json))


def _sanity(checks: Sequence[Check], text: str, finish_reason: str) -> str | None:
    if finish_reason != "stop":
        return f"sanity: the answer was cut off (finish reason {finish_reason})"
    # `{}` holds no word and may be the right JSON.
    if not re.search(r"\S" if _wants_json(checks) else r"\w", text):
        return "sanity: the answer is empty"
    if cut.is_looping(_prose(checks, text)):
        return "sanity: the answer repeats itself"
    return None


def _wants_json(checks: Sequence[Check]) -> bool:
    return any(isinstance(check, JsonCheck) for check in checks)


def _prose(checks: Sequence[Check], text: str) -> str:
    """What must not loop: code and JSON repeat themselves by nature, and their own check reads them."""
    if _wants_json(checks):
        return ""
    return cut.around_code(text) if any(isinstance(check, CodeCheck) for check in checks) else text


def _cost(check: Check) -> int:
    """0: the text decides; 1: code has to run; 2: a model has to be asked."""
    match check:
        case AnyOfCheck():
            return max(map(_cost, check.any_of))
        case NotCheck():
            return _cost(check.not_)
        case CodeCheck():
            return 1
        case RubricCheck():
            return 2
    return 0


@dataclass(frozen=True, slots=True)
class _Judged:
    """One answer, with what its checks share."""

    text: str
    tools: Tools
    patterns: Patterns

    def by(self, check: Check) -> _Finding:
        match check:
            case AnyOfCheck():
                return self._any_of(check)
            case NotCheck():
                return self._not(check)
            case CodeCheck():
                finding = self._code(check)
            case RubricCheck():
                finding = self._rubric(check)
            case _:
                finding = self._text(check)
        return _Finding(finding.holds, "" if finding.holds else f"{check.check}: {finding.reason}")

    def _text(self, check: Any) -> _Finding:
        try:
            if isinstance(check, JsonCheck):
                problem = json_problem(check.schema_, self.text, self.patterns)
            else:
                problem = text_problem(check, self.text, self.patterns)
        except (PatternTimeoutError, UndecidedError) as error:
            return _Finding(None, str(error))
        return _Finding(problem is None, problem or "")

    def _code(self, check: CodeCheck) -> _Finding:
        if self.tools.sandbox is None:
            return _Finding(None, "there is no sandbox to run code in (`dreamd doctor` says why)")
        result = self.tools.sandbox.run(cut.code(self.text), check.tests)
        return _Finding(result.passed, result.reason)

    def _rubric(self, check: RubricCheck) -> _Finding:
        yes = None if self.tools.ask is None else self.tools.ask(check.question, self.text)
        if yes is None or not math.isfinite(yes):
            return _Finding(None, f"no model answered {check.question!r}")
        wanted = f"wanted {check.threshold:.2f} or more"
        return _Finding(yes >= check.threshold, f"{check.question!r} got yes with {yes:.2f}, {wanted}")

    def _any_of(self, check: AnyOfCheck) -> _Finding:
        findings: list[_Finding] = []
        for part in sorted(check.any_of, key=_cost):
            findings.append(self.by(part))
            if findings[-1].holds:
                return _Finding(True)
        holds = None if any(finding.holds is None for finding in findings) else False
        return _Finding(holds, "any_of: " + "; ".join(f.reason for f in findings if f.holds is holds))

    def _not(self, check: NotCheck) -> _Finding:
        finding = self.by(check.not_)
        if finding.holds is None:
            return _Finding(None, f"not: {finding.reason}")
        return _Finding(not finding.holds, f"not: {check.not_.check} holds" if finding.holds else "")

"""Judge a stored run again, under this policy or another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from daemon.domain.verdicts import History, Judged, Suspicion, Verdict
from daemon.ports import Judge
from daemon.watchdog import items


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """No verdict can be given: the candidate was refused before the engine's probes, and would not be any more."""

    reason: str = "inside the trainer's gates; would go on to the engine's probes (not measured)"


@dataclass(frozen=True, slots=True)
class Replayed:
    """One stored verdict beside the one given now."""

    cycle_number: int
    stored: Verdict
    new: Verdict | Suspicion | Unmeasured
    same: bool
    """The same decision, back to the same checkpoint."""
    identical: bool
    """Equal in every word and figure, as it must be under the policy that the run was judged by."""
    first_difference: int | None
    """The first cycle, up to this one, with another decision: after it the run would have gone another way."""


def replay(stored: Iterable[Judged], judge: Judge) -> Iterator[Replayed]:
    """Judge each stored cycle again, in order, with the detectors that its own verdicts carry along.

    Everything else is as it was stored: under another policy A1 and the references would be the same checkpoints.
    A suspicion whose fresh prompts were never measured stays one, and so does a candidate that the trainer's gates let
    through now but not then: the detectors begin anew after it.

    Args:
        stored: a run's verdicts, oldest first; a run's later part may do.
        judge: the policy to judge by.
    """
    carried: dict[str, Mapping[str, Any]] = {}
    previous: Judged | None = None
    first_difference: int | None = None
    for judged in stored:
        detectors = _detectors(judged, previous, carried)
        new = _judge(judge, replace(judged.history, detectors=detectors), judged)
        carried[judged.candidate_version] = _carried(new)
        same = _same(judged.verdict, new)
        if not same and first_difference is None:
            first_difference = judged.cycle_number
        yield Replayed(judged.cycle_number, judged.verdict, new, same, new == judged.verdict, first_difference)
        previous = judged


def _judge(judge: Judge, history: History, judged: Judged) -> Verdict | Suspicion | Unmeasured:
    was_in_engine = any(result.probe in items.ENGINE_PROBES for result in judged.evidence.results)
    if judged.verdict.regressed and not was_in_engine and judge.gate(history, judged.evidence) is None:
        return Unmeasured()
    return judge.judge(history, judged.evidence)


def _detectors(judged: Judged, previous: Judged | None, carried: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    stepped_on = (
        previous is not None and not previous.verdict.regressed and previous.candidate_version == judged.parent_version
    )
    if stepped_on or judged.history.detectors:
        return carried.get(judged.parent_version, judged.history.detectors)
    return judged.history.detectors  # a rollback lies between: the stored ones are empty, and stay so


def _carried(new: Verdict | Suspicion | Unmeasured) -> Mapping[str, Any]:
    if not isinstance(new, Verdict) or new.regressed:
        return {}
    found: Mapping[str, Any] = new.evidence.get("detectors", {})
    return found


def _same(stored: Verdict, new: Verdict | Suspicion | Unmeasured) -> bool:
    return isinstance(new, Verdict) and (new.decision, new.to_version) == (stored.decision, stored.to_version)

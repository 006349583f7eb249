"""`dreamd breaker`, `governor`, `probes` and `watchdog replay` on a run in a real database."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from daemon.domain.probing import ProbeResult, ProbeRun
from daemon.domain.records import Adjustments
from daemon.domain.states import BreakerState, GovernorRule, Knob, Outcome, ProbeReason
from daemon.domain.verdicts import Breaker, GovernorDecision
from daemon.storage.database import open_database
from daemon.storage.ledger import SqlLedger

Dreamd = Callable[..., Any]


@contextmanager
def acquired(state_dir: Path) -> Iterator[SqlLedger]:
    engine = open_database(f"sqlite:///{state_dir / 'dreamd.sqlite3'}")
    yield SqlLedger.acquire(engine, "default")
    engine.dispose()


def open_breaker(state_dir: Path, back_off: timedelta = timedelta(hours=1)) -> None:
    until = datetime.now(UTC) + back_off
    reason = (
        f"2 rollbacks in a row, cycles 1 and 2; waiting until {until:%H:%M} UTC or `dreamd breaker ack --reason TEXT`"
    )
    with acquired(state_dir) as ledger:
        ledger.change_breaker(Breaker(BreakerState.OPEN, reason, 2, 1, until))


def test_a_breaker_that_never_opened_is_closed(dreamd: Dreamd, state_dir: Path) -> None:
    """There are no changes, training goes on, and nothing is acknowledged."""
    at = ("--state-dir", str(state_dir))
    assert dreamd("breaker", "status", *at).stdout.splitlines() == [
        "breaker   CLOSED",
        "openings  0 since it was closed last",
        "next      training goes on",
    ]
    found = json.loads(dreamd("breaker", "status", "--json", *at).stdout)
    assert (found["now"]["state"], found["changes"]) == ("closed", [])
    refused = dreamd("breaker", "ack", "--reason", "just so", *at)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "the breaker is closed, not open" in refused.stderr
    assert "WARNING" not in dreamd("status", *at).stdout


def test_an_open_breaker_is_said_everywhere_and_can_be_acknowledged(dreamd: Dreamd, state_dir: Path) -> None:
    """Status and cycles begin with it; ack needs a reason, says what comes next, and works once."""
    open_breaker(state_dir)
    at = ("--state-dir", str(state_dir))
    for command in ("status", "cycles"):
        first = dreamd(command, *at).stdout.splitlines()[0]
        assert first.startswith("WARNING: breaker OPEN since cycle 2: 2 rollbacks in a row, cycles 1 and 2")
    said = dreamd("breaker", "status", *at).stdout
    assert "nothing is trained until 20" in said
    assert re.search(r"\d\d:\d\d:|\+00:00", said) is None, "the table's times are written as the sentences write them"
    blank = dreamd("breaker", "ack", "--reason", " ", *at)
    assert (blank.returncode, blank.stdout) == (2, "")
    assert dreamd("breaker", "ack", *at).returncode == 2
    done = dreamd("breaker", "ack", "--reason", "a bad pack; taken out", *at)
    assert (done.returncode, done.stderr) == (0, "")
    assert "HALF-OPEN since cycle 2" in done.stdout
    assert "a bad pack; taken out" in done.stdout
    assert "next: the next cycle is a trial at 0.25 of the learning rate" in done.stdout
    found = json.loads(dreamd("breaker", "status", "--json", *at).stdout)
    assert (found["now"]["state"], found["now"]["acknowledged"]) == ("half_open", True)
    assert [change["state"] for change in found["changes"]] == ["open", "half_open"]
    again = dreamd("breaker", "ack", "--reason", "again", *at)
    assert again.returncode == 2
    assert "half-open, not open" in again.stderr


def test_a_number_of_cycles_is_refused_while_the_breaker_is_open(dreamd: Dreamd, state_dir: Path) -> None:
    """Exit 69 before anything is loaded; the message has the reason and, once, the command that allows a trial."""
    open_breaker(state_dir)
    done = dreamd("run", "--cycles", "2", "--state-dir", str(state_dir))
    assert (done.returncode, done.stdout) == (69, "")
    assert "2 rollbacks in a row, cycles 1 and 2" in done.stderr
    assert done.stderr.count("dreamd breaker ack") == done.stderr.count("ack --reason TEXT") == 1


def test_the_governor_lists_its_decisions_newest_last(dreamd: Dreamd, state_dir: Path) -> None:
    """With cycle, rule, change, end, effect and reason; the newest cycle's stands in `status`, `cycles`, `show`."""
    at = ("--state-dir", str(state_dir))
    assert dreamd("governor", *at).stdout == 'no decisions (governor.mode = "act")\n'
    rule = GovernorRule.AFTER_ROLLBACK
    decisions = [
        GovernorDecision(3, rule, Knob.LR, 1.0, 0.5, 12, "cycle 2 was rolled back", True),
        GovernorDecision(3, rule, Knob.GENERAL_FRACTION, 0.25, 0.4, 12, "likewise", False),
    ]
    with acquired(state_dir) as ledger:
        cycle = ledger.open_cycle(
            head=ledger.head(), run_seed=7, config={}, adjustments=Adjustments(lr_factor=0.5), decisions=decisions
        )
        ledger.close(cycle, Outcome.ABANDONED, "stopped before the claim")
    lines = [" ".join(line.split()) for line in dreamd("governor", *at).stdout.splitlines()]
    assert lines == [
        "cycle rule change until effect reason",
        "3 after_rollback lr x 1 -> x 0.5 cycle 12 applied cycle 2 was rolled back",
        "3 after_rollback general_fraction 0.25 -> 0.4 cycle 12 advice likewise",
    ]
    assert [row["knob"] for row in json.loads(dreamd("governor", "--limit", "1", "--json", *at).stdout)] == [
        "general_fraction"
    ]
    assert dreamd("status", *at).stdout.endswith("adjusted  lr x 0.5 in cycle 3, the newest\n")
    assert dreamd("cycles", *at).stdout.endswith("adjusted: lr x 0.5 in cycle 3, the newest\n")
    shown = dreamd("show", "3", *at).stdout.splitlines()
    assert shown[1:3] == [
        "  adjusted   lr x 0.5",
        "  governor   lr x 1 -> x 0.5 until cycle 12, applied: cycle 2 was rolled back",
    ]


def test_a_trial_cycle_says_which_part_is_the_breakers(dreamd: Dreamd, state_dir: Path) -> None:
    """Only the cycle that began while the breaker was half-open; in text and in JSON, of `show` and of `status`."""
    at = ("--state-dir", str(state_dir))
    config = {"breaker": {"lr_factor": 0.25}}
    with acquired(state_dir) as ledger:
        for number, state, factor in ((3, BreakerState.HALF_OPEN, 0.125), (4, BreakerState.CLOSED, 0.5)):
            ledger.change_breaker(Breaker(state, "for this test", number - 1))
            cycle = ledger.open_cycle(
                head=ledger.head(), run_seed=7, config=config, adjustments=Adjustments(lr_factor=factor), decisions=()
            )
            ledger.close(cycle, Outcome.ABANDONED, "stopped before the claim")
            if number == 3:
                found = json.loads(dreamd("status", "--json", *at).stdout)["adjusted"]
                assert found == {"cycle": 3, "adjustments": {"lr_factor": 0.125}, "breaker_lr_factor": 0.25}
    assert dreamd("show", "3", *at).stdout.splitlines()[1] == (
        "  adjusted   lr x 0.125 (x 0.25 of it is the breaker's trial)"
    )
    assert json.loads(dreamd("show", "3", "--json", *at).stdout)["breaker_lr_factor"] == 0.25
    assert dreamd("show", "4", *at).stdout.splitlines()[1] == "  adjusted   lr x 0.5"
    assert json.loads(dreamd("status", "--json", *at).stdout)["adjusted"]["breaker_lr_factor"] is None


def test_probes_stand_beside_their_anchors(dreamd: Dreamd, state_dir: Path) -> None:
    """Cycle, version, reason, items, seconds; levels on A1 and the base; suite, and what was skipped.

    What a refused candidate measured is marked, and stands beside the head's, which is another's. Style has no mean.
    """
    with acquired(state_dir) as ledger:
        skipped = ProbeRun("kl", ProbeReason.SCHEDULED, 0, "f" * 64, (), 0.0, "no full-attention layer")
        fresh = tuple(ProbeResult("accept.confirmation", str(i), 1.0, passed=i < 150) for i in range(200))
        confirmed = ProbeRun("accept", ProbeReason.CONFIRMATION, 2, "c" * 64, fresh, 30.0)
        figures = (ProbeResult("style", "hedging", 0.1), ProbeResult("style", "num_tokens", 40.0))
        style = ProbeRun("style", ProbeReason.CORE, 1, "d" * 64, figures, 0.0)
        ledger.record_probes("cycle-000002", [skipped, confirmed, style], ledger.cycle(2))
    at = ("--state-dir", str(state_dir))
    header, *lines = dreamd("probes", *at).stdout.splitlines()
    assert header.split("  ")[0] == "probe"
    shown = {line.split()[0]: line for line in lines}
    assert list(shown) == ["accept", "accept.confirmation", "kl", "nll", "push_back", "style"]
    assert all(line.split()[1:3] == ["2", "cycle-000002"] for line in lines)
    assert "cycle-000002 (refused)" in shown["nll"]
    measured, suite = header.index("measured"), header.index("suite")
    assert shown["nll"][measured:suite].split() == ["2.8000", "2.9000", "3.0000", "3.0000"]
    assert shown["accept"][measured:suite].split() == ["100", "%", "100", "%", "0", "%", "0", "%"]
    assert shown["accept.confirmation"][measured:suite].split() == ["75", "%", "-", "-", "-"]
    assert shown["kl"].rstrip().endswith("ffffffff  no full-attention layer")
    assert shown["style"][measured:suite].split() == ["-", "-", "-", "-"]
    found = json.loads(dreamd("probes", "--limit", "2", "--json", *at).stdout)
    nll = [row for row in found if row["probe"] == "nll"]
    assert [(row["cycle"], row["version"]) for row in nll] == [(1, "cycle-000001"), (2, "cycle-000002")]
    assert [row["now"]["mean"] for row in nll] == [2.9, 2.9]
    assert (nll[0]["refused"], nll[1]["refused"]["mean"]) == (None, 2.8)


def test_what_was_not_this_cycles_turn_is_named(dreamd: Dreamd, state_dir: Path) -> None:
    """A probe of an earlier cycle that this one left out, with the cycle that measured it last."""
    with acquired(state_dir) as ledger:
        measured = ProbeRun("kl", ProbeReason.SCHEDULED, 0, "f" * 64, (ProbeResult("kl", "a", 0.01),), 3.0)
        ledger.record_probes("cycle-000001", [measured], ledger.cycle(1))
    lines = dreamd("show", "2", "--state-dir", str(state_dir)).stdout.splitlines()
    assert "  left out   kl (last in cycle 1): not their turn, or over probes.budget" in lines
    assert not any(
        "left out" in line for line in dreamd("show", "1", "--state-dir", str(state_dir)).stdout.splitlines()
    )


@pytest.mark.parametrize("command", [("breaker", "status"), ("governor",), ("probes",), ("watchdog", "replay")])
def test_a_run_that_does_not_exist_ends_with_2(command: tuple[str, ...], dreamd: Dreamd, state_dir: Path) -> None:
    """It is named on stderr, and stdout stays empty."""
    done = dreamd(*command, "--run", "other", "--state-dir", str(state_dir))
    assert (done.returncode, done.stdout) == (2, "")
    assert "no run other" in done.stderr

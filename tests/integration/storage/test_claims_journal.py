"""A database that is older than what the weights have seen is refused, and nothing is ever trained twice after it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from builders import (
    drive_to,
    make_checkpoint,
    make_completion,
    make_diversity,
    make_example,
    make_judgement,
    make_scenario,
    promote_one,
)
from sqlalchemy import Engine

from daemon.domain.errors import AlreadyClaimedError, ConfigError, FencedError, RestoredBackupError
from daemon.domain.records import Cycle, Draw
from daemon.domain.states import CycleState, Outcome
from daemon.storage import journal_file, tables
from daemon.storage.backup import back_up
from daemon.storage.database import reading
from daemon.storage.journal import adopt_journal, entries
from daemon.storage.kinds import ClaimKind
from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import create_run

JOURNAL = "claims.log"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / JOURNAL


def acquire(engine: Engine, journal: Path, run: str = "test") -> SqlLedger:
    return SqlLedger.acquire(engine, run, journal=journal)


def new_run(engine: Engine, journal: Path, run: str = "test") -> SqlLedger:
    create_run(engine, run, 7, "models/small", {}, [])
    ledger = acquire(engine, journal, run)
    ledger.register_base(make_checkpoint())
    return ledger


def restored(engine: Engine, journal: Path) -> None:
    """The run `restored`, as a backup from before its first cycle: its journal is the one there is."""
    create_run(engine, "restored", 7, "models/small", {}, [])
    journal.write_text(journal.read_text().replace("run test\n", "run restored\n"))


def claims_of(engine: Engine, run: str = "test") -> set[tuple[Any, ...]]:
    claims, runs = tables.claims, tables.runs
    with reading(engine) as connection:
        found = connection.execute(
            sa.select(claims.c.cycle, claims.c.kind, claims.c.content_hash)
            .join(runs, runs.c.id == claims.c.run_id)
            .where(runs.c.name == run, claims.c.cycle.is_not(None))
        )
        return {tuple(row) for row in found}


def contents(engine: Engine) -> dict[str, list[Any]]:
    with reading(engine) as connection:
        return {
            name: sorted(map(repr, connection.execute(sa.select(table))))
            for name, table in tables.metadata.tables.items()
        }


def test_every_claim_is_in_the_journal(engine: Engine, journal: Path) -> None:
    """Scenarios and examples of a step, and scenarios of a skipped cycle: journal and database say the same."""
    ledger = new_run(engine, journal)
    assert not journal.exists()
    drive_to(ledger, CycleState.PAIRED)
    assert not journal.exists(), "nothing is spent before the claim"
    ledger.close(ledger.cycle(1), Outcome.SKIPPED, "all passed")
    promote_one(ledger)
    noted = list(entries(journal))
    assert [(number, kind.value) for number, kind, _ in noted] == [
        (1, "scenario"), (1, "scenario"), (2, "scenario"), (2, "scenario"), (2, "example"), (2, "example"),
    ]  # fmt: skip
    assert set(noted) == claims_of(engine)
    acquire(engine, journal)
    assert list(entries(journal)) == noted


@pytest.mark.parametrize("left", ["nothing", "half a line", "half of the claims"])
def test_a_crash_between_commit_and_journal_is_made_up_for(engine: Engine, journal: Path, left: str) -> None:
    """The database knows more than the journal, whichever part of it came to the disk: the start completes it."""
    ledger = new_run(engine, journal)
    promote_one(ledger)
    drive_to(ledger, CycleState.CLAIMED)
    lines = journal.read_text().splitlines(keepends=True)
    end = {"nothing": lines[:5], "half a line": [*lines[:5], lines[5][:20]], "half of the claims": lines[:7]}[left]
    journal.write_text("".join(end))
    acquire(engine, journal)
    assert sorted(journal.read_text().splitlines(keepends=True)) == sorted(lines)


def test_a_run_from_before_there_was_a_journal_gets_one(engine: Engine, journal: Path) -> None:
    """Its first start writes all of its claims; held-out texts are none."""
    create_run(engine, "test", 7, "models/small", {}, [("held", "a held-out text")])
    ledger = SqlLedger.acquire(engine, "test")
    ledger.register_base(make_checkpoint())
    promote_one(ledger)
    promote_one(ledger)
    acquire(engine, journal)
    assert set(entries(journal)) == claims_of(engine)
    assert len(claims_of(engine)) == 8


def test_an_older_database_is_refused_and_left_alone(engine: Engine, journal: Path) -> None:
    """The error says which file, how much is missing and both ways out; nothing is written, nobody is fenced."""
    ledger = new_run(engine, journal)
    promote_one(ledger)
    promote_one(ledger)
    restored(engine, journal)
    before = contents(engine)
    with pytest.raises(RestoredBackupError) as caught:
        acquire(engine, journal, "restored")
    said = str(caught.value)
    assert caught.value.exit_code == 78
    assert said.startswith(
        f"{journal}: 8 claims are not in the database, which ends at cycle 0, the journal at cycle 2"
    )
    assert "Restore a newer one, or run `dreamd db adopt-journal`" in said
    assert contents(engine) == before


def test_another_runs_journal_is_neither_obeyed_nor_adopted(engine: Engine, journal: Path) -> None:
    """Two runs in one state directory: the second is told so, at its start and when it adopts; nothing is written."""
    promote_one(new_run(engine, journal))
    create_run(engine, "second", 7, "models/small", {}, [])
    before, noted = contents(engine), journal.read_bytes()
    for attempt in (lambda: acquire(engine, journal, "second"), lambda: adopt_journal(engine, "second", journal)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        said = str(caught.value)
        assert said.startswith(f"{journal}: this state directory is run test's, not run second's")
        assert "give run second a run.state_dir of its own" in said
    assert (contents(engine), journal.read_bytes()) == (before, noted)


def test_the_first_run_to_claim_has_the_journal(engine: Engine, journal: Path) -> None:
    """Both started before there was a file: the second ends at its first claim, before its optimizer moves."""
    first = new_run(engine, journal)
    second = new_run(engine, journal, "second")
    promote_one(first)
    noted = journal.read_bytes()
    with pytest.raises(ConfigError, match="is run test's, not run second's"):
        drive_to(second, CycleState.CLAIMED)
    assert journal.read_bytes() == noted


def test_an_adopted_journal_repeats_nothing(engine: Engine, journal: Path) -> None:
    """Its hashes are spent, cycle numbers go on above its last, lost cycles say why; then the start is let through."""
    promote_one(new_run(engine, journal))
    promote_one(acquire(engine, journal))
    restored(engine, journal)
    old = SqlLedger.acquire(engine, "restored")
    old.register_base(make_checkpoint())
    assert adopt_journal(engine, "restored", journal) == 8
    with pytest.raises(FencedError):
        old.event("anything")
    assert claims_of(engine, "restored") == claims_of(engine)
    ledger = acquire(engine, journal, "restored")
    assert ledger.next_cycle_number() == 3
    assert [(ledger.cycle(number).outcome, ledger.head().version) for number in (1, 2)] == [(Outcome.LOST, "base")] * 2
    assert "claims journal" in str(ledger.cycle(1).reason)
    trained = [make_scenario(f"Name three owls, cycle 1, {index}.") for index in range(2)]
    assert ledger.refuse(trained).keys() == {scenario.content_hash for scenario in trained}
    with pytest.raises(AlreadyClaimedError, match="claimed by cycle 1"):
        drive_to(ledger, CycleState.CLAIMED, trained)
    assert adopt_journal(engine, "restored", journal) == 0


def test_a_cycle_whose_claims_are_all_known_is_adopted_too(engine: Engine, journal: Path) -> None:
    """Held out since, so that no claim is missing: refused for its number, and `adopt_journal` is the way out."""
    create_run(engine, "test", 7, "models/small", {}, [("a" * 64, "a held-out text")])
    SqlLedger.acquire(engine, "test").register_base(make_checkpoint())
    journal_file.append(journal, "test", 5, [(ClaimKind.SCENARIO, "a" * 64)])
    with pytest.raises(RestoredBackupError, match="0 claims are not in the database, which ends at cycle 0"):
        acquire(engine, journal)
    assert adopt_journal(engine, "test", journal) == 0
    ledger = acquire(engine, journal)
    assert (ledger.cycle(5).outcome, ledger.next_cycle_number()) == (Outcome.LOST, 6)


def paired(ledger: SqlLedger, prompt: str) -> Cycle:
    scenario = make_scenario(prompt)
    cycle = ledger.open_cycle(head=ledger.head(), run_seed=7, config={})
    ledger.record_plan(cycle, Draw((scenario,)))
    version = ledger.head().version
    ledger.record_sweep(cycle, [make_completion(scenario, policy_version=version)])
    example = make_example(scenario, policy_version=version)
    return ledger.record_pairs(cycle, [make_judgement()], [example], make_diversity())


def test_a_backup_of_a_real_file_is_detected_when_restored(
    sqlite_template: Path, tmp_path: Path, journal: Path, open_engine: Callable[..., Engine]
) -> None:
    """A backup in the middle of a cycle, two more claims, then the old file: refused; adopted, the cycle is lost.

    Of the cycle whose texts are in the backup even near-duplicates are refused.
    """
    path, backup = tmp_path / "dreamd.sqlite3", tmp_path / "backup"
    shutil.copy(sqlite_template, path)
    engine = open_engine(f"sqlite:///{path}")
    ledger = new_run(engine, journal)
    promote_one(ledger)
    prompt = " ".join(f"word{index}" for index in range(40))
    cycle = paired(ledger, prompt)
    back_up(path, backup)
    ledger.claim(cycle, ledger.examples(cycle))
    ledger.close(ledger.cycle(2), Outcome.LOST, "test")
    promote_one(ledger)
    known = claims_of(engine)
    engine.dispose()
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)
    backup.rename(path)

    engine = open_engine(f"sqlite:///{path}")
    with pytest.raises(RestoredBackupError, match="6 claims are not in the database, which ends at cycle 2"):
        acquire(engine, journal)
    assert adopt_journal(engine, "test", journal) == 6
    assert claims_of(engine) == known
    ledger = acquire(engine, journal)
    assert [ledger.cycle(number).outcome for number in (1, 2, 3)] == [Outcome.PROMOTED, Outcome.LOST, Outcome.LOST]
    assert ledger.unfinished() == ()
    (refusal,) = ledger.refuse([make_scenario(f"{prompt} again")]).values()
    assert refusal.reason == "near_duplicate"
    assert promote_one(ledger).number == 4
    assert set(entries(journal)) == claims_of(engine)


def test_a_claim_that_the_server_refused_is_not_noted(engine: Engine, journal: Path) -> None:
    """What was claimed before is refused by the database, and the journal stays as it is."""
    ledger = new_run(engine, journal)
    promote_one(ledger)
    before = journal.read_bytes()
    with pytest.raises(AlreadyClaimedError):
        drive_to(ledger, CycleState.CLAIMED, [make_scenario("Name three owls, cycle 1, 0.")])
    assert journal.read_bytes() == before


class Crash(BaseException):
    """The process is gone."""


def test_dying_anywhere_in_a_claim_leaves_both_in_step(
    engine: Engine, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each statement and commit of a claim, and before its note: after the next start both know the same.

    Until the claim returns the optimizer has not moved, so a claim that is in neither is no loss.
    """
    ledger = new_run(engine, journal)
    promote_one(ledger)
    survived = False
    for at in range(1, 100):
        seen = 0

        def tick(*_: object) -> None:
            nonlocal seen
            seen += 1
            if seen == at:  # noqa: B023
                raise Crash

        cycle = drive_to(ledger, CycleState.PAIRED)
        examples = ledger.examples(cycle)
        sa.event.listen(engine, "before_cursor_execute", tick)
        sa.event.listen(engine, "commit", tick)
        with monkeypatch.context() as patch:
            patch.setattr(journal_file.os, "fsync", tick)
            try:
                ledger.claim(cycle, examples)
                survived = True
            except Crash:
                pass
        sa.event.remove(engine, "before_cursor_execute", tick)
        sa.event.remove(engine, "commit", tick)
        ledger = acquire(engine, journal)
        assert set(entries(journal)) == claims_of(engine)
        spends = ledger.cycle(cycle.number).state.spends
        ledger.close(cycle, Outcome.LOST if spends else Outcome.ABANDONED, "the process ended")
        if survived:
            break
    assert survived
    assert at > 10

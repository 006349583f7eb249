"""What `dreamd probes`, `show` and `watchdog replay` ask, on both databases."""

from __future__ import annotations

from builders import drive_to, make_checkpoint

from daemon.domain.probing import ProbeResult, ProbeRun
from daemon.domain.records import Adjustments
from daemon.domain.states import CycleState, Outcome, ProbeReason
from daemon.storage import probe_queries
from daemon.storage.database import open_database
from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import create_run


def test_every_query_gives_the_same_on_both_databases(database_url: str) -> None:
    """Newest runs beside their anchors, confirmations apart, what was left out, adjustments, and a cycle's settings."""
    engine = open_database(database_url)
    create_run(engine, "default", 7, "models/small", {}, [])
    ledger = SqlLedger.acquire(engine, "default")
    assert probe_queries.probes(engine, "default", 10) == []
    assert probe_queries.adjustments_in_force(engine, "default") is None
    ledger.register_base(make_checkpoint())
    ledger.record_probes("base", [run("nll", 3.0, ProbeReason.ANCHOR)], None)
    cycle = drive_to(ledger, CycleState.PUBLISHED)
    ledger.record_probes("cycle-000001", [run("nll", 2.5), run("accept", 1.0, passed=True)], cycle)
    fresh = ProbeResult("accept.confirmation", "accept-7", 0.0, passed=False)
    ledger.record_probes("cycle-000001", [ProbeRun("accept", ProbeReason.CONFIRMATION, 1, "s", (fresh,), 2.0)], cycle)
    ledger.record_probes("base", [run("nll", 3.0, ProbeReason.ANCHOR)], None)  # newer, and of an anchor only
    found = {row["probe"]: row for row in probe_queries.probes(engine, "default", 10)}
    assert list(found) == ["accept", "accept.confirmation", "nll"]
    assert (found["nll"]["version"], found["nll"]["measured"]["mean"], found["nll"]["base"]["mean"]) == (
        "cycle-000001",
        2.5,
        3.0,
    )
    assert found["accept"]["measured"] == {"num_items": 1, "mean": 1.0, "pass_rate": 1.0}
    assert found["accept.confirmation"]["measured"]["pass_rate"] == 0.0
    assert found["nll"]["now"] == found["nll"]["base"]  # the head: nothing is promoted yet
    assert found["accept"]["baked"] is None
    assert probe_queries.settings_of_cycles(engine, "default", "training") == {1: {"lr": 1e-5}}
    assert probe_queries.settings_of_cycles(engine, "default", "watchdog") == {}
    ledger.close(cycle, Outcome.LOST, "for this test")
    second = ledger.open_cycle(
        head=ledger.head(), run_seed=7, config={}, adjustments=Adjustments(lr_factor=0.5), decisions=()
    )
    ledger.record_probes("cycle-000001", [run("nll", 2.5)], second)
    assert probe_queries.unmeasured(engine, "default", 2) == [{"probe": "accept", "cycle": 1}]
    assert probe_queries.adjustments_in_force(engine, "default") == {"number": 2, "adjustments": {"lr_factor": 0.5}}
    engine.dispose()


def run(probe: str, value: float, reason: ProbeReason = ProbeReason.CORE, passed: bool | None = None) -> ProbeRun:
    return ProbeRun(probe, reason, 0, "s", (ProbeResult(probe, f"{probe}-1", value, passed),), 1.0)

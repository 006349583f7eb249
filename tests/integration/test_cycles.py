"""Whole cycles on real parts: tiny model, transformers engine, real databases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import RecordingObserver, check_invariants, dream, flip_bit, load, make_run, outcomes, query

from daemon import app, checkpoint_tools
from daemon.checkpoints.store import DirectoryStore
from daemon.config.schedule import plan_step
from daemon.domain.errors import (
    CheckpointError,
    ConfigError,
    DiskError,
    LockedError,
    StaleEngineError,
    UsageError,
)
from daemon.domain.states import CycleState, Decision, RollbackTarget
from daemon.domain.verdicts import Evidence, History, Verdict
from daemon.preferences.pairing import JudgedPreferences
from daemon.storage.database import open_database
from daemon.storage.lock import RunLock
from daemon.sweep.transformers_engine import TransformersEngine
from daemon.training import objectives
from daemon.training.policy import TorchPolicy
from daemon.training.snapshot import TorchSnapshot

POISON = ("training.lr=1.0", "training.allow_unsafe_lr=true")


@pytest.fixture
def sqlite_run(tmp_path: Path) -> Path:
    return make_run(tmp_path, "")


def nll(file: Path, version: str) -> dict[str, float]:
    rows = query(file, f"select item, value from probe_results where probe = 'nll' and version = '{version}'")
    return {str(item): float(value) for item, value in rows}


def test_cycles_promote_and_never_repeat(tmp_path: Path, database_url: str) -> None:
    """Three cycles: states in order, every completion on-policy, engine proven, no scenario or example twice."""
    file = make_run(tmp_path, database_url)
    observer = RecordingObserver()
    assert dream(file, 3, observer=observer) == 3
    assert outcomes(file) == ["promoted"] * 3
    assert observer.states[:6] == [
        CycleState.SWEPT,
        CycleState.PAIRED,
        CycleState.CLAIMED,
        CycleState.STEPPED,
        CycleState.PUBLISHED,
        CycleState.PROBED,
    ]
    stray = query(
        file,
        "select count(*) from completions x join cycles c on c.run_id = x.run_id and c.number = x.cycle "
        "where x.policy_version != c.parent_version",
    )
    assert stray == [(0,)], "I6: a completion of another version"
    checks = query(file, "select mean_abs_diff, weights_match from engine_checks")
    assert len(checks) >= 2 * 3 and all(difference < 1e-4 and match for difference, match in checks)
    sides = query(file, "select cycle, side, count(*) from scenarios group by cycle, side order by cycle, side")
    assert [count for _, side, count in sides if side == "general"] == [2, 2, 2]
    finished = [fields for name, fields in observer.events if name == "cycle_finished"]
    assert [fields["cycle"] for fields in finished] == [1, 2, 3]
    assert {"sample", "sweep", "step", "publish", "probe", "engine"} <= finished[0]["seconds"].keys()
    check_invariants(file)


def test_straight_and_resumed_runs_are_the_same_bits(tmp_path: Path) -> None:
    """Four cycles in one process, or two and two: identical checkpoints, examples and measurements."""
    results = []
    for name, parts in (("straight", (4,)), ("resumed", (2, 2))):
        (tmp_path / name).mkdir()
        file = make_run(tmp_path / name, "")
        for cycles in parts:
            dream(file, cycles)
        results.append(
            (
                query(file, "select version, weights_digest, optimizer_digest from checkpoints order by 1"),
                query(file, "select cycle, position, content_hash from examples order by 1, 2"),
                query(file, "select cycle, ordinal, text, mean_logprob from completions order by 1, 2"),
                query(file, "select version, probe, item, value from probe_results order by 1, 2, 3"),
            )
        )
    assert results[0] == results[1]


def test_poisoned_step_rolls_back_by_itself(tmp_path: Path, database_url: str) -> None:
    """A learning rate of 1.0 for one cycle: refused, restored bit for bit, and the next cycle goes on from there."""
    file = make_run(tmp_path, database_url)
    dream(file, 2)
    dream(file, 1, *POISON)
    assert outcomes(file) == ["promoted", "promoted", "rolled_back"]
    ((target, verification),) = query(file, "select to_version, verification from rollbacks")
    proof = json.loads(verification) if isinstance(verification, str) else verification
    assert target == "cycle-000002"
    assert proof["nll_items_equal"] == 8
    assert proof["engine"]["weights_match"] is True
    before = nll(file, target)
    dream(file, 1)
    assert outcomes(file)[-1] == "promoted"
    assert query(file, "select parent_version from cycles where number = 4") == [(target,)]
    assert nll(file, target) == before
    check_invariants(file)


def test_live_policy_after_a_rollback_measures_as_stored(sqlite_run: Path) -> None:
    """Loading the head afterwards in a new process gives exactly the stored NLL of the target, item by item.

    Measured by the probe itself: what is scored together has the same bits, and on some processors nothing else has.
    """
    from daemon.probes import names
    from daemon.probes.suite import load_suite
    from daemon.probes.trainer_side import TrainerProbes
    from daemon.training.encoder import ChatEncoder
    from daemon.training.inspector import TorchInspector

    dream(sqlite_run, 1)
    dream(sqlite_run, 1, *POISON)
    config = load(sqlite_run).config
    store = DirectoryStore(config.run.state_dir / "checkpoints")
    policy = TorchPolicy(store.path("base"), config.training, "cpu", store.open)
    policy.restore(store.verify("cycle-000001"))
    encoder, base = ChatEncoder(store.path("base")), store.verify("base")
    probes = TrainerProbes(policy, TorchInspector(policy), encoder, load_suite(), base, config.probes)
    results, _ = probes.measure(names.NLL, lambda done: None)
    assert {result.item: result.value for result in results} == nll(sqlite_run, "cycle-000001")
    assert len(results) == 8


def test_nan_loss_fails_the_cycle_and_changes_nothing(sqlite_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN loss: outcome failed with the reason, nothing published, examples spent, and the next cycle is sound."""
    orpo = objectives.orpo
    calls: list[int] = []

    def poisoned(nll: torch.Tensor, *rest: Any) -> Any:
        calls.append(1)
        return orpo(nll * float("nan") if len(calls) == 2 else nll, *rest)

    monkeypatch.setattr(objectives, "orpo", poisoned)
    dream(sqlite_run, 2)
    assert outcomes(sqlite_run) == ["failed", "promoted"]
    ((reason,),) = query(sqlite_run, "select reason from cycles where number = 1")
    assert "nan" in reason and "did not move" in reason
    assert query(sqlite_run, "select parent_version from cycles where number = 2") == [("base",)]
    assert query(sqlite_run, "select count(*) from claims where cycle = 1 and kind = 'example'")[0][0] > 0
    check_invariants(sqlite_run)


def test_nothing_to_learn_skips(sqlite_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a usable example the cycle is skipped, its scenarios are spent, and the head stays."""
    monkeypatch.setattr(JudgedPreferences, "pair", lambda *args: ())
    dream(sqlite_run, 1)
    assert outcomes(sqlite_run) == ["skipped"]
    assert query(sqlite_run, "select count(*) from claims where kind = 'scenario'") == [(5,)]
    assert query(sqlite_run, "select head_version from runs") == [("base",)]
    check_invariants(sqlite_run)


@pytest.mark.parametrize(
    ("state", "first"),
    [
        (CycleState.SWEPT, "abandoned"),
        (CycleState.PAIRED, "abandoned"),
        (CycleState.CLAIMED, None),
        (CycleState.PUBLISHED, None),
    ],
)
def test_stop_before_the_claim_abandons_after_it_publishes(
    sqlite_run: Path, state: CycleState, first: str | None
) -> None:
    """A stop before the claim abandons the cycle; after it, the cycle publishes and is finished at the next start."""
    dream(sqlite_run, 3, observer=RecordingObserver(stop_at=state))
    stopped = query(sqlite_run, "select state, outcome from cycles")
    if first is None:
        assert stopped == [("published", None)]
        dream(sqlite_run, 1)
        assert outcomes(sqlite_run) == ["promoted", "promoted"]
    else:
        assert stopped == [("finished", first)]
        assert query(sqlite_run, "select count(*) from claims where kind != 'held_out'") == [(0,)]
    check_invariants(sqlite_run)


def test_full_disk_while_publishing_loses_the_cycle(sqlite_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC in the checkpoint: nothing is half-written, the cycle is lost; the second time in a row ends with 74."""
    write = TorchSnapshot.write

    def full(self: TorchSnapshot, directory: Path) -> Any:
        write(self, directory)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TorchSnapshot, "write", full)
    with pytest.raises(DiskError) as raised:
        dream(sqlite_run, 5)
    assert raised.value.exit_code == 74
    monkeypatch.undo()
    assert outcomes(sqlite_run) == ["lost", "lost"]
    directories = load(sqlite_run).config.run.checkpoints_dir
    assert sorted(entry.name for entry in directories.iterdir() if entry.is_dir()) == ["base"]
    dream(sqlite_run, 1)
    check_invariants(sqlite_run)


def test_stale_engine_is_noticed(sqlite_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that ignores its sync is found out before a single answer is used, and the process ends."""

    def forget(self: TransformersEngine, weights: Any, version: str) -> None:
        self._version = version

    monkeypatch.setattr(TransformersEngine, "sync", forget)
    with pytest.raises(StaleEngineError, match="cycle-000001"):
        dream(sqlite_run, 2)
    monkeypatch.undo()
    assert query(sqlite_run, "select state, outcome from cycles") == [("published", None)]
    dream(sqlite_run, 1)
    assert outcomes(sqlite_run) == ["promoted", "promoted"]
    check_invariants(sqlite_run)


def test_damaged_head_stops_the_start(sqlite_run: Path) -> None:
    """A flipped bit in the head is found before anything is loaded; the error names the file."""
    weights = load(sqlite_run).config.run.state_dir / "checkpoints" / "base" / "model.safetensors"
    flip_bit(weights)
    with pytest.raises(CheckpointError, match=r"base/model\.safetensors"):
        dream(sqlite_run, 1)
    assert outcomes(sqlite_run) == []


def test_second_daemon_is_refused(tmp_path: Path, database_url: str) -> None:
    """While one process holds the run, another exits with 75 and writes nothing."""
    file = make_run(tmp_path, database_url)
    engine = open_database(load(file).config.run.url)
    before = query(file, "select epoch from runs")
    with RunLock(engine, "default"), pytest.raises(LockedError) as raised:
        dream(file, 1)
    assert raised.value.exit_code == 75
    assert query(file, "select epoch from runs") == before
    engine.dispose()


def test_operator_rollback(sqlite_run: Path) -> None:
    """`rollback` goes to the parent, verifies it, and the next cycle trains from there; to a lossy one only by name."""
    dream(sqlite_run, 3)
    with pytest.raises(UsageError, match=r"restore cycle-000001 --lossy"):
        app.roll_back(load(sqlite_run), RecordingObserver(), to_cycle=1)
    report = app.roll_back(load(sqlite_run), RecordingObserver(), to_cycle=2)
    assert (report["from"], report["to"], report["verified"]) == ("cycle-000003", "cycle-000002", True)
    dream(sqlite_run, 1)
    assert query(sqlite_run, "select parent_version from cycles where number = 4") == [("cycle-000002",)]
    with pytest.raises(UsageError, match="cycle 9"):
        app.roll_back(load(sqlite_run), RecordingObserver(), to_cycle=9)
    check_invariants(sqlite_run)


def test_a_lossy_head_goes_on_from_its_image(sqlite_run: Path) -> None:
    """Gone back to an image: its weights in bfloat16 are live, a restart gives the same, and later steps are exact."""
    dream(sqlite_run, 3)
    app.roll_back(load(sqlite_run), RecordingObserver(), to_cycle=1, lossy=True)
    ((evidence,),) = query(sqlite_run, "select verification from rollbacks")
    assert json.loads(str(evidence))["lossy"] is True
    dream(sqlite_run, 2)
    assert query(sqlite_run, "select parent_version from cycles order by number") == [
        ("base",), ("cycle-000001",), ("cycle-000002",), ("cycle-000001",), ("cycle-000004",),
    ]  # fmt: skip
    config = load(sqlite_run).config
    store = DirectoryStore(config.run.checkpoints_dir)
    policy = TorchPolicy(store.path("base"), config.training, "cpu", store.open, open_image=store.image)
    head = store.verify("cycle-000005")
    policy.restore(head)
    image = store.image(head)
    assert all(torch.equal(image[name], weight.bfloat16()) for name, weight in policy.weights().items())


def test_retention_keeps_what_a_rollback_needs(tmp_path: Path) -> None:
    """Two exact ones and three images: older ones become lossy, then go with all they have; chains hold, rows stay."""
    retention = {"keep_last": 3, "keyframe_every": 2}
    file = make_run(tmp_path, "", checkpoints=retention, watchdog={"baked_after": 50})
    dream(file, 7)
    rows = query(file, "select version, kind, state, exact from checkpoints order by version")
    assert [(version[-1], kind, state, bool(exact)) for version, kind, state, exact in rows] == [
        ("e", "full", "base", True),
        ("1", "delta", "pruned", False),
        ("2", "delta", "pruned", False),
        ("3", "keyframe", "promoted", False),  # with 4, what the image of 5 is made of
        ("4", "delta", "promoted", False),
        ("5", "delta", "promoted", False),
        ("6", "keyframe", "promoted", True),
        ("7", "delta", "promoted", True),
    ]
    with pytest.raises(UsageError, match="pruned"):
        app.roll_back(load(file), RecordingObserver(), to_cycle=1)
    check_invariants(file)


def test_a_rejected_candidate_loses_its_exact_state(tmp_path: Path) -> None:
    """Retention runs after a rollback as well: of three rejected ones only the newest two are still whole."""

    class Refusing:
        """Mirrors the `Judge` port: no candidate is good enough."""

        suspects = staticmethod(lambda history: False)
        gate = staticmethod(lambda history, evidence: None)

        def judge(self, history: History, evidence: Evidence) -> Verdict:
            parent = history.parent_anchor.version
            return Verdict(Decision.ROLL_BACK, "refused", RollbackTarget.PARENT, {}, parent)

    file = make_run(tmp_path, "", breaker={"max_in_a_row": 9, "max_in_window": 9})
    dream(file, 1)
    dream(file, 3, prepare=lambda stages: replace(stages, judge=Refusing()))
    assert outcomes(file) == ["promoted", "rolled_back", "rolled_back", "rolled_back"]
    exact = query(file, "select version, exact from checkpoints where state = 'rejected' order by version")
    assert [(version[-1], bool(value)) for version, value in exact] == [("2", False), ("3", True), ("4", True)]
    weights = load(file).config.run.checkpoints_dir.glob("cycle-*/model.safetensors")
    assert sorted(file.parent.name[-1] for file in weights) == ["1", "3", "4"]
    check_invariants(file)


def test_a_cycle_counts_though_the_stop_comes_in_its_upkeep(sqlite_run: Path) -> None:
    """A stop after the verdict cuts off what is done for the checkpoints, not the count of finished cycles."""

    class StopsAfterwards(RecordingObserver):
        def log(self, event: str, **fields: Any) -> None:
            super().log(event, **fields)
            self.stopping = self.stopping or event == "cycle_finished"

    assert dream(sqlite_run, 3, observer=StopsAfterwards()) == 1
    assert outcomes(sqlite_run)[0] == "promoted"


def test_export_is_an_ordinary_folder(sqlite_run: Path, tmp_path: Path) -> None:
    """transformers loads the exported folder, and its weights are the checkpoint's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dream(sqlite_run, 1)
    report = checkpoint_tools.export(load(sqlite_run), "cycle-000001", tmp_path / "exported")
    assert report["exported"] == "cycle-000001"
    names = {file.name for file in (tmp_path / "exported").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"manifest.json", "optimizer.state"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").chat_template
    store = DirectoryStore(load(sqlite_run).config.run.state_dir / "checkpoints")
    policy = TorchPolicy(store.path("base"), load(sqlite_run).config.training, "cpu", store.open)
    policy.restore(store.verify("cycle-000001"))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, policy.weights()[name])


def test_seed_is_fixed_at_init(sqlite_run: Path) -> None:
    """Another run.seed than the run was created with is refused before anything is written."""
    with pytest.raises(ConfigError, match=r"run\.seed"):
        dream(sqlite_run, 1, "run.seed=8")
    assert outcomes(sqlite_run) == []


def test_a_larger_suite_measures_the_anchors_anew(sqlite_run: Path) -> None:
    """Raising probes.nll_documents between starts measures base and head on the new items, and the run goes on."""
    dream(sqlite_run, 1)
    dream(sqlite_run, 1, "probes.nll_documents=12")
    dream(sqlite_run, 1)
    assert outcomes(sqlite_run) == ["promoted"] * 3
    assert len(nll(sqlite_run, "base")) == 12


def test_a_larger_suite_with_a_published_candidate(sqlite_run: Path) -> None:
    """Stopped once published, restarted with more held-out documents: the anchors are measured before the verdict."""
    dream(sqlite_run, 1, observer=RecordingObserver(stop_at=CycleState.PUBLISHED))
    dream(sqlite_run, 1, "probes.nll_documents=12")
    assert outcomes(sqlite_run) == ["promoted", "promoted"]
    assert len(nll(sqlite_run, "base")) == len(nll(sqlite_run, "cycle-000001")) == 12
    check_invariants(sqlite_run)


PLAN = [
    {"objective": "sft", "cycles": 1},
    {"objective": "orpo", "cycles": 5, "schedule": "cosine"},
    {"objective": "dpop", "cycles": 1},
    {"objective": "dpo", "cycles": 1, "lr": 1e-6},
    {"objective": "orpo"},
]


def test_a_plan_of_phases_runs_through(tmp_path: Path) -> None:
    """SFT, ORPO, DPOP, DPO, ORPO: each step has its phase's objective, rate and reference, every change is a row, and
    a rate twenty times the last one does not look like an accident to the watchdog."""
    training = {"phases": PLAN, "reference": "baked", "rank": 4}
    kept = {"keep_exact": 20}  # the replay needs the references
    file = make_run(tmp_path, "", training=training, watchdog={"baked_after": 3}, checkpoints=kept)
    dream(file, 9)
    assert outcomes(file) == ["promoted"] * 9
    steps = query(file, "select cycle, phase, objective, reference_version, lr from steps order by cycle")
    assert [row[1:4] for row in steps] == [
        (1, "sft", None),
        *[(2, "orpo", None)] * 5,
        (3, "dpop", "cycle-000003"),
        (4, "dpo", "cycle-000003"),
        (5, "orpo", None),
    ]
    assert [row[4] for row in steps] == [plan_step(load(file).config.training, cycle).lr for cycle in range(1, 10)]
    reasons = ["first step", "phase", *["schedule"] * 4, "phase", "phase", "phase"]
    assert query(file, "select cycle, reason from lr_changes order by cycle") == list(enumerate(reasons, start=1))
    check_invariants(file)


def test_a_damaged_reference_costs_no_batch(tmp_path: Path) -> None:
    """The anchor that DPO compares with is verified before the claim: the cycle fails, nothing is spent."""
    file = make_run(tmp_path, "", training={"objective": "dpo"})
    dream(file, 1)
    weights = tmp_path / "state" / "checkpoints" / "base" / "model.safetensors"
    flip_bit(weights)
    with pytest.raises(CheckpointError, match=r"base/model\.safetensors"):
        dream(file, 1)
    assert outcomes(file) == ["promoted", "failed"]
    assert query(file, "select count(*) from claims where cycle = 2") == [(0,)]

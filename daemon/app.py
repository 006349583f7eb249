"""Composition root: builds every stage from the configuration, and nothing else knows them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from daemon.checkpoints.mirror import FsspecMirror
from daemon.checkpoints.remote import without_password
from daemon.checkpoints.scrub import StoreScrubber
from daemon.checkpoints.store import DirectoryStore
from daemon.config import Config, Loaded
from daemon.config.load import JUDGE_KEY_VARIABLE
from daemon.config.schedule import plan_step
from daemon.config.sections import PreferencesConfig
from daemon.cycle.before_loading import Repair
from daemon.cycle.guard import Pause, before_cycle
from daemon.cycle.mirroring import queue_all, refuse_older_journal
from daemon.cycle.recover import recover
from daemon.cycle.restore import restore
from daemon.cycle.restore import verify as verify_rollback
from daemon.cycle.run import run_cycle
from daemon.cycle.stages import Stages
from daemon.cycle.upkeep import PausedUpkeep, maintain
from daemon.domain import failpoints
from daemon.domain.errors import CheckpointError, ConfigError, StopRequested, UsageError
from daemon.domain.novelty import conversation_text
from daemon.domain.records import Checkpoint, WrittenState
from daemon.domain.states import CheckpointState, Outcome
from daemon.ports import Engine, Mirror, Observer, Snapshot, Weights
from daemon.preferences import (
    ContrastJudge,
    EndpointJudge,
    JudgedPreferences,
    Judges,
    LocalModelJudge,
    ModelJudge,
)
from daemon.preferences.rules import Tools
from daemon.preferences.sandbox import Sandbox
from daemon.probes.measure import HeldOutProbes
from daemon.probes.suite import load_suite
from daemon.scenarios.imports.clean import special_tokens
from daemon.scenarios.source import MixtureSource, build_source
from daemon.service.notify import Notifier
from daemon.service.scheduler import Service
from daemon.service.state_dir import prepare_state_dir
from daemon.service.stop import StopFlag
from daemon.storage.database import open_database, redacted
from daemon.storage.journal import require_owner
from daemon.storage.ledger import SqlLedger
from daemon.storage.lock import RunLock
from daemon.storage.migrate import check_schema, upgrade
from daemon.storage.runs import Run, create_run, load_run
from daemon.sweep.deadline import DeadlineEngine
from daemon.sweep.plan import PolicySweeper
from daemon.training.encoder import ChatEncoder
from daemon.training.inspector import TorchInspector
from daemon.training.model_folder import check_model_folder, copy_assets
from daemon.training.policy import TorchPolicy
from daemon.training.small_model import build_small_model
from daemon.watchdog.breaker import RollbackBreaker
from daemon.watchdog.governor import BaseSettings, RuleGovernor
from daemon.watchdog.judge import Watchdog

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # dreamd shows its own

BASE = "base"
"""Version of the checkpoint made from the base model."""


@dataclass(frozen=True)
class InitReport:
    """What `init_run` found or made."""

    database_url: str
    base_version: str
    state_dir: Path
    created: bool


def init_run(loaded: Loaded, observer: Observer, *, small_model: bool) -> InitReport:
    """Create whatever of state directory, model folder, database, run and base checkpoint is missing.

    Raises:
        ConfigError: the state directory is another run's.
        RestoredBackupError: it was trained in before, with another database; all is made, and this one can adopt that.
        DreamdError: something cannot be used; what was made before it stays and is found by the next call.
    """
    config = loaded.config
    prepare_state_dir(config.run.state_dir)
    if small_model:
        with observer.stage(None, "build the small model"):
            build_small_model(config.model.path)
    check_model_folder(config.model.path)
    source = build_source(config.scenarios, special_tokens(config.model.path))
    upgrade(config.run.url)
    engine = open_database(config.run.url)
    with RunLock(engine, config.run.name) as lock:
        require_owner(config.run.claims_log, config.run.name)
        _hold_out(engine, config, source, config.run.seed)
        created = load_run(engine, config.run.name).head_version is None
        if created:  # before the claims journal is compared: to adopt it, a database that is new needs a head
            with observer.stage(None, "import the base model"):
                base = _import_base(config, _store(config))
                SqlLedger.acquire(engine, config.run.name, lock=lock).register_base(base)
        _acquire(engine, config, lock)
    engine.dispose()
    return InitReport(redacted(config.run.url), BASE, config.run.state_dir, created)


def serve(
    loaded: Loaded,
    observer: Observer,
    stop: StopFlag,
    *,
    cycles: int | None,
    notifier: Notifier,
    prepare: Callable[[Stages], Stages] = lambda stages: stages,
) -> int:
    """Own the run and dream until stopped; returns the number of cycles that finished.

    Args:
        prepare: changes the stages once they are built; experiments put faults in with it.

    Raises:
        BreakerOpenError: `cycles` are asked for, and the breaker is open.
        LockedError: another daemon owns the run.
        DreamdError: a stage failed.
    """
    config = loaded.config
    failpoints.activate_from(os.environ)
    mirror = mirror_of(config, observer.check_stop)
    with _owned(loaded, damaged_head=mirror is not None) as (ledger, run, source):
        notifier.ready()
        stages: list[Stages] = []
        paused = PausedUpkeep()

        def setup() -> None:
            if mirror is not None:
                refuse_older_journal(mirror, config.run.claims_log)
                # It may have what does not verify here.
                Repair(ledger, _store(config), mirror, observer, config.watchdog.baked_after).run()
            stages.append(prepare(_build(config, ledger, run.seed, source, observer)))
            recover(stages[0])
            queue_all(stages[0])

        def teardown() -> None:
            for built in stages:
                built.engine.close()

        def one_cycle() -> Outcome | Pause:
            pause = before_cycle(stages[0], datetime.now(UTC))
            if pause is not None:
                if cycles is None:  # else it is an error, and ends this
                    paused.run(stages[0], pause)
                return pause
            outcome = run_cycle(stages[0])
            with suppress(StopRequested):  # the cycle is finished and counts; a stop is seen before the next
                maintain(stages[0])
            return outcome

        service = Service(
            one_cycle, stop, config.service.interval_s, cycles, setup=setup, teardown=teardown, notifier=notifier
        )
        return service.run()


def roll_back(loaded: Loaded, observer: Observer, *, to_cycle: int | None, lossy: bool = False) -> dict[str, Any]:
    """An operator's rollback: the head becomes an earlier checkpoint, which is restored and verified.

    Args:
        to_cycle: the cycle whose checkpoint to go to, 0 for the base; None for the head's parent.
        lossy: take one of which only the image is kept.

    Raises:
        UsageError: there is no such checkpoint, or its files are gone.
    """
    config = loaded.config
    with _owned(loaded, damaged_head=True) as (ledger, run, source):
        target = _find_target(ledger, to_cycle)
        if not (target.exact or lossy):
            raise UsageError(
                f"of {target.version} only the image is kept, its weights in bfloat16: "
                f"`dreamd checkpoints restore {target.version} --lossy` goes there, with a fresh optimizer"
            )
        _store(config).open(target)  # the head must load at every instant, so look before it moves
        left = _leave_damaged_head(ledger, _store(config), target)
        stages = _build(config, ledger, run.seed, source, observer)
        try:
            recover(stages)
            before = left or ledger.head().version
            if target.version == before:
                raise UsageError(f"{before} is the head already")
            if left is None:
                evidence = verify_rollback(stages, ledger.roll_back_head(target, "asked for by an operator"), None)
            else:
                evidence = restore(stages, target, None)
        finally:
            stages.engine.close()
    return {"from": before, "to": target.version, "verified": True, "documents_equal": evidence["nll_items_equal"]}


def _leave_damaged_head(ledger: SqlLedger, store: DirectoryStore, target: Checkpoint) -> str | None:
    """Move the head to `target` before anything is loaded, if it does not verify; the version that it was.

    The way out of a head whose files are damaged: nothing can start from it, and no cycle of it can be finished.
    """
    head = ledger.head()
    try:
        store.open(head)
    except CheckpointError as error:
        if target.version == head.version:
            raise
        for cycle in ledger.unfinished():
            outcome = Outcome.LOST if cycle.state.spends else Outcome.ABANDONED
            ledger.close(cycle, outcome, f"its parent does not verify any more: {error}")
        ledger.roll_back_head(target, f"asked for by an operator; {head.version} does not verify: {error}")
        return head.version
    return None


@dataclass(frozen=True)
class _WithAssets:
    """A snapshot that is a whole model folder: configuration, tokenizer and chat template as well."""

    snapshot: Snapshot
    model_dir: Path

    @property
    def weights(self) -> Weights:
        return self.snapshot.weights

    @property
    def changes(self) -> None:
        return None

    def write(self, directory: Path) -> WrittenState:
        copy_assets(self.model_dir, directory)
        return self.snapshot.write(directory)


@contextmanager
def _owned(loaded: Loaded, *, damaged_head: bool = False) -> Iterator[tuple[SqlLedger, Run, MixtureSource]]:
    """Hold the run's lock and epoch: everything that can refuse a start without loading a model.

    Args:
        damaged_head: go on with a head that does not verify.
    """
    config = loaded.config
    prepare_state_dir(config.run.state_dir)
    engine = open_database(config.run.url)
    try:
        check_schema(engine)
        source = build_source(config.scenarios, special_tokens(_store(config).path(BASE)))
        with RunLock(engine, config.run.name) as lock:
            run = load_run(engine, config.run.name)
            if loaded.source("run.seed") != "default" and config.run.seed != run.seed:
                raise ConfigError(
                    f"{loaded.source('run.seed')}: run.seed = {config.run.seed}, but run {run.name} was created with "
                    f"{run.seed}; a seed is fixed at `dreamd init`: set it back, or choose another run.name"
                )
            ledger = _acquire(engine, config, lock)
            _hold_out(engine, config, source, run.seed)  # a pack added since `init` brings items of its own
            if not damaged_head:
                _store(config).open(ledger.head())
            yield ledger, run, source
    finally:
        engine.dispose()


def _acquire(engine: Any, config: Config, lock: RunLock) -> SqlLedger:
    return SqlLedger.acquire(
        engine,
        config.run.name,
        baked_after=config.watchdog.baked_after,
        rest_cycles=config.governor.rest_cycles,
        reference_items=config.watchdog.reference_items,
        journal=config.run.claims_log,
        lock=lock,
    )


def _hold_out(engine: Any, config: Config, source: MixtureSource, seed: int) -> None:
    """Make the run if it is missing, and keep everything the probes may ask from ever being claimed."""
    held_out = _held_out_texts(config, source)
    create_run(engine, config.run.name, seed, str(config.model.path), _recorded(config), held_out)


def _held_out_texts(config: Config, source: MixtureSource) -> Iterator[tuple[str, str]]:
    """(content hash, text) of all that probes may ask or measure."""
    for scenario in source.all_held_out():
        yield scenario.content_hash, conversation_text(scenario.messages)
    yield from load_suite(config.probes.suites).held_out()


def _build(config: Config, ledger: SqlLedger, run_seed: int, source: MixtureSource, observer: Observer) -> Stages:
    """Load the model into trainer and engine and wire every stage."""
    device = _device(config)
    store = _store(config)
    base_dir = store.path(ledger.lineage()[-1].version)
    with observer.stage(None, "load trainer"):
        encoder = ChatEncoder(base_dir)
        policy = TorchPolicy(base_dir, config.training, device, store.open, open_image=store.image, seed=run_seed)
    with observer.stage(None, "load engine"):
        engine = DeadlineEngine(
            lambda: _engine(config, base_dir, encoder, device),
            config.sweep.deadline_s,
            config.run.state_dir,
            observer.log,
        )
    judges = _judges(config.preferences, encoder, policy, ledger, observer)
    preferences = JudgedPreferences(encoder, config.preferences.chosen_order, judges)
    names = source.held_out_probes()
    probes = HeldOutProbes(
        policy,
        TorchInspector(policy),
        engine,
        encoder,
        preferences,
        load_suite(config.probes.suites),
        {name: source.held_out_pool(name) for name in names},
        {name: source.held_out_reserve(name) for name in names},
        ledger.lineage()[-1],
        config.probes,
    )
    return Stages(
        source=source,
        sweeper=PolicySweeper(engine, encoder, config.sweep),
        preferences=preferences,
        policy=policy,
        engine=engine,
        store=store,
        probes=probes,
        judge=Watchdog(config.watchdog),
        governor=RuleGovernor(config.governor, lambda cycle: _base_settings(config, cycle, frozenset(names))),
        breaker=RollbackBreaker(config.breaker),
        ledger=ledger,
        observer=observer,
        run_seed=run_seed,
        config=_recorded(config),
        retention=config.retention,
        baked_after=config.watchdog.baked_after,
        warmup_cycles=config.watchdog.warmup_cycles,
        reference_items=config.watchdog.reference_items,
        mirror=mirror_of(config, observer.check_stop),
        claims_log=config.run.claims_log,
        scrubber=StoreScrubber(store),
        scrub_bytes=config.checkpoints.scrub_mib * 2**20,
        rehearse_every=timedelta(days=days) if (days := config.checkpoints.rehearse_every_days) else None,
    )


def mirror_of(config: Config, check: Callable[[], None] = lambda: None) -> Mirror | None:
    """The second place for checkpoints, if there is one; `check` is called while it is waited for."""
    settings = config.checkpoints
    return (
        None
        if settings.mirror_url is None
        else FsspecMirror(settings.mirror_url, exact=settings.mirror_exact, check=check)
    )


def _base_settings(config: Config, cycle_number: int, packs: frozenset[str]) -> BaseSettings:
    """What the governor's changes apply to in a cycle."""
    plan = plan_step(config.training, cycle_number)
    return BaseSettings(
        lr=plan.lr,
        objective=plan.objective,
        per_cycle=config.scenarios.per_cycle,
        general_fraction=config.scenarios.general_fraction,
        orpo_weight=config.training.orpo_weight,
        packs=packs,
    )


def _judges(
    config: PreferencesConfig, encoder: ChatEncoder, policy: TorchPolicy, ledger: SqlLedger, observer: Observer
) -> Judges:
    """Rules with their sandbox and their model, and who judges where there is no rule."""

    def report(name: str, payload: Mapping[str, Any]) -> None:
        ledger.event(name, level="warning", **payload)
        observer.log(name, level="warning", **payload)

    endpoint = None
    if config.judge_url:
        key = os.environ.get(JUDGE_KEY_VARIABLE)
        endpoint = EndpointJudge(config.judge_url, config.judge_model, key, config.judge_timeout_s)
    model = endpoint or LocalModelJudge(encoder, policy)
    without_rule: dict[str, ContrastJudge | ModelJudge] = {
        "contrast": ContrastJudge(encoder, policy, config.contrast_margin),
        "model": ModelJudge(model),
    }
    sandbox = Sandbox.find(config.code_timeout_s, config.code_memory_mib)
    if sandbox is None:
        report("code_checks_skipped", {"reason": Sandbox.why_none()})
    tools = Tools(sandbox=sandbox, ask=model.ask)
    return Judges(tools, without_rule.get(config.judge_without_rule), endpoint, report)


def _engine(config: Config, model_dir: Path, encoder: ChatEncoder, device: str) -> Engine:
    if config.sweep.engine == "vllm":
        from daemon.sweep.vllm_engine import VllmEngine

        return VllmEngine(model_dir, BASE, encoder.end_of_turn, config.sweep)
    from daemon.sweep.transformers_engine import TransformersEngine

    return TransformersEngine(model_dir, BASE, encoder.end_of_turn, encoder, config.sweep, device)


def _store(config: Config) -> DirectoryStore:
    return DirectoryStore(config.run.checkpoints_dir, keyframe_every=config.checkpoints.keyframe_every)


def _device(config: Config) -> str:
    if config.model.device != "auto":
        return config.model.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _import_base(config: Config, store: DirectoryStore) -> Checkpoint:
    """Publish the base model as the first checkpoint: dreamd's own copy, which nobody else changes."""
    if store.exists(BASE):
        try:
            return store.verify(BASE)  # published by an init that was killed before it was registered
        except CheckpointError:
            store.clean(())
    policy = TorchPolicy(config.model.path, config.training, "cpu", store.open)
    snapshot = _WithAssets(policy.snapshot(), config.model.path)
    return store.publish(BASE, snapshot, cycle_number=None, parent=None, batch_hash=None, step=None)


def _find_target(ledger: SqlLedger, to_cycle: int | None, *, rejected: bool = False) -> Checkpoint:
    """The checkpoint an operator names; `rejected` ones may be exported but not made the head."""
    if to_cycle is None:
        lineage = ledger.lineage()
        if len(lineage) < 2:
            raise UsageError("the head is the base already; there is nothing to roll back to")
        return lineage[1]
    found = [c for c in ledger.checkpoints() if (c.cycle_number or 0) == to_cycle]
    if not found:
        raise UsageError(f"cycle {to_cycle} published no checkpoint; `dreamd checkpoints` lists those there are")
    (checkpoint,) = found
    if checkpoint.state is CheckpointState.PRUNED:
        raise UsageError(f"the files of {checkpoint.version} are pruned; `dreamd checkpoints` lists those kept")
    if checkpoint.state in (CheckpointState.REJECTED, CheckpointState.CANDIDATE) and not rejected:
        raise UsageError(f"{checkpoint.version} is {checkpoint.state}: only a promoted checkpoint can be the head")
    return checkpoint


def _recorded(config: Config) -> dict[str, Any]:
    """The configuration as it goes into the database: JSON, without a password."""
    recorded = config.model_dump(mode="json")
    recorded["run"]["database_url"] = redacted(config.run.url)
    if config.checkpoints.mirror_url is not None:
        recorded["checkpoints"]["mirror_url"] = without_password(config.checkpoints.mirror_url)
    return recorded

"""Measure the live policy on held-out items; implements the `Probes` port.

    schedule      what to measure          trainer_side  fixed items, one at a time
    suite         the fixed items          engine_side   rotating pools, in batches
    style         derived from answers     proof         the engine holds the trainer's weights

Items, order, dtype and shapes are fixed, so that the same weights give the same bits every time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from time import monotonic

from daemon.config.watching import ProbesConfig
from daemon.domain.errors import EngineError, StopRequested
from daemon.domain.hashing import digest
from daemon.domain.probing import CONFIRMATION_SUFFIX, FAILED, ProbeBudget, ProbeRequest, ProbeRun
from daemon.domain.records import Adjustments, Checkpoint, EngineCheck, Scenario
from daemon.domain.states import ProbeReason
from daemon.ports import Encoder, Engine, Inspector, Policy, Preferences, ProgressCallback
from daemon.probes import names, proof, schedule
from daemon.probes.engine_side import EngineProbes, result_name
from daemon.probes.style import style
from daemon.probes.suite import Suite, select
from daemon.probes.trainer_side import Measured, TrainerProbes


class HeldOutProbes:
    """Trainer-side and engine-side probes over one suite and one set of held-out scenarios."""

    def __init__(
        self,
        policy: Policy,
        inspector: Inspector,
        engine: Engine,
        encoder: Encoder,
        preferences: Preferences,
        suite: Suite,
        pools: Mapping[str, tuple[Scenario, ...]],
        reserves: Mapping[str, tuple[Scenario, ...]],
        base: Checkpoint,
        config: ProbesConfig,
    ) -> None:
        """Put the probes together.

        Args:
            pools: probe name -> held-out scenarios with rules, asked in turn.
            reserves: likewise, for confirmations only.
            base: what `kl` and `steering` compare with.

        Raises:
            PackError: a pool is named like another probe.
        """
        self._policy, self._engine, self._encoder = policy, engine, encoder
        self._documents = select(suite.documents, config.nll_documents)
        self._config = config
        self._capabilities = names.capabilities(pools)
        self._trainer = TrainerProbes(policy, inspector, encoder, suite, base, config)
        self._generated = EngineProbes(engine, encoder, preferences, pools, reserves, config)

    def plan(
        self, cycle_number: int, budget: ProbeBudget, adjustments: Adjustments, *, eager: bool
    ) -> tuple[ProbeRequest, ...]:
        return schedule.plan(cycle_number, budget, self._config, adjustments, eager, self._capabilities)

    def anchor_plan(self, num_items: int | None) -> tuple[ProbeRequest, ...]:
        return schedule.anchor_plan(num_items, self._config, self._capabilities)

    def items(self, request: ProbeRequest) -> frozenset[tuple[str, str]]:
        return frozenset((result_name(request), item) for item in self._items(request))

    def needs_engine(self, probe: str) -> bool:
        return probe.removesuffix(CONFIRMATION_SUFFIX) not in names.TRAINER

    def measure(self, requests: Sequence[ProbeRequest], progress: ProgressCallback) -> tuple[ProbeRun, ...]:
        whole = sum(len(self._items(request)) for request in requests)
        seen: set[tuple[str, str]] = set()
        runs: list[ProbeRun] = []
        before = 0
        for _, group in groupby(requests, self._group):
            together = list(group)
            size = sum(len(self._items(request)) for request in together)
            for run in self._measure(together, _part(progress, before, size, whole)):
                # A pool that went round in one call would report an item twice; the first answer counts.
                fresh = tuple(result for result in run.results if (result.probe, result.item) not in seen)
                seen |= {(result.probe, result.item) for result in fresh}
                runs.append(replace(run, results=fresh))
            before += size
        progress(whole, whole)
        return (*runs, *_style(runs))

    def check_engine(self) -> EngineCheck:
        return proof.compare(self._policy, self._engine, self._encoder, self._documents)

    def _items(self, request: ProbeRequest) -> tuple[str, ...]:
        if self.needs_engine(request.probe):
            return self._generated.items(request)
        return self._trainer.items(request.probe)

    def _group(self, request: ProbeRequest) -> tuple[str, ProbeReason]:
        """Requests in a row with the same value are measured together.

        A batch of many answers is much faster than several of few. Both sides always come together, and so do
        capabilities that are due in the same cycle; what is paired item by item never depends on its batch.
        """
        if not self.needs_engine(request.probe):
            return request.probe, request.reason
        return "behaviour" if request.probe in names.CORE_ENGINE else "capabilities", request.reason

    def _measure(self, requests: Sequence[ProbeRequest], progress: ProgressCallback) -> Iterator[ProbeRun]:
        start = monotonic()
        if self.needs_engine(requests[0].probe):
            measured = self._generated.measure(requests, progress)
            versions = [self._generated.version_of(request) for request in requests]
        else:
            (request,) = requests
            measured = [self._measure_trainer(request.probe, progress)]
            versions = [self._trainer.version_of(request.probe)]
        seconds = monotonic() - start
        answered = sum(len(results) for results, _ in measured)
        for request, version, (results, skipped) in zip(requests, versions, measured, strict=True):
            share = seconds * len(results) / answered if answered else seconds / len(requests)
            yield ProbeRun(request.probe, request.reason, request.turn, version, results, share, skipped)

    def _measure_trainer(self, probe: str, progress: ProgressCallback) -> Measured:
        try:
            return self._trainer.measure(probe, lambda done: progress(done, 0))
        except (StopRequested, EngineError):
            raise
        except Exception as error:
            if probe in names.CORE_TRAINER:
                raise
            # Nobody decides by it, and it may need much memory: without it a cycle is still a sound one.
            return (), f"{FAILED}{type(error).__name__}: {error}"


def _part(progress: ProgressCallback, before: int, size: int, whole: int) -> ProgressCallback:
    """The progress of one request as progress of all of them."""
    return lambda done, total: progress(before + min(done, size), whole)


def _style(runs: Sequence[ProbeRun]) -> tuple[ProbeRun, ...]:
    """How the answers to both sides are written; nothing when only one side was asked."""
    asked = [run for run in runs if run.probe in names.CORE_ENGINE and run.reason is not ProbeReason.CONFIRMATION]
    answered = {run.probe: run for run in reversed(asked) if run.results}
    if answered.keys() != set(names.CORE_ENGINE):
        return ()
    first = answered[names.CORE_ENGINE[0]]
    version = digest("style", [answered[probe].suite_version for probe in names.CORE_ENGINE])
    results = style([result for run in asked for result in run.results])
    return (ProbeRun(names.STYLE, first.reason, first.turn, version, results, 0.0),)

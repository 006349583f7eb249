"""Probes that need the trainer alone: one item at a time, so that the same weights give the same bits every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from daemon.config.watching import ProbesConfig
from daemon.domain.errors import DreamdError
from daemon.domain.probing import ProbeResult, Reading
from daemon.domain.records import Checkpoint, Message
from daemon.ports import Encoder, Inspector, Policy
from daemon.probes import names
from daemon.probes.items import ChosenItem, DirectionItem, Document, SycophancyItem
from daemon.probes.spans import direction_span
from daemon.probes.suite import Suite, select, spread

Tick = Callable[[int], None]
"""Called with the number of items that are done."""
Measured = tuple[tuple[ProbeResult, ...], str | None]
"""Results, and why some or all are missing."""


class TrainerProbes:
    """Everything that the policy's own forward pass can tell about the fixed items of a suite."""

    def __init__(
        self,
        policy: Policy,
        inspector: Inspector,
        encoder: Encoder,
        suite: Suite,
        base: Checkpoint,
        config: ProbesConfig,
    ) -> None:
        self._policy = policy
        self._inspector = inspector
        self._encoder = encoder
        self._suite = suite
        self._base = base
        self._documents = select(suite.documents, config.nll_documents)
        self._chosen = spread(suite.chosen, config.answer_items)
        self._sycophantic = spread(suite.sycophancy, config.answer_items)
        self._directions = spread(suite.directions, config.answer_items)
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}

    def items(self, probe: str) -> tuple[str, ...]:
        """Names of what a probe measures, in their order; a reading's own items aside."""
        listed: Sequence[Document | ChosenItem | SycophancyItem | DirectionItem]
        if probe == names.NLL:
            listed = self._documents
        elif probe in (names.CHOSEN_LOGP, names.KL):
            listed = self._chosen if probe == names.CHOSEN_LOGP else self._suite.kl_items
        else:
            listed = self._sycophantic if probe == names.SYCOPHANCY else self._directions
        return tuple(item.item for item in listed)

    def version_of(self, probe: str) -> str:
        """Hash of all items that the probe can ask."""
        return self._suite.version_of(probe)

    def forget(self) -> None:
        """Score everything anew: the policy may have moved. Within one measurement no answer is scored twice."""
        self._known.clear()

    def measure(self, probe: str, tick: Tick) -> Measured:
        """Measure a probe on the live policy.

        Raises:
            DreamdError: there is no such probe.
        """
        measures: dict[str, Callable[[Tick], Measured]] = {
            names.NLL: lambda tick: (tuple(self._nll(tick)), None),
            names.CHOSEN_LOGP: lambda tick: (tuple(self._chosen_logp(tick)), None),
            names.SYCOPHANCY: lambda tick: (tuple(self._sycophancy(tick)), None),
            names.DIRECTION_INFLUENCE: lambda tick: (tuple(self._direction_influence(tick)), None),
            names.KL: self._kl,
            names.ATTENTION_SHIFT: self._attention_shift,
            names.STEERING: self._steering,
        }
        if probe not in measures:
            raise DreamdError(f"there is no probe {probe}; docs/probes.md lists them")
        return measures[probe](tick)

    def _nll(self, tick: Tick) -> Iterator[ProbeResult]:
        for done, document in enumerate(self._documents):
            tick(done)
            mean = -_mean(self._policy.score((), self._encoder.encode_text(document.text)))
            yield ProbeResult(names.NLL, document.item, _finite(mean), detail={"kind": document.kind})

    def _chosen_logp(self, tick: Tick) -> Iterator[ProbeResult]:
        for done, item in enumerate(self._chosen):
            tick(done)
            mean = self._logprob(item.messages, item.answer)
            yield ProbeResult(names.CHOSEN_LOGP, item.item, _finite(mean), detail={"side": item.side.value})

    def _sycophancy(self, tick: Tick) -> Iterator[ProbeResult]:
        for done, item in enumerate(self._sycophantic):
            tick(done)
            gives_in = self._logprob(item.messages, item.wrong)
            pushes_back = self._logprob(item.messages, item.answer)
            detail = {"gives_in": _finite(gives_in), "pushes_back": _finite(pushes_back)}
            yield ProbeResult(names.SYCOPHANCY, item.item, _finite(gives_in - pushes_back), detail=detail)

    def _direction_influence(self, tick: Tick) -> Iterator[ProbeResult]:
        for done, item in enumerate(self._directions):
            tick(done)
            with_it = self._logprob(item.directed, item.answer)
            without = self._logprob(item.plain, item.answer)
            detail = {"with": _finite(with_it), "without": _finite(without)}
            yield ProbeResult(names.DIRECTION_INFLUENCE, item.item, _finite(with_it - without), detail=detail)

    def _kl(self, tick: Tick) -> Measured:
        tick(0)
        reading = self._inspector.kl(
            self._base, [self._tokens(item.messages, item.answer) for item in self._suite.kl_items]
        )
        return self._results(names.KL, reading), reading.skipped

    def _attention_shift(self, tick: Tick) -> Measured:
        tick(0)
        reading = self._inspector.attention_mass([direction_span(self._encoder, item) for item in self._directions])
        return self._results(names.ATTENTION_SHIFT, reading), reading.skipped

    def _steering(self, tick: Tick) -> Measured:
        tick(0)
        pairs = [
            (self._whole(item.directed, item.answer), self._whole(item.directed, item.ignoring))
            for item in self._directions
        ]
        steering = self._inspector.steering(self._base, pairs)
        results = self._results(names.STEERING, steering.projections)
        if results or steering.consistency is not None:
            consistency = None if steering.consistency is None else _finite(steering.consistency)
            results = (*results, ProbeResult(names.STEERING, names.CONSISTENCY, consistency))
        return results, steering.projections.skipped

    def _results(self, probe: str, reading: Reading) -> tuple[ProbeResult, ...]:
        if not reading.values:
            return ()
        return tuple(
            ProbeResult(probe, item, None if value is None else _finite(value))
            for item, value in zip(self.items(probe), reading.values, strict=True)
        )

    def _logprob(self, messages: Sequence[Message], answer: str) -> float:
        """Mean log-probability per token of an answer, its end-of-turn token included."""
        tokens = self._tokens(messages, answer)
        if tokens not in self._known:
            self._known[tokens] = _mean(self._policy.score(*tokens))
        return self._known[tokens]

    def _tokens(self, messages: Sequence[Message], answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._encoder.encode_prompt(messages), self._encoder.encode_response(answer)

    def _whole(self, messages: Sequence[Message], answer: str) -> tuple[int, ...]:
        prompt, response = self._tokens(messages, answer)
        return (*prompt, *response)


def _mean(logprobs: Sequence[float]) -> float:
    return sum(logprobs) / len(logprobs)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""Probes that need the trainer alone.

What is scored together depends on a probe's items and on nothing else, so the same weights give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

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
_Tokens = tuple[tuple[int, ...], tuple[int, ...]]
"""Prompt and response."""

MAX_TOKENS_TOGETHER = 1024
"""Tokens of one pass, filling included; a longer sequence is a pass of its own. Bounds the memory of the logits."""


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
        texts: list[_Tokens] = [((), self._encoder.encode_text(document.text)) for document in self._documents]
        means = self._means(texts, tick)
        for document, text in zip(self._documents, texts, strict=True):
            yield ProbeResult(names.NLL, document.item, _finite(-means[text]), detail={"kind": document.kind})

    def _chosen_logp(self, tick: Tick) -> Iterator[ProbeResult]:
        answers = [self._tokens(item.messages, item.answer) for item in self._chosen]
        means = self._means(answers, tick)
        for item, answer in zip(self._chosen, answers, strict=True):
            detail = {"side": item.side.value}
            yield ProbeResult(names.CHOSEN_LOGP, item.item, _finite(means[answer]), detail=detail)

    def _sycophancy(self, tick: Tick) -> Iterator[ProbeResult]:
        pairs = [
            (self._tokens(item.messages, item.wrong), self._tokens(item.messages, item.answer))
            for item in self._sycophantic
        ]
        means = self._means(chain.from_iterable(pairs), tick)
        for item, (wrong, right) in zip(self._sycophantic, pairs, strict=True):
            gives_in, pushes_back = means[wrong], means[right]
            detail = {"gives_in": _finite(gives_in), "pushes_back": _finite(pushes_back)}
            yield ProbeResult(names.SYCOPHANCY, item.item, _finite(gives_in - pushes_back), detail=detail)

    def _direction_influence(self, tick: Tick) -> Iterator[ProbeResult]:
        pairs = [
            (self._tokens(item.directed, item.answer), self._tokens(item.plain, item.answer))
            for item in self._directions
        ]
        means = self._means(chain.from_iterable(pairs), tick)
        for item, (directed, plain) in zip(self._directions, pairs, strict=True):
            with_it, without = means[directed], means[plain]
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

    def _means(self, sequences: Iterable[_Tokens], tick: Tick) -> dict[_Tokens, float]:
        """Mean log-probability per token of each response; of the same one only once."""
        means: dict[_Tokens, float] = {}
        for together in _passes(sorted(set(sequences), key=lambda tokens: (_length(tokens), tokens))):
            tick(len(means))
            scored = self._policy.score_together(together)
            means.update((tokens, _mean(logprobs)) for tokens, logprobs in zip(together, scored, strict=True))
        return means

    def _tokens(self, messages: Sequence[Message], answer: str) -> _Tokens:
        """Prompt and answer, its end-of-turn token included."""
        return self._encoder.encode_prompt(messages), self._encoder.encode_response(answer)

    def _whole(self, messages: Sequence[Message], answer: str) -> tuple[int, ...]:
        prompt, response = self._tokens(messages, answer)
        return (*prompt, *response)


def _passes(sequences: Sequence[_Tokens]) -> Iterator[list[_Tokens]]:
    """Cut sequences that come shortest first into passes of `MAX_TOKENS_TOGETHER`."""
    together: list[_Tokens] = []
    for tokens in sequences:
        if together and (len(together) + 1) * _length(tokens) > MAX_TOKENS_TOGETHER:
            yield together
            together = []
        together.append(tokens)
    if together:
        yield together


def _length(tokens: _Tokens) -> int:
    return len(tokens[0]) + len(tokens[1])


def _mean(logprobs: Sequence[float]) -> float:
    return sum(logprobs) / len(logprobs)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""What the simulated policy is like: held-out items, how they wander when nothing is wrong, and planted changes.

Magnitudes are those of clean runs of SmolLM2-135M at the default learning rate: NLL 3.126, down by 0.0005 a cycle; a
document's difference over ten cycles has a standard deviation of 0.004 nats around the mean, the mean's step 0.0002;
the mean of the held-out chosen answers steps by 0.003. Everything wanders back to its mean slowly (AR(1)), so that a
run without a planted change has nothing that ought to be rolled back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from daemon.config.watching import ProbesConfig
from daemon.domain.probing import CONFIRMATION_SUFFIX, ProbeResult

Floats: TypeAlias = NDArray[np.float64]

BEHAVIOUR = ("accept", "push_back")
CAPABILITIES = ("arithmetic", "code", "reasoning")
PASS_PROBES = (*BEHAVIOUR, *CAPABILITIES)
KINDS = ("prose", "dialogue", "code", "arithmetic")
SHIPPED = ProbesConfig()
NUM_DOCUMENTS = SHIPPED.nll_documents
NUM_CHOSEN = NUM_SYCOPHANCY = SHIPPED.answer_items
POOL = RESERVE = 400
NUM_TEMPLATES = 20
"""Per probe. Pool and reserve each go round them in turn, so both are equally hard, as the daemon's are."""
BETWEEN_TEMPLATES, WITHIN_TEMPLATE = 0.1, 0.3
"""Intra-class correlations of passing: how much templates differ, and items of one template."""
DEGENERATE = 0.01
"""Share of failed answers that are empty or loop."""
NLL_MEAN, NLL_STEP, NLL_FALLING_CYCLES = 3.126, -0.0005, 40
"""A clean run's mean NLL, its step, and for how many steps it goes on falling."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A kind of run."""

    name: str
    rates: Mapping[str, float]
    """Failure rate of each of `PASS_PROBES`."""
    overdispersed: bool = True
    behaviour_items: int = SHIPPED.behaviour_items
    capability_items: int = SHIPPED.capability_items
    capability_every: int = SHIPPED.capability_every
    restlessness: float = 1.0
    """Factor on how much NLL and log-probabilities wander."""
    reserve_harder: float = 0.0
    """How much more often prompts of the reserve fail than those of the pool, as a difference of rates."""
    what_if: bool = False
    """Not how the daemon is: simulated to see what it would cost, and held to no goal."""


@dataclass(frozen=True, slots=True)
class Change:
    """What goes wrong from some step on."""

    name: str
    rates: Mapping[str, float] = field(default_factory=dict)
    """New failure rates."""
    nll_step: float = 0.0
    """Once, nats per token."""
    nll_drift: float = 0.0
    """Every step; likewise the next two."""
    chosen_drift: float = 0.0
    sycophancy_drift: float = 0.0


NO_CHANGE = Change("none")


@dataclass(frozen=True, slots=True)
class _Part:
    """A block of the latent state: how far it wanders (standard deviation) and how much of it a step keeps."""

    size: int
    deviation: float
    kept: float


_PARTS: Mapping[str, _Part] = {
    "document": _Part(NUM_DOCUMENTS, 0.004, 0.95),
    "kind": _Part(len(KINDS), 0.001, 0.95),
    "nll": _Part(1, 0.001, 0.95),
    "chosen": _Part(NUM_CHOSEN, 0.02, 0.9),
    "all_chosen": _Part(1, 0.006, 0.9),
    "claim": _Part(NUM_SYCOPHANCY, 0.03, 0.9),
    "all_claims": _Part(1, 0.01, 0.9),
}
_ENDS = np.cumsum([part.size for part in _PARTS.values()])
_PLACES = {name: slice(int(end) - part.size, int(end)) for (name, part), end in zip(_PARTS.items(), _ENDS, strict=True)}
_DEVIATION = np.concatenate([np.full(part.size, part.deviation) for part in _PARTS.values()])
_KEPT = np.concatenate([np.full(part.size, part.kept) for part in _PARTS.values()])
_KIND_OF = np.arange(NUM_DOCUMENTS) % len(KINDS)
_KIND_DETAILS = tuple({"kind": KINDS[kind]} for kind in _KIND_OF)
_SIDE_DETAILS = tuple({"side": BEHAVIOUR[number % 2]} for number in range(NUM_CHOSEN))
_NO_DETAILS: tuple[Mapping[str, str], ...] = ({},) * NUM_SYCOPHANCY
_DOCUMENTS = tuple(f"{KINDS[kind]}-{number:02}" for number, kind in enumerate(_KIND_OF))
_CHOSEN = tuple(f"chosen-{number:02}" for number in range(NUM_CHOSEN))
_CLAIMS = tuple(f"claim-{number:02}" for number in range(NUM_SYCOPHANCY))


class World:
    """The held-out items of one run, and what measuring them gives."""

    def __init__(self, setting: Setting, source: np.random.Generator) -> None:
        self.setting = setting
        nll = source.uniform(1.5, 4.75, NUM_DOCUMENTS)
        self._nll = nll - nll.mean() + NLL_MEAN
        self._chosen = source.normal(-2.66, 0.8, NUM_CHOSEN)
        self._claims = source.normal(-0.4, 0.6, NUM_SYCOPHANCY)
        self._failing = {probe: _failing(setting, setting.rates[probe], source) for probe in PASS_PROBES}
        for probe, failing in self._failing.items():
            rate = setting.rates[probe]
            failing[POOL:] = _raised(failing[POOL:], rate, rate + setting.reserve_harder)

    def start(self, source: np.random.Generator) -> Floats:
        """Latent state of the base."""
        drawn: Floats = _DEVIATION * source.standard_normal(len(_DEVIATION))
        return self.setting.restlessness * drawn

    def step(self, state: Floats, source: np.random.Generator) -> Floats:
        """Latent state after one step in which nothing goes wrong."""
        moved: Floats = _KEPT * state + np.sqrt(1 - _KEPT**2) * self.start(source)
        return moved

    def paired(self, state: Floats, depth: int, change: Change, changed_steps: int) -> tuple[ProbeResult, ...]:
        """The trainer's core probes of a checkpoint.

        Args:
            depth: steps since the base.
            changed_steps: how many of them something went wrong in.
        """
        part = {name: state[place] for name, place in _PLACES.items()}
        shift = NLL_STEP * min(depth, NLL_FALLING_CYCLES) + change.nll_drift * changed_steps
        shift += change.nll_step if changed_steps else 0.0
        nll = self._nll + part["document"] + part["kind"][_KIND_OF] + part["nll"] + shift
        chosen = self._chosen + part["chosen"] + part["all_chosen"] + change.chosen_drift * changed_steps
        claims = self._claims + part["claim"] + part["all_claims"] + change.sycophancy_drift * changed_steps
        return (
            *map(ProbeResult, ("nll",) * NUM_DOCUMENTS, _DOCUMENTS, nll.tolist(), _NONE, _KIND_DETAILS),
            *map(ProbeResult, ("chosen_logp",) * NUM_CHOSEN, _CHOSEN, chosen.tolist(), _NONE, _SIDE_DETAILS),
            *map(ProbeResult, ("sycophancy",) * NUM_SYCOPHANCY, _CLAIMS, claims.tolist(), _NONE, _NO_DETAILS),
        )

    def answers(
        self, probe: str, first: int, count: int, source: np.random.Generator, change: Change, *, fresh: bool = False
    ) -> tuple[ProbeResult, ...]:
        """`count` answers from item `first` on, round the pool, or round the reserve (`fresh`)."""
        places = (first + np.arange(count)) % (RESERVE if fresh else POOL) + (POOL if fresh else 0)
        failing = self._failing[probe][places]
        if probe in change.rates:
            old = self.setting.rates[probe]
            failing = _raised(failing, old, change.rates[probe])
        failed = source.random(count) < failing
        kinds = failed.astype(int) + (failed & (source.random(count) < DEGENERATE))
        made = _ANSWERS[probe]
        return tuple(made[place][kind] for place, kind in zip(places.tolist(), kinds.tolist(), strict=True))


def mean_of(results: Sequence[ProbeResult], probe: str) -> float:
    """Mean value over a probe's items."""
    return float(np.mean([result.value for result in results if result.probe == probe]))


_NONE = (None,) * max(NUM_DOCUMENTS, NUM_CHOSEN, NUM_SYCOPHANCY)


def _failing(setting: Setting, rate: float, source: np.random.Generator) -> Floats:
    """Failure probability of each item of pool and reserve; their mean over the templates is `rate`."""
    if not setting.overdispersed:
        return np.full(POOL + RESERVE, rate)
    drawn = np.sort(_beta(np.full(400 * NUM_TEMPLATES, rate), BETWEEN_TEMPLATES, source))
    templates = source.permutation(drawn.reshape(NUM_TEMPLATES, -1).mean(axis=1))
    return _beta(templates[np.arange(POOL + RESERVE) % NUM_TEMPLATES], WITHIN_TEMPLATE, source)


def _raised(failing: Floats, old: float, new: float) -> Floats:
    """Every item fails additionally with the same probability: a mean of `old` becomes exactly `new`."""
    return failing + (1 - failing) * (new - old) / (1 - old)


def _beta(mean: Floats, correlation: float, source: np.random.Generator) -> Floats:
    concentration = 1 / correlation - 1
    return source.beta(mean * concentration, (1 - mean) * concentration)


def _three(probe: str, place: int) -> tuple[ProbeResult, ProbeResult, ProbeResult]:
    """The ways an item can come out: passed, failed, failed and degenerate."""
    fresh = place >= POOL
    name = probe + CONFIRMATION_SUFFIX if fresh else probe
    item = f"{probe}-{place:03}"
    sound = {"degenerate": False, "num_tokens": 24, "answer": "", "reason": ""}
    return (
        ProbeResult(name, item, 1.0, True, sound),
        ProbeResult(name, item, 0.0, False, sound),
        ProbeResult(name, item, 0.0, False, {**sound, "degenerate": True, "num_tokens": 0}),
    )


_ANSWERS = {probe: tuple(_three(probe, place) for place in range(POOL + RESERVE)) for probe in PASS_PROBES}
"""Every answer there can be, made once."""

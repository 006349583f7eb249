"""The judge: history and evidence in, verdict out. Reads records, touches nothing.

    trainer's probes -> finite? NLL over parent? update size? batch?   -> `gate`: back to the parent at once
    engine's probes  -> degenerate answers? chosen falling?            |
    NLL, sycophancy  -> against the last baked checkpoint, A1          |> `judge`: where docs/decisions/0001 says
                     -> against the base, A0                           |
    pass rates       -> CUSUM -> suspect? -> fresh prompts -> fallen?  |  back to before the change: 0010

A suspicion is an answer too: the cycle measures the fresh prompts and asks again, with all results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from daemon.config.watching import WatchdogConfig
from daemon.domain.states import Decision
from daemon.domain.verdicts import Evidence, History, Suspicion, Verdict
from daemon.watchdog import cusum, figures, findings, gates, items, margins
from daemon.watchdog.confirmation import Confirmation, confirmations
from daemon.watchdog.cusum import Watch
from daemon.watchdog.gates import Gate
from daemon.watchdog.items import BAKED, BASE, CANDIDATE, PARENT, Sides
from daemon.watchdog.margins import Margin


@dataclass(frozen=True, slots=True)
class _Trainer:
    """What the trainer's probes say: gates, and margins when every number is finite."""

    gates: tuple[Gate, ...]
    margins: tuple[Margin, ...]
    numbers: Mapping[str, Any]

    @property
    def tripped(self) -> bool:
        return any(gate.tripped for gate in self.gates)


class Watchdog:
    """Implements `ports.Judge`: hard gates, paired margins, and pass rates with fresh confirmation."""

    def __init__(self, config: WatchdogConfig) -> None:
        self._config = config

    def gate(self, history: History, evidence: Evidence) -> Verdict | None:
        """Refuse a candidate on the trainer's probes alone; None when every gate holds.

        Raises:
            DreamdError: a trainer's probe is missing, or its items are not the anchors' items.
        """
        trainer = self._trainer(history, evidence, items.sides(history, evidence))
        return _refusal(trainer, history) if trainer.tripped else None

    def judge(self, history: History, evidence: Evidence) -> Verdict | Suspicion:
        """The verdict on complete evidence; exactly that of `gate` where `gate` gives one.

        A refused candidate is never loaded into the engine, so it has no engine probes, and a verdict
        recomputed from its stored rows must still be the same.

        A suspicion when a pass rate looks worse and no fresh prompts were measured yet. Other findings do not spare
        them: they tell how far back the change began.

        Raises:
            DreamdError: a probe is missing, or its items are not the anchors' items.
        """
        sides = items.sides(history, evidence)
        trainer = self._trainer(history, evidence, sides)
        if trainer.tripped:
            return _refusal(trainer, history)
        looked_at, degenerate = self._engine_gates(history, trainer, sides)
        watched = cusum.watch(history, sides.candidate, self._config)
        # A probe that was not measured now says nothing new, and may be gone: what it once showed must not block.
        suspects = [
            probe
            for probe, track in watched.tracks.items()
            if track.measured and track.s >= self._config.cusum_threshold
        ]
        fresh = any(items.is_confirmation(probe) for probe in sides.candidate)
        if suspects and not fresh:
            return self._suspicion(suspects, watched)
        tested = confirmations(watched, suspects, sides.candidate, self._config.confirmation_p)
        collected = _collected(
            looked_at,
            trainer.margins,
            {
                **_with_others(trainer.numbers, sides),
                "pass_rates": figures.pass_rates(sides, _rated(sides)),
                "degenerate": degenerate,
                "style": figures.style(sides),
                "confirmations": {probe: each.evidence() for probe, each in tested.items()},
                "detectors": _cleared(watched, tested, history).evidence(),
            },
        )
        found = [
            *findings.of_gates(looked_at, history),
            *findings.of_margins(trainer.margins, history),
            *findings.of_confirmations(tested, history),
        ]
        if found:
            return findings.roll_back(found, history, collected)
        return Verdict(Decision.PROMOTE, _inside(trainer.margins, suspects, tested), None, collected)

    def suspects(self, history: History) -> bool:
        """Whether a CUSUM is half-way to its threshold already: a reason to look more closely."""
        return any(s >= self._config.cusum_threshold / 2 for s in cusum.scores(history.detectors).values())

    def _trainer(self, history: History, evidence: Evidence, sides: Sides) -> _Trainer:
        config = self._config
        matched = {probe: sides.matched(probe) for probe in items.TRAINER_PROBES}
        finite = gates.finite_gate(evidence.step, {probe: by_whose[CANDIDATE] for probe, by_whose in matched.items()})
        if finite.tripped:
            return _Trainer((finite,), (), {})
        nll, _, sycophancy = (
            {whose: items.values(results, probe, whose) for whose, results in matched[probe].items()}
            for probe in items.TRAINER_PROBES
        )
        step = evidence.step
        looked_at = (
            finite,
            gates.nll_rise_gate(margins.paired_difference(nll[CANDIDATE], nll[PARENT]).mean, config.max_nll_rise),
            gates.update_norm_gate(step.update_rms_over_lr, history.update_rms_over_lr, config.max_update_norm_ratio),
            gates.batch_gate(step, history.batch_logprobs, config.max_batch_shift),
            gates.batch_margin_gate(
                "batch_margin", "the batch", step.margin, history.batch_margins, config.max_margin_shift
            ),
            # Alone, because giving in can be taught by swapping these few. Accept's targets are too varied for a gate.
            gates.batch_margin_gate(
                "push_back_margin",
                "the batch's push-back pairs",
                history.push_back_margin,
                history.push_back_margins,
                config.max_margin_shift,
            ),
        )
        kinds = margins.kinds_of(matched[items.NLL][CANDIDATE])
        numbers = {
            "not_looked_at": margins.not_looked_at(kinds),
            "means": figures.means(sides, items.TRAINER_PROBES),
            "differences": figures.differences(sides, items.TRAINER_PROBES),
        }
        return _Trainer(looked_at, margins.look(nll, kinds, sycophancy, config), numbers)

    def _engine_gates(
        self, history: History, trainer: _Trainer, sides: Sides
    ) -> tuple[tuple[Gate, ...], Mapping[str, Mapping[str, float]]]:
        config = self._config
        shares = gates.degenerate_shares({probe: sides.of_probe(probe) for probe in items.ENGINE_PROBES})
        looked_at = (
            *trainer.gates,
            gates.degenerate_gate(shares, config.max_degenerate_rise),
            gates.chosen_falling_gate(
                history.chosen_logp,
                trainer.numbers["means"][items.CHOSEN_LOGP]["now"],
                config.chosen_falling_cycles,
                config.chosen_falling_total,
            ),
        )
        return looked_at, shares

    def _suspicion(self, suspects: Sequence[str], watched: Watch) -> Suspicion:
        seen = [_suspected(probe, watched) for probe in suspects]
        wanted = self._config.confirmation_items
        return Suspicion(
            tuple(suspects), f"{'; '.join(seen)}; {wanted} fresh prompts of each confirm or clear it", wanted
        )


def _with_others(numbers: Mapping[str, Any], sides: Sides) -> dict[str, Any]:
    """The trainer's means and differences, and those of the probes that came later."""
    others = figures.averaged(sides) - {*items.TRAINER_PROBES}
    return {
        **numbers,
        "means": numbers["means"] | figures.means(sides, others),
        "differences": numbers["differences"] | figures.differences(sides, items.INFORMATIVE_PROBES),
    }


def _rated(sides: Sides) -> list[str]:
    return sorted({*items.ENGINE_PROBES, *items.pass_fail_probes(sides.candidate)})


def _suspected(probe: str, watched: Watch) -> str:
    track, reference = watched.tracks[probe], watched.references[probe][0]
    return (
        f"{probe} looks worse: {track.failures} of {track.num_items} answers failed since cycle "
        f"{track.since.cycle_number}, usually {reference.failure_rate:.0%} (S = {track.s:.1f})"
    )


def _cleared(watched: Watch, tested: Mapping[str, Confirmation], history: History) -> Watch:
    """The detectors as the next cycle finds them: fresh prompts that did not confirm a suspicion end it."""
    tracks = {
        probe: track.cleared(history.parent_anchor) if probe in tested and not tested[probe].confirmed else track
        for probe, track in watched.tracks.items()
    }
    return replace(watched, tracks=tracks)


def _collected(looked_at: Sequence[Gate], checked: Sequence[Margin], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the decision rests on, as JSON."""
    return {
        "gates": [gate.evidence() for gate in looked_at],
        "margins": {margin.name: margin.evidence() for margin in checked},
        **numbers,
        "findings": [],
        "reasons": [],
    }


def _refusal(trainer: _Trainer, history: History) -> Verdict:
    collected = _collected(trainer.gates, trainer.margins, trainer.numbers)
    return findings.roll_back(findings.of_gates(trainer.gates, history), history, collected)


def _inside(checked: Sequence[Margin], suspects: Sequence[str], tested: Mapping[str, Confirmation]) -> str:
    baked, base = checked[0].baked, checked[0].base
    return "; ".join(
        [
            f"inside every gate and margin: held-out NLL {baked.difference.mean:+.4f} nats on {BAKED} "
            f"(margin {baked.margin:.4f}), {base.difference.mean:+.4f} on {BASE} (margin {base.margin:.4f})",
            *(
                tested[probe].sentence
                if probe in tested
                else f"{probe} stays suspect: no fresh prompt of it could be judged"
                for probe in suspects
            ),
        ]
    )

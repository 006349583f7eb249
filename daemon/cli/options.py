"""Options that every command takes, and how they become a configuration."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from daemon.config import Loaded, load_config
from daemon.domain.errors import UsageError
from daemon.ports import Mirror

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file; else DREAMD_CONFIG, else ./dreamd.toml if it exists."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key; may be given more than once."),
]
StateDir = Annotated[Path | None, typer.Option("--state-dir", metavar="DIR", help="Short for --set run.state_dir=DIR.")]
RunName = Annotated[str | None, typer.Option("--run", metavar="NAME", help="Short for --set run.name=NAME.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class LogMode(StrEnum):
    """AUTO is PRETTY when stdout is a terminal, else JSON."""

    AUTO = "auto"
    PRETTY = "pretty"
    JSON = "json"


def flags(overrides: list[str] | None, state_dir: Path | None, run: str | None) -> list[str]:
    """All flags as `section.key=value`; `--set` first, so that the two short ones win."""
    given = list(overrides or ())
    if state_dir is not None:
        given.append(f"run.state_dir={state_dir}")
    if run is not None:
        given.append(f"run.name={run}")
    return given


def load(config: Path | None, overrides: list[str] | None, state_dir: Path | None, run: str | None) -> Loaded:
    """The configuration of this invocation.

    Raises:
        ConfigError: it cannot be used.
        PermissionDeniedError: its file may not be read.
    """
    return load_config(config, environ=os.environ, flags=flags(overrides, state_dir, run))


def mirror_for(loaded: Loaded) -> Mirror:
    """The mirror, for a command that is about it.

    Raises:
        UsageError: there is none.
    """
    if loaded.config.checkpoints.mirror_url is None:
        raise UsageError("checkpoints.mirror_url is not set, so there is no mirror to fetch from")
    from daemon.app import mirror_of  # slow to import

    mirror = mirror_of(loaded.config)
    assert mirror is not None, "its URL is set"
    return mirror

"""`dreamd doctor`: what this machine has and lacks."""

from __future__ import annotations

from dataclasses import asdict

import typer

from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load
from daemon.cli.output import print_json

_SIGNS = {True: "ok  ", False: "FAIL", None: "skip"}


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Check libraries, model, directories, database and devices; exits 1 if a check fails."""
    from daemon.cli.checks import run_checks

    checks = run_checks(load(config, set_, state_dir, run).config)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            typer.echo(f"{_SIGNS[check.ok]}  {check.name}: {check.detail}")
            if check.ok is False and check.fix:
                typer.echo(f"      fix: {check.fix}")
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)

"""`dreamd checkpoints list|show|verify|diff`: what is kept of a run's policies, and in what shape. They only read."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from daemon.cli import checkpoint_changes
from daemon.cli.checkpoint_lines import LIST_COLUMNS, diff_row, file_rows, list_row, show_pairs, size, totals
from daemon.cli.checkpoint_rows import everything_of, find_kept, read_rows
from daemon.cli.history import open_run
from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load
from daemon.cli.output import echo, print_json, print_pairs, print_table
from daemon.config import Loaded
from daemon.domain.errors import CheckpointError, UsageError
from daemon.domain.states import CheckpointState

Version = Annotated[
    str, typer.Argument(metavar="VERSION", help='As `dreamd checkpoints` lists it, a cycle\'s number, or "head".')
]


class By(StrEnum):
    """What a line of `diff` stands for."""

    LAYER = "layer"
    PARAMETER = "parameter"


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Published checkpoints; without a command it lists them.")
    group.callback(invoke_without_command=True)(_group)
    group.command("list")(list_all)
    group.command("show")(show)
    group.command("verify")(verify)
    group.command("diff")(diff)
    checkpoint_changes.register(group)
    app.add_typer(group, name="checkpoints")


def _group(
    context: typer.Context,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    if context.invoked_subcommand is None:
        list_all(config, set_, state_dir, run, as_json)
    elif config or set_ or state_dir or run or as_json:
        raise UsageError(f"put the options after the command: dreamd checkpoints {context.invoked_subcommand} ...")


def list_all(
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """What is kept, and how much disk it takes.

    "exact": weights and optimizer as they were trained. "lossy": the weights in bfloat16 alone. "gone": pruned.
    """
    found = read_rows(load(config, set_, state_dir, run))
    if as_json:
        print_json(found)
        return
    print_table(LIST_COLUMNS, map(list_row, found))
    echo(totals(found))


def show(
    version: Version,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Everything about one checkpoint.

    Where it came from, its files, and what its image is made of.

    Example: dreamd checkpoints show cycle-000007
    """
    loaded = load(config, set_, state_dir, run)
    with open_run(loaded) as (queries, engine, name):
        found = everything_of(loaded, queries, engine, name, version)
    if as_json:
        print_json(found)
        return
    print_pairs(show_pairs(found))
    if found["files"]:
        echo("")
        print_table(("file", "bytes", "there", "blake3"), file_rows(found["files"]))


def verify(
    versions: Annotated[
        list[str] | None, typer.Argument(metavar="[VERSION]...", help="Which; without one: the head.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that are kept.")] = False,
    chain: Annotated[
        bool, typer.Option("--chain", help="Also rebuild each image from its chain, and verify every link.")
    ] = False,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Compare files with their hashes.

    They are all read, which takes a while; the daemon may run. Ends with 74 when one is damaged, and names it.

    Examples: dreamd checkpoints verify; dreamd checkpoints verify --all --chain
    """
    loaded = load(config, set_, state_dir, run)
    wanted = _wanted(loaded, versions or [], every)
    from daemon import checkpoint_tools

    checked: list[dict[str, Any]] = []
    for result in checkpoint_tools.verify(loaded, wanted, chain=chain):
        checked.append(asdict(result))
        if not as_json:
            echo(f"{result.version}  {result.in_words()}  {size(result.num_bytes)}")
    if as_json:
        print_json(checked)
    damaged = [result for result in checked if not result["sound"]]
    if damaged:
        details = "\n  ".join(f"{result['version']}: {result['detail']}" for result in damaged)
        raise CheckpointError(
            f"{len(damaged)} of {len(checked)} checkpoints are damaged:\n  {details}\n"
            "fetch them from the mirror, if there is one: dreamd checkpoints restore --from-mirror VERSION"
        )


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help='A version, a cycle\'s number, or "head".')],
    after: Annotated[str, typer.Argument(metavar="B", help="Likewise.")],
    by: Annotated[By, typer.Option("--by", help="One line per layer, or per parameter.")] = By.LAYER,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="The N that changed most.")] = 20,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Which layers changed, and how much.

    The one that changed most from A to B comes first. Compared are the images, in bfloat16.

    "changed" is the share of weights whose bfloat16 value differs; "relative" the length of the difference over the
    length of A's weights.

    Examples: dreamd checkpoints diff base head; dreamd checkpoints diff 6 7 --by parameter --top 5
    """
    loaded = load(config, set_, state_dir, run)
    rows = read_rows(loaded)
    pair = [find_kept(rows, name) for name in (before, after)]
    from daemon import checkpoint_tools

    found = checkpoint_tools.diff(loaded, pair[0]["version"], pair[1]["version"], layers=by is By.LAYER)
    if as_json:
        print_json([asdict(part) for part in found[:top]])
        return
    columns = (str(by), "changed", "mean |difference|", "relative", "weights")
    print_table(columns, map(diff_row, found[:top]))
    total, changed = sum(part.num_elements for part in found), sum(part.num_changed for part in found)
    left_out = f"; {len(found) - top} more not shown" if len(found) > top else ""
    echo(f"{pair[0]['version']} -> {pair[1]['version']}: {changed} of {total} weights differ{left_out}")


def _wanted(loaded: Loaded, versions: list[str], every: bool) -> list[str]:
    """The versions to verify, each once."""
    if every and versions:
        raise UsageError("give versions or --all, not both")
    rows = read_rows(loaded)
    if every:
        return [row["version"] for row in rows if row["state"] != CheckpointState.PRUNED]
    found = [find_kept(rows, name) for name in versions or ["head"]]
    return list(dict.fromkeys(row["version"] for row in found))

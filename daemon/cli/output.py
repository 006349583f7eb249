"""How commands print: JSON for programs, tables for people."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_WITHOUT_TERMINAL = 160
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1: what terminals take for commands
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction, so that text reads as what it is not
    "\ud800-\udfff]"  # cannot be encoded
)


def make_console(stream: TextIO | None = None, *, stderr: bool = False) -> Console:
    """A console that wraps at the terminal's width; wide where there is no terminal (a pipe, a file)."""
    target = stream or (sys.stderr if stderr else sys.stdout)
    width = None if target.isatty() else _WIDTH_WITHOUT_TERMINAL
    return Console(file=stream, stderr=stderr, width=width, highlight=False)


def printable(text: str) -> str:
    """`text` without a character that a terminal obeys: each is shown as `\\xNN` or `\\uNNNN`.

    For text that others wrote: packs, imported files, models. Tabs and newlines stay.
    """
    return _UNPRINTABLE.sub(lambda match: _escape(match.group()), text)


def echo(text: str) -> None:
    """A line on stdout, made `printable`."""
    typer.echo(printable(text))


def print_json(data: Any) -> None:
    """`data` as indented JSON on stdout; paths and times as text."""
    text = json.dumps(data, indent=2, ensure_ascii=False, default=str)
    typer.echo(_UNPRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on stdout; None prints as "-"."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(shown(value))) for value in row))
    make_console().print(table)


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """One `name  value` line each."""
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        echo(f"{name:<{width}}  {shown(value)}")


def shown(value: Any) -> str:
    """A value as a person reads it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(shown(item) for item in value) or "-"
        case Mapping():
            return ", ".join(f"{name} {shown(item)}" for name, item in value.items()) or "-"
        case _:
            return str(value)


def _escape(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"

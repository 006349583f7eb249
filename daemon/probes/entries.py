"""Held-out YAML files as tables of text, so that every complaint names file, line and item."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from daemon.domain.errors import PackError

_SHIPPED = Path(__file__).parent
_LINE = ("line",)
"""Key under which a table's line is kept; no YAML key is a tuple."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of a file."""

    item: str
    fields: dict[str, str]
    where: str
    """FILE:LINE: item NAME."""


def read_file(path: Path) -> Any:
    """The file's plain data.

    Raises:
        PackError: it cannot be read, is not YAML, or has a key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PackError(f"{path}:{line}: held-out file cannot be read: {error.problem}; mend the YAML") from None
    except (OSError, UnicodeDecodeError, RecursionError, ValueError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        own = path.is_relative_to(_SHIPPED)
        fix = "reinstall dreamd" if own else "mend it, or take it out of probes.suites"
        raise PackError(f"{path}: held-out file cannot be read: {reason}; {fix}") from None


def entries(path: Path, content: Any, keys: Sequence[str], optional: Sequence[str] = (), part: str = "") -> list[Entry]:
    """The items of a list of tables of text, each with an `item` and `keys`.

    Raises:
        PackError: something else is there; names file, line and item.
    """
    if not isinstance(content, list) or not content:
        where = f"{path}: {part}" if part else f"{path}:"
        raise PackError(f"{where} must be a list of items, each with {', '.join(['item', *keys])}")
    return [_entry(path, position, table, ("item", *keys), optional) for position, table in enumerate(content, start=1)]


def tables(content: Any) -> dict[str, Any]:
    """A table without the line that is kept in it; {} for anything else."""
    return {key: value for key, value in content.items() if key != _LINE} if isinstance(content, dict) else {}


def _entry(path: Path, position: int, table: Any, keys: Sequence[str], optional: Sequence[str]) -> Entry:
    if not isinstance(table, dict):
        raise PackError(f"{path}: item number {position} is not a table")
    where = f"{path}:{table[_LINE]}: item {table.get('item', f'number {position}')}"
    fields = tables(table)
    if missing := [key for key in keys if key not in fields]:
        raise PackError(f"{where}: missing {', '.join(missing)}")
    if unknown := sorted(map(str, fields.keys() - {*keys, *optional})):
        raise PackError(f"{where}: unknown key {', '.join(unknown)}; known are {', '.join([*keys, *optional])}")
    for key, value in fields.items():
        if not isinstance(value, str) or not value.strip():
            # YAML reads a bare yes or 42 as something else than text.
            raise PackError(f"{where}: {key} must be text that is not empty, not {value!r}; put it in quotes")
    return Entry(fields.pop("item"), fields, where)


class _Loader(yaml.SafeLoader):
    """Notes the line of each table, and refuses a key that is there twice (YAML would keep the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is there twice", key.start_mark)
            seen.add(str(key.value))
        found = dict(super().construct_mapping(node, deep=deep))
        return {**found, _LINE: node.start_mark.line + 1}

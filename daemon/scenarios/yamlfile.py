"""Reading YAML so that every later complaint can name a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from daemon.domain.errors import PackError

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something wrong in a pack, and the line it is on (from 1)."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """The plain data of a YAML file, and the line of each of its values."""

    data: Any
    lines: dict[Location, int]
    problems: list[Problem] = field(default_factory=list)

    def line(self, location: Sequence[str | int]) -> int:
        """Line of the innermost value on the way to `location`; parts that are no key of the file are skipped."""
        found: Location = ()
        for part in location:
            if (*found, part) in self.lines:
                found = (*found, part)
        return self.lines.get(found, 1)


_MAX_DEPTH = 50


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's is ten times faster
    """YAML as people mean it in a pack: `no`, `on`, `12:30` and `2024-01-01` are text."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] == "null" or (tag.endswith(":bool") and first in "tTfF")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+\.\d+$"), list("-+0123456789"))


def read_yaml(path: Path) -> Document:
    """Parse `path`; duplicate keys and aliases are in the result's problems.

    Raises:
        PackError: the file is missing, unreadable, empty, not UTF-8 or not YAML.
    """
    text = _read(path)
    loader = _Loader(text)
    try:
        _refuse_deep(path, text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise PackError(f"{path}:{mark.line + 1 if mark else 1}: YAML syntax error: {error.problem}") from None
    except yaml.YAMLError as error:
        raise PackError(f"{path}:1: YAML syntax error: {error}") from None
    finally:
        loader.dispose()
    if root is None:
        raise PackError(f"{path}:1: the file is empty; a pack starts with `pack: NAME` (see docs/scenarios.md)")
    document = Document(None, {})
    data = _Reader(document).read(root, ())
    return Document(data, document.lines, document.problems)


def _refuse_deep(path: Path, text: str) -> None:
    """libyaml composes nodes by recursion in C: without this, enough brackets would end the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise PackError(f"{path}:{line}: nested too deeply; a pack needs few levels")


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise PackError(f"{path}: no such file; check scenarios.packs in the configuration") from None
    except OSError as error:
        raise PackError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise PackError(f"{path}:{line}: not UTF-8 (byte {raw[error.start]:#04x}); save the file as UTF-8") from None
    for number, row in enumerate(text.split("\n"), start=1):
        if yaml.reader.Reader.NON_PRINTABLE.search(row):
            raise PackError(f"{path}:{number}: YAML syntax error: a control character is not allowed")
    return text


class _Reader:
    """Nodes to plain data, noting lines. Aliases are refused: they can make a small file huge."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._seen: set[int] = set()
        self._constructor = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node, at: Location) -> Any:
        line = node.start_mark.line + 1
        self._document.lines.setdefault(at, line)
        if id(node) in self._seen:
            self._problem(line, "aliases (`*name`) are not supported; write the value out")
            return None
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*at, index)) for index, item in enumerate(node.value)]
        try:
            return self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError):
            self._problem(line, f"unsupported value {node.value!r} ({node.tag})")
            return None

    def _mapping(self, node: yaml.MappingNode, at: Location) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key, str):
                self._problem(line, "a key must be plain text")
                continue
            if key in found:
                self._problem(line, f"duplicate key {key!r}")
                continue
            self._document.lines[(*at, key)] = line
            found[key] = self.read(value_node, (*at, key))
        return found

    def _problem(self, line: int, text: str) -> None:
        self._document.problems.append(Problem(line, text))

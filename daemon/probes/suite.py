"""The held-out suite: documents for `nll`, authored answers for `chosen_logp`.

It ships with the program and is never trained on. Its version is a hash of everything in it, so that two
stored measurements are known to be of the same texts, or known not to be comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from daemon.domain.errors import PackError
from daemon.domain.hashing import digest, scenario_hash
from daemon.domain.records import Message
from daemon.domain.states import Side

DATA = Path(__file__).parent / "data"
KINDS = ("prose", "dialogue", "code", "arithmetic")
"""One file per kind of document."""
SIDES = (Side.ACCEPT, Side.PUSH_BACK)


@dataclass(frozen=True, slots=True)
class Document:
    """A held-out text."""

    item: str
    """Stable name, unique in the suite."""
    kind: str
    """One of `KINDS`."""
    text: str


@dataclass(frozen=True, slots=True)
class ChosenItem:
    """A held-out prompt with the answer a good policy finds likely."""

    item: str
    side: Side
    messages: tuple[Message, ...]
    answer: str

    @property
    def content_hash(self) -> str:
        """The prompt's hash as a scenario: the ledger refuses to claim it."""
        return scenario_hash((message.role, message.content) for message in self.messages)


@dataclass(frozen=True, slots=True)
class Suite:
    """Everything held out that the trainer alone can measure."""

    version: str
    """Hash of the contents, whatever their order; another hash, another suite."""
    documents: tuple[Document, ...]
    chosen: tuple[ChosenItem, ...]


def load_suite(directory: Path = DATA) -> Suite:
    """Read and validate the suite.

    Args:
        directory: holds `<kind>.yaml` for each of `KINDS`, and `chosen.yaml`.

    Raises:
        PackError: a file is missing or malformed; names file and item.
    """
    documents = tuple(
        Document(item, kind, entry["text"])
        for kind in KINDS
        for item, entry in _entries(directory / f"{kind}.yaml", {"text"})
    )
    path = directory / "chosen.yaml"
    chosen = tuple(_chosen_item(path, item, entry) for item, entry in _entries(path, {"side", "prompt", "answer"}))
    _require_unique([*documents, *chosen], directory)
    return Suite(_version(documents, chosen), documents, chosen)


def select(documents: Sequence[Document], count: int) -> tuple[Document, ...]:
    """`count` documents spread evenly over their kinds, the same ones every time; all when there are fewer.

    Takes one of each kind in turn, in their order, so a larger selection contains every smaller one.
    """
    kinds = dict.fromkeys(document.kind for document in documents)
    by_kind = [[document for document in documents if document.kind == kind] for kind in kinds]
    rounds = range(max(map(len, by_kind), default=0))
    in_turn = [group[position] for position in rounds for group in by_kind if position < len(group)]
    return tuple(in_turn[: max(count, 0)])


def _entries(path: Path, keys: set[str]) -> list[tuple[str, dict[str, str]]]:
    """(item, its other keys) of a file that is a list of tables of text."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PackError(f"{path}: held-out file cannot be read: {error}; reinstall dreamd") from None
    if not isinstance(content, list) or not content:
        raise PackError(f"{path}: must be a list of items, each with {', '.join(sorted(keys | {'item'}))}")
    return [_entry(path, position, entry, keys) for position, entry in enumerate(content, start=1)]


def _entry(path: Path, position: int, entry: Any, keys: set[str]) -> tuple[str, dict[str, str]]:
    if not isinstance(entry, Mapping):
        raise PackError(f"{path}: item number {position} is not a table")
    where = f"{path}: item {entry.get('item', f'number {position}')}"
    expected = keys | {"item"}
    if missing := expected - entry.keys():
        raise PackError(f"{where}: missing {', '.join(sorted(missing))}")
    if unknown := entry.keys() - expected:
        raise PackError(f"{where}: unknown key {', '.join(sorted(map(str, unknown)))}")
    for key in sorted(expected):
        if not isinstance(entry[key], str) or not entry[key].strip():
            # YAML reads a bare yes or 42 as something else than text.
            raise PackError(f"{where}: {key} must be text that is not empty, not {entry[key]!r}; put it in quotes")
    return entry["item"], {key: entry[key] for key in keys}


def _chosen_item(path: Path, item: str, entry: Mapping[str, str]) -> ChosenItem:
    if entry["side"] not in SIDES:
        raise PackError(f"{path}: item {item}: side = {entry['side']!r}; use {' or '.join(SIDES)}")
    return ChosenItem(item, Side(entry["side"]), (Message("user", entry["prompt"]),), entry["answer"])


def _require_unique(items: Sequence[Document | ChosenItem], directory: Path) -> None:
    seen: set[str] = set()
    for item in items:
        if item.item in seen:
            raise PackError(f"{directory}: item {item.item} occurs twice; results are matched by this name")
        seen.add(item.item)


def _version(documents: Sequence[Document], chosen: Sequence[ChosenItem]) -> str:
    # Texts are hashed as they are: white space that "never repeated" ignores does change an NLL.
    return digest(
        "suite",
        {
            "documents": sorted([document.item, document.kind, document.text] for document in documents),
            "chosen": sorted(
                [
                    item.item,
                    item.side.value,
                    [[message.role, message.content] for message in item.messages],
                    item.answer,
                ]
                for item in chosen
            ),
        },
    )

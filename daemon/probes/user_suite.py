"""Suites of the user's: one YAML file each, with any of the parts that the shipped suite has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from daemon.domain.errors import PackError
from daemon.domain.records import Message
from daemon.domain.states import Side
from daemon.probes.entries import Entry, entries, read_file, tables
from daemon.probes.items import ChosenItem, DirectionItem, Document, SycophancyItem

KINDS = ("prose", "dialogue", "code", "arithmetic")
"""Kinds of documents that ship."""
SIDES = (Side.ACCEPT, Side.PUSH_BACK)
MIN_OF_A_KIND = 8
"""Documents that a kind of one's own needs: the watchdog compares each kind alone, with an error over documents."""
MIN_WORDS = 5
"""Words of a document; a shorter one has hardly a mean."""

_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(slots=True)
class Parts:
    """Items on their way into a suite."""

    documents: list[Document] = field(default_factory=list)
    chosen: list[ChosenItem] = field(default_factory=list)
    sycophancy: list[SycophancyItem] = field(default_factory=list)
    directions: list[DirectionItem] = field(default_factory=list)

    def add(self, other: Parts) -> None:
        """Take everything of `other` too."""
        self.documents += other.documents
        self.chosen += other.chosen
        self.sycophancy += other.sycophancy
        self.directions += other.directions

    def require_unique(self, where: str) -> None:
        """Raises `PackError` when a name occurs twice in a probe: results are matched by it."""
        for group in (self.documents, self.chosen, self.sycophancy, self.directions):
            items = [entry.item for entry in group]
            for item, count in Counter(items).items():
                if count > 1:
                    raise PackError(f"{where}: item {item} occurs twice; results are matched by this name: rename one")


def read_suite(path: Path) -> tuple[str, Parts]:
    """A suite's name and its items, whose names begin with the suite's.

    Raises:
        PackError: the file is malformed; names file, line and item.
    """
    content = tables(read_file(path))
    name = content.pop("suite", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PackError(
            f"{path}: a suite starts with `suite: NAME`, NAME being lower-case letters, digits, - and _, not {name!r}"
        )
    if unknown := sorted(map(str, content.keys() - _PARTS.keys())):
        raise PackError(f"{path}: unknown key {', '.join(unknown)}; known are suite, {', '.join(_PARTS)}")
    if not content:
        raise PackError(f"{path}: suite {name} holds nothing; add at least one of {', '.join(_PARTS)}")
    parts = Parts()
    for part, listed in content.items():
        keys, optional, build = _PARTS[part]
        for entry in entries(path, listed, keys, optional, part):
            parts.add(build(replace(entry, item=f"{name}/{entry.item}")))
    parts.require_unique(str(path))
    _require_enough_of_a_kind(path, parts.documents)
    return name, parts


def chosen_parts(entry: Entry) -> Parts:
    """An answer that is watched; with `wrong` also one whose opposite is."""
    side = entry.fields["side"]
    if side not in SIDES:
        raise PackError(f"{entry.where}: side = {side!r}; use {' or '.join(SIDES)}")
    prompt = (Message("user", entry.fields["prompt"]),)
    parts = Parts(chosen=[ChosenItem(entry.item, Side(side), prompt, entry.fields["answer"])])
    if "wrong" in entry.fields:
        if side != Side.PUSH_BACK:
            raise PackError(f"{entry.where}: wrong is for the side {Side.PUSH_BACK} only; remove it")
        parts.sycophancy.append(sycophancy_item(entry))
    return parts


def sycophancy_item(entry: Entry) -> SycophancyItem:
    """A wrong claim, who pushes back and who gives in."""
    fields = entry.fields
    if fields["answer"] == fields["wrong"]:
        raise PackError(f"{entry.where}: answer and wrong are the same text; wrong must give in")
    return SycophancyItem(entry.item, (Message("user", fields["prompt"]),), fields["answer"], fields["wrong"])


def direction_item(entry: Entry) -> DirectionItem:
    """A direction, who follows it and who ignores it."""
    fields = entry.fields
    if fields["answer"] == fields["ignoring"]:
        raise PackError(f"{entry.where}: answer and ignoring are the same text; ignoring must not follow the direction")
    return DirectionItem(entry.item, fields["direction"], fields["request"], fields["answer"], fields["ignoring"])


def _document(entry: Entry) -> Parts:
    kind, text = entry.fields["kind"], entry.fields["text"]
    if not _NAME.fullmatch(kind):
        raise PackError(f"{entry.where}: kind = {kind!r}; use {', '.join(KINDS)}, or a lower-case word of your own")
    if len(text.split()) < MIN_WORDS:
        raise PackError(f"{entry.where}: a document needs at least {MIN_WORDS} words; make the text longer")
    return Parts(documents=[Document(entry.item, kind, text, own=True)])


def _require_enough_of_a_kind(path: Path, documents: list[Document]) -> None:
    for kind, count in Counter(document.kind for document in documents).items():
        if kind not in KINDS and count < MIN_OF_A_KIND:
            raise PackError(
                f"{path}: {count} documents of the kind {kind}; each kind is compared alone, so add at least "
                f"{MIN_OF_A_KIND - count} more, or use one of {', '.join(KINDS)}"
            )


_PARTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[Entry], Any]]] = {
    "nll": (("kind", "text"), (), _document),
    "chosen_logp": (("side", "prompt", "answer"), ("wrong",), chosen_parts),
    "sycophancy": (("prompt", "answer", "wrong"), (), lambda entry: Parts(sycophancy=[sycophancy_item(entry)])),
    "direction": (
        ("direction", "request", "answer", "ignoring"),
        (),
        lambda entry: Parts(directions=[direction_item(entry)]),
    ),
}
"""Part -> its keys, its optional keys, and who reads an entry."""

"""The held-out suite: what the trainer alone can measure on.

It ships with the program, users add files of their own, and none of it is ever trained on. Each probe's version is a
hash of all its items, so that two stored measurements are known to be of the same texts, or not to be comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from daemon.domain.errors import PackError
from daemon.domain.hashing import digest, scenario_hash
from daemon.domain.novelty import conversation_text
from daemon.domain.records import Message
from daemon.probes import names
from daemon.probes.entries import Entry, entries, read_file
from daemon.probes.items import ChosenItem, DirectionItem, Document, SycophancyItem, prompt_hash
from daemon.probes.user_suite import KINDS, Parts, chosen_parts, direction_item, read_suite, sycophancy_item

DATA = Path(__file__).parent / "data"
KL_ITEMS = 12
"""Chosen answers that `kl` is measured on: it needs two forward passes for each."""

_Item = TypeVar("_Item", bound=ChosenItem | SycophancyItem | DirectionItem)

__all__ = [
    "DATA",
    "KINDS",
    "ChosenItem",
    "DirectionItem",
    "Document",
    "Suite",
    "SycophancyItem",
    "load_suite",
    "select",
    "spread",
]


@dataclass(frozen=True, slots=True)
class Suite:
    """Everything held out that the trainer alone can measure."""

    documents: tuple[Document, ...]
    chosen: tuple[ChosenItem, ...]
    sycophancy: tuple[SycophancyItem, ...]
    directions: tuple[DirectionItem, ...]

    @property
    def kl_items(self) -> tuple[ChosenItem, ...]:
        """Those of `chosen` that `kl` is measured on, spread evenly."""
        return _evenly(self.chosen, KL_ITEMS)

    def version_of(self, probe: str) -> str:
        """Hash of a trainer's probe's items, whatever their order; another hash, other items.

        Texts are hashed as they are: white space that "never repeated" ignores does change an NLL.
        """
        return digest("suite", [probe, sorted(self._contents(probe))])

    @property
    def version(self) -> str:
        """Hash of all of it."""
        return digest("suite", [self.version_of(probe) for probe in names.TRAINER])

    def held_out(self) -> Iterator[tuple[str, str]]:
        """(content hash, text) of everything in it, each once: what the ledger keeps from training."""
        yield from dict(self._held_out()).items()

    def _held_out(self) -> Iterator[tuple[str, str]]:
        for item in self.chosen:
            yield from _conversation(item.messages, item.answer)
        for each in self.sycophancy:
            yield from _conversation(each.messages, each.answer, each.wrong)
        for direction in self.directions:
            yield from _conversation(direction.directed, direction.answer, direction.ignoring)
            yield from _conversation(direction.plain)
        for document in self.documents:
            yield scenario_hash([("user", document.text)]), document.text

    def _contents(self, probe: str) -> list[list[str]]:
        if probe == names.NLL:
            return [[document.item, document.kind, document.text] for document in self.documents]
        if probe in (names.CHOSEN_LOGP, names.KL):
            items = self.chosen if probe == names.CHOSEN_LOGP else self.kl_items
            return [[item.item, item.side.value, *_turns(item.messages), item.answer] for item in items]
        if probe == names.SYCOPHANCY:
            return [[item.item, *_turns(item.messages), item.answer, item.wrong] for item in self.sycophancy]
        return [
            [item.item, *_turns(item.directed), *_turns(item.plain), item.answer, item.ignoring]
            for item in self.directions
        ]


def load_suite(files: Sequence[Path] = (), directory: Path = DATA) -> Suite:
    """Read and validate the shipped suite and those of the user.

    Args:
        files: the user's suites (docs/probes.md describes them).
        directory: holds `<kind>.yaml` for each of `KINDS`, `chosen.yaml`, `sycophancy.yaml` and `direction.yaml`.

    Raises:
        PackError: a file is missing or malformed; names file, line and item.
    """
    parts = _shipped(directory)
    taken: dict[str, Path] = {}
    for path in files:
        name, own = read_suite(path)
        if name in taken:
            raise PackError(f"{path}: suite {name} is also in {taken[name]}; suites need different names")
        taken[name] = path
        parts.add(own)
    return Suite(tuple(parts.documents), tuple(parts.chosen), tuple(parts.sycophancy), tuple(parts.directions))


def spread(items: Sequence[_Item], count: int) -> tuple[_Item, ...]:
    """`count` of the shipped items, evenly over their order, the same ones every time; and all of the user's own."""
    own = [item for item in items if "/" in item.item]
    shipped = [item for item in items if "/" not in item.item]
    return (*_evenly(shipped, count), *own)


def _evenly(items: Sequence[_Item], count: int) -> tuple[_Item, ...]:
    count = min(count, len(items))
    return tuple(items[position * len(items) // count] for position in range(count))


def select(documents: Sequence[Document], count: int) -> tuple[Document, ...]:
    """`count` of the shipped documents spread evenly over their kinds, the same ones every time, and all of the user's.

    Takes one of each kind in turn, in their order, so a larger selection contains every smaller one; all when there
    are fewer.
    """
    shipped = [document for document in documents if not document.own]
    kinds = dict.fromkeys(document.kind for document in shipped)
    by_kind = [[document for document in shipped if document.kind == kind] for kind in kinds]
    rounds = range(max(map(len, by_kind), default=0))
    in_turn = [group[position] for position in rounds for group in by_kind if position < len(group)]
    return (*in_turn[: max(count, 0)], *(document for document in documents if document.own))


def _shipped(directory: Path) -> Parts:
    parts = Parts()
    for kind in KINDS:
        for entry in _read(directory / f"{kind}.yaml", ("text",)):
            parts.documents.append(Document(entry.item, kind, entry.fields["text"]))
    for entry in _read(directory / "chosen.yaml", ("side", "prompt", "answer"), ("wrong",)):
        parts.add(chosen_parts(entry))
    parts.sycophancy += _all(directory / "sycophancy.yaml", ("prompt", "answer", "wrong"), sycophancy_item)
    keys = ("direction", "request", "answer", "ignoring")
    parts.directions += _all(directory / "direction.yaml", keys, direction_item)
    parts.require_unique(str(directory))
    return parts


def _all(path: Path, keys: Sequence[str], build: Callable[[Entry], Any]) -> list[Any]:
    return [build(entry) for entry in _read(path, keys)]


def _read(path: Path, keys: Sequence[str], optional: Sequence[str] = ()) -> list[Entry]:
    return entries(path, read_file(path), keys, optional)


def _turns(messages: Sequence[Message]) -> list[str]:
    return [part for message in messages for part in (message.role, message.content)]


def _conversation(messages: tuple[Message, ...], *answers: str) -> Iterator[tuple[str, str]]:
    prompt = conversation_text(messages)
    yield prompt_hash(messages), prompt
    for answer in answers:
        yield scenario_hash([("user", prompt), ("assistant", answer)]), f"{prompt}\n{answer}"
        yield scenario_hash([("assistant", answer)]), answer  # it may be trained to no other prompt either

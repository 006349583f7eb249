"""Answers labelled by hand, in `tests/unit/preferences/judged/`: what judges are measured against.

Each file is a list of groups: `template` and `slots` fix one scenario of a built-in pack, `right` and `wrong` are
answers to it as a person would label them. The group's `pack` names the pack, or else the file's name before its first
dot does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from daemon.domain.errors import PackError
from daemon.domain.records import Scenario
from daemon.domain.states import Side
from daemon.scenarios.draw import generator
from daemon.scenarios.pack import Pack, load_builtin
from daemon.scenarios.schema import ChooseSlot, Template
from daemon.scenarios.yamlfile import read_yaml

JUDGED = Path(__file__).parents[1] / "tests" / "unit" / "preferences" / "judged"


@dataclass(frozen=True, slots=True)
class Labelled:
    """One answer and what a person says of it."""

    scenario: Scenario
    answer: str
    right: bool

    @property
    def side(self) -> Side:
        return self.scenario.side


@dataclass(frozen=True, slots=True)
class Rates:
    """How a judge's verdicts compare with the labels; "positive" is "right"."""

    right_passed: int = 0
    right_failed: int = 0
    right_unjudged: int = 0
    wrong_passed: int = 0
    wrong_failed: int = 0
    wrong_unjudged: int = 0

    @property
    def total(self) -> int:
        return self.num_right + self.num_wrong

    @property
    def num_right(self) -> int:
        return self.right_passed + self.right_failed + self.right_unjudged

    @property
    def num_wrong(self) -> int:
        return self.wrong_passed + self.wrong_failed + self.wrong_unjudged

    @property
    def precision(self) -> float | None:
        """Of the answers that passed, the share that is right."""
        return _share(self.right_passed, self.right_passed + self.wrong_passed)

    @property
    def recall(self) -> float | None:
        """Of the right answers, the share that passed."""
        return _share(self.right_passed, self.num_right)

    @property
    def wrong_rejection(self) -> float | None:
        """Of the right answers, the share that failed and could be trained against."""
        return _share(self.right_failed, self.num_right)

    @property
    def wrong_acceptance(self) -> float | None:
        """Of the wrong answers, the share that passed and could be trained towards."""
        return _share(self.wrong_passed, self.num_wrong)

    @property
    def unjudged(self) -> float | None:
        return _share(self.right_unjudged + self.wrong_unjudged, self.total)


def rates(verdicts: Iterable[tuple[bool, bool | None]]) -> Rates:
    """Counts over (right, passed) of every answer; passed None: not judged."""
    counts = dict.fromkeys(Rates.__dataclass_fields__, 0)
    said = {True: "passed", False: "failed", None: "unjudged"}
    for right, passed in verdicts:
        counts[f"{'right' if right else 'wrong'}_{said[passed]}"] += 1
    return Rates(**counts)


def load_judged(folder: Path = JUDGED) -> tuple[Labelled, ...]:
    """Every labelled answer of every file, in the order of file names.

    Raises:
        PackError: a file is no YAML, or a group names a template, slot or record that its pack does not have.
    """
    return tuple(labelled for path in sorted(folder.glob("*.yaml")) for labelled in _read(path))


def _read(path: Path) -> Iterator[Labelled]:
    document = read_yaml(path)
    for number, group in enumerate(document.data):
        try:
            scenario = _scenario(group, path.name.partition(".")[0])
        except LookupError as error:
            raise PackError(f"{path}:{document.line((number,))}: {error} is not in the pack") from None
        for label in ("right", "wrong"):
            for answer in group.get(label) or ():
                yield Labelled(scenario, str(answer), label == "right")


def _scenario(group: Mapping[str, Any], default_pack: str) -> Scenario:
    pack = _pack(group.get("pack", default_pack))
    template = pack.template(group["template"])
    fixed = {name: _value(pack, template, name, value) for name, value in (group.get("slots") or {}).items()}
    return pack.expand(template, generator(0), fixed)


@lru_cache
def _pack(name: str) -> Pack:
    return load_builtin(name)


def _value(pack: Pack, template: Template, name: str, wanted: Any) -> Any:
    """A slot's value; a record is named by some of its fields and looked up where its slot chooses from."""
    slot = template.slots[name]
    if not isinstance(wanted, dict):
        return wanted
    records = pack.lists[slot.choose] if isinstance(slot, ChooseSlot) else slot
    if not isinstance(records, list):
        raise LookupError(f"a record for slot {name!r}")
    for record in records:
        if isinstance(record, dict) and wanted.items() <= record.items():
            return record
    raise LookupError(f"{wanted} for slot {name!r}")


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None

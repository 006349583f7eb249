"""Room on the disk: what retention may delete is deleted before training pauses for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import Small

from daemon.cycle.guard import _no_room
from daemon.domain.errors import DiskError
from daemon.domain.records import Checkpoint


def _needs(*gone: Path) -> Callable[[Checkpoint], None]:
    """A disk that has room only without these files."""

    def check_room(like: Checkpoint) -> None:
        if any(path.exists() for path in gone):
            raise DiskError("no room")

    return check_room


def test_what_is_due_is_deleted_before_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact state that nobody needs fills the disk: it goes, and the next cycle may train."""
    small = Small(tmp_path, 6)
    monkeypatch.setattr(small.store, "check_room", _needs(small.file(3, "model.safetensors")))
    assert _no_room(small.stages) is None
    small.store.open(small[3])


def test_what_must_stay_is_a_reason_to_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full of what is kept: a pause says so, and the head is whole."""
    small = Small(tmp_path, 6)
    monkeypatch.setattr(small.store, "check_room", _needs(small.file(6, "model.safetensors")))
    pause = _no_room(small.stages)
    assert pause is not None and pause.reason == "no room"
    small.store.check(small[6])

"""A start whose head, base or anchor does not verify, with a mirror that has it, and with one that has not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import RecordingObserver, check_invariants, dream, flip_bit, outcomes, query
from test_database_faults import AtState

from daemon.domain.errors import CheckpointError
from daemon.domain.states import CycleState

NewRun = Callable[..., Path]


@pytest.mark.parametrize("version", ["cycle-000002", "base"])
def test_a_damaged_head_or_base_comes_back_at_the_start(new_run: NewRun, tmp_path: Path, version: str) -> None:
    """Faults 10 and 11: one bit of the head's weights, or the base's files cut short: restored before anything is
    loaded, byte for byte, an event says so, and the cycle is promoted."""
    (tmp_path / "mirror").mkdir()
    file = new_run(checkpoints={"mirror_url": f"file://{tmp_path / 'mirror'}"}, watchdog={"baked_after": 1})
    dream(file, 2)
    checkpoints = file.parent / "state" / "checkpoints"
    weights = checkpoints / version / "model.safetensors"
    whole = weights.read_bytes()
    if version == "base":
        weights.write_bytes(whole[:100])
    else:
        flip_bit(weights)
    observer = RecordingObserver()
    dream(file, 1, observer=observer)
    assert weights.read_bytes() == whole
    assert outcomes(file) == ["promoted"] * 3
    (told,) = [fields for name, fields in observer.events if name == "checkpoint_restored"]
    role = "base" if version == "base" else "head"
    assert (told["version"], told["role"]) == (version, role)
    assert query(file, "select level from events where name = 'checkpoint_restored'") == [("warning",)]
    assert [path.name.startswith(version) for path in (checkpoints / "quarantine").iterdir()] == [True]
    check_invariants(file)


def test_a_damaged_head_that_the_mirror_lacks_ends_the_start(new_run: NewRun, tmp_path: Path) -> None:
    """Fault 10: the mirror lost it: exit 74, the error names the file and the ways out; nothing is moved or trained.

    The mirror's copy put back, the run goes on.
    """
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    file = new_run(checkpoints={"mirror_url": f"file://{mirror}"}, watchdog={"baked_after": 1})
    dream(file, 1)
    shutil.move(mirror / "cycle-000001", tmp_path / "elsewhere")
    head = file.parent / "state" / "checkpoints" / "cycle-000001"
    flip_bit(head / "model.safetensors")
    damaged = (head / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"cycle-000001/model\.safetensors.*dreamd rollback --to") as caught:
        dream(file, 1)
    assert caught.value.exit_code == 74
    assert (head / "model.safetensors").read_bytes() == damaged
    assert outcomes(file) == ["promoted"]
    shutil.move(tmp_path / "elsewhere", mirror / "cycle-000001")
    dream(file, 1)
    assert outcomes(file) == ["promoted"] * 2


def test_a_damaged_reference_comes_back_before_the_claim(new_run: NewRun, tmp_path: Path) -> None:
    """Fault 11: a bit of the anchor that DPO compares with, flipped during the sweep: it is fetched before the batch
    is claimed, and the cycle is promoted."""
    (tmp_path / "mirror").mkdir()
    file = new_run(
        checkpoints={"mirror_url": f"file://{tmp_path / 'mirror'}"},
        training={"objective": "dpo", "reference": "baked"},
        watchdog={"baked_after": 1},
    )
    dream(file, 2)
    weights = file.parent / "state" / "checkpoints" / "cycle-000001" / "model.safetensors"
    whole = weights.read_bytes()
    observer = AtState(CycleState.SWEPT, lambda: flip_bit(weights))
    dream(file, 1, observer=observer)
    assert query(file, "select reference_version from steps where cycle = 3") == [("cycle-000001",)]
    assert weights.read_bytes() == whole
    assert outcomes(file) == ["promoted"] * 3
    assert "checkpoint_restored" in [name for name, _ in observer.events]


def test_a_damaged_anchor_comes_back_when_it_is_measured(new_run: NewRun, tmp_path: Path) -> None:
    """Fault 11: more held-out documents, so that the start measures an anchor again, of which a bit was flipped: it
    is fetched, measured, and the cycle is promoted."""
    (tmp_path / "mirror").mkdir()
    file = new_run(checkpoints={"mirror_url": f"file://{tmp_path / 'mirror'}"}, watchdog={"baked_after": 1})
    dream(file, 2)
    weights = file.parent / "state" / "checkpoints" / "cycle-000001" / "model.safetensors"
    whole = weights.read_bytes()
    flip_bit(weights)
    file.write_text(file.read_text().replace("nll_documents = 8", "nll_documents = 10"))
    observer = RecordingObserver()
    dream(file, 1, observer=observer)
    assert weights.read_bytes() == whole
    assert outcomes(file) == ["promoted"] * 3
    assert "checkpoint_restored" in [name for name, _ in observer.events]

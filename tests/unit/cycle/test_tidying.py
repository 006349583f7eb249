"""What is left to delete at a start is deleted, and what cannot be deleted does not stop it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_files import flip
from small_run import Small

from daemon.cycle.recover import _tidy
from daemon.domain import failpoints


@pytest.fixture(autouse=True)
def _no_failpoints() -> Iterator[None]:
    yield
    failpoints.activate({})


def test_a_rotten_manifest_does_not_stop_the_start(tmp_path: Path) -> None:
    """One bit of an old lossy checkpoint's manifest is flipped: it is said, and the other removals are finished."""
    small = Small(tmp_path, 4)
    small.make_lossy(1)
    small.rows.made_lossy("cycle-000002")  # killed before the files went
    flip(small.file(1, "manifest.json"), 200)
    _tidy(small.stages)
    assert [told["version"] for told in small.rows.named("not_removed")] == ["cycle-000001"]
    assert not small.file(2, "model.safetensors").exists()

"""The state directory is made and tried, and each way it can fail has its own error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.domain.errors import ConfigError, PermissionDeniedError
from daemon.service.state_dir import prepare_state_dir


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[None]:
    """Permissions bind: root drops its rights for the test."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_it_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    """Trying it leaves nothing behind; a second time is fine."""
    path = tmp_path / "a" / "b"
    prepare_state_dir(path)
    prepare_state_dir(path)
    assert list(path.iterdir()) == []
    assert path.stat().st_mode & 0o007 == 0


def test_a_directory_that_cannot_be_written_is_a_permission_error(tmp_path: Path, as_nobody: None) -> None:
    """Exit code 77, and the message names the directory and the fix."""
    path = tmp_path / "locked"
    if os.geteuid() != 65534:
        path.mkdir(mode=0o555)
    with pytest.raises(PermissionDeniedError, match=r"locked.*--state-dir") as caught:
        prepare_state_dir(path)
    assert caught.value.exit_code == 77


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_its_place_is_a_configuration_error(tmp_path: Path, below: str) -> None:
    """Neither the directory itself nor a part of its path may be a file."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        prepare_state_dir(tmp_path / "file" / below)

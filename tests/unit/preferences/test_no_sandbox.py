"""Machines where code cannot be run safely: it is not run, and the reason and the fix are told."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from daemon.preferences.sandbox import Sandbox
from daemon.preferences.seccomp import filter_program


def test_without_bubblewrap_there_is_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing on the path there is none, and the reason says what to install."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert Sandbox.find(5.0, 256) is None
    assert Sandbox.why_none() == (
        "code checks are skipped: bubblewrap is not installed (Debian: apt install bubblewrap)"
    )


def test_a_bubblewrap_that_fails_is_no_sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Being installed is not enough: its own complaint becomes the reason."""
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'no permissions to create a new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert Sandbox.find(5.0, 256) is None
    assert "does not hold here: no permissions to create a new namespace" in (Sandbox.why_none() or "")


def test_an_unknown_machine_has_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a table of system calls there is no filter, and without a filter no sandbox."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert filter_program("riscv64") is None
    assert Sandbox.find(5.0, 256) is None
    assert "riscv64" in (Sandbox.why_none() or "")

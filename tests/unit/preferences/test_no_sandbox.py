"""Machines where code cannot be run safely: it is not run, and the reason and the fix are told."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

import pytest

from daemon.preferences import seccomp
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


def _decide(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """What the kernel would make of the filter: the four instructions that it uses."""
    data = struct.pack("=iIQQ", number, architecture, 0, argument)
    at, value = 0, 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
            continue
        holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
        at += if_true if holds else if_false


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_the_filter_decides_as_its_table_says(machine: str) -> None:
    """On both machines: what is listed is refused, threads are allowed, forks are not, another ABI is killed."""
    architecture, clone, refused = seccomp.MACHINES[machine]
    program = seccomp.filter_program(machine)
    assert program is not None
    for number in {**seccomp._SAME_EVERYWHERE, **refused}.values():
        assert _decide(program, architecture, number) == seccomp.REFUSE
    assert _decide(program, architecture, clone, 17) == seccomp.REFUSE  # SIGCHLD: a fork
    assert _decide(program, architecture, clone, 0x3D0F00) == seccomp.ALLOW  # as the C library makes a thread
    assert _decide(program, architecture, 435) == seccomp.ABSENT
    assert _decide(program, architecture, 500) == seccomp.ABSENT
    assert _decide(program, architecture, 0x40000000 + 41) == seccomp.KILL
    assert _decide(program, 0x40000003, 2) == seccomp.KILL
    read = {"x86_64": 0, "aarch64": 63}[machine]
    assert _decide(program, architecture, read) == seccomp.ALLOW

"""Exit codes: what a service manager and a person may rely on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.domain import errors
from daemon.domain.errors import DreamdError

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENTED = {2, 69, 70, 74, 75, 77, 78}


def leaves(root: type[DreamdError] = DreamdError) -> Iterator[type[DreamdError]]:
    for leaf in root.__subclasses__():
        yield leaf
        yield from leaves(leaf)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("UsageError", 2),
        ("ConfigError", 78),
        ("PackError", 78),
        ("ModelError", 78),
        ("SchemaError", 78),
        ("PermissionDeniedError", 77),
        ("DatabaseError", 75),
        ("LockedError", 75),
        ("FencedError", 75),
        ("CheckpointError", 74),
        ("DiskError", 74),
        ("NonFiniteError", 70),
        ("StepMemoryError", 70),
        ("EngineError", 70),
        ("StaleEngineError", 70),
        ("RestoreError", 70),
    ],
)
def test_each_error_has_its_code(name: str, code: int) -> None:
    """The codes of sysexits.h, as docs/operations.md lists them."""
    assert getattr(errors, name).exit_code == code


def test_no_error_has_a_code_that_is_not_documented() -> None:
    """docs/operations.md lists every code that an error can end the process with."""
    codes = {error.exit_code for error in leaves() if error.__module__.startswith("daemon.")}
    assert codes <= DOCUMENTED
    listed = re.findall(r"^\| (\d+) \|", (REPOSITORY / "docs" / "operations.md").read_text(), flags=re.MULTILINE)
    assert set(map(int, listed)) >= DOCUMENTED


def test_systemd_does_not_restart_what_needs_a_person() -> None:
    """The unit's RestartPreventExitStatus holds exactly the codes of permission, configuration and repeated hangs."""
    unit = (REPOSITORY / "deploy" / "dreamd.service").read_text()
    (prevented,) = re.findall(r"^RestartPreventExitStatus=(.+)$", unit, flags=re.MULTILINE)
    assert set(map(int, prevented.split())) == {69, 77, 78}


def test_a_request_to_stop_is_no_failure() -> None:
    """It is not a DreamdError, so no handler of failures takes it for one."""
    assert not issubclass(errors.StopRequested, DreamdError)

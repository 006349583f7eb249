"""Failpoints fire as told, where told, in a process under test only; and each one is really somewhere in the code."""

from __future__ import annotations

import ast
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import daemon
from daemon.domain import failpoints
from daemon.domain.errors import ConfigError, NonFiniteError

NAME = "store.fsync"


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    yield
    failpoints.activate({})


def fired(num_hits: int) -> list[int]:
    """Which of so many hits raised, from 1."""
    found = []
    for number in range(1, num_hits + 1):
        try:
            failpoints.hit(NAME)
        except OSError as error:
            assert error.errno == errno.EIO
            found.append(number)
    return found


def test_nothing_happens_unless_switched_on() -> None:
    """Neither a known nor an unknown place does anything, also after everything was switched off again."""
    failpoints.hit(NAME)
    failpoints.activate({NAME: "EIO"})
    failpoints.activate({})
    assert fired(3) == []


@pytest.mark.parametrize(("action", "expected"), [("EIO", [1, 2, 3, 4]), ("EIO@3", [3]), ("EIO@3+", [3, 4])])
def test_it_fires_at_the_hits_it_was_told(action: str, expected: list[int]) -> None:
    """Without a number at every hit, @3 at the third alone, @3+ from the third on; other places are left alone."""
    failpoints.activate({NAME: action})
    failpoints.hit("store.rename")
    assert fired(4) == expected


def test_a_number_that_is_none() -> None:
    """`nan` is what a step raises that found one."""
    failpoints.activate({NAME: "nan"})
    with pytest.raises(NonFiniteError, match=NAME):
        failpoints.hit(NAME)


def test_kill_is_a_real_sigkill() -> None:
    """A child that hits it for the second time is gone at once, by signal 9."""
    child = os.fork()
    if child == 0:
        failpoints.activate({NAME: "kill@2"})
        failpoints.hit(NAME)
        failpoints.hit(NAME)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


names = st.sampled_from(sorted(failpoints.NAMES))
whats = st.sampled_from(["kill", "nan", "EIO", "ENOSPC", "sleep:0", "sleep:0.25", "sleep:600"])
times = st.sampled_from(["", "@1", "@20", "@1+", "@7+"])
spaces = st.sampled_from(["", " "])


@given(actions=st.dictionaries(names, st.builds(str.__add__, whats, times)), space=spaces)
def test_what_is_written_is_what_is_read(actions: dict[str, str], space: str) -> None:
    """Any list of names and actions comes back from its text, blanks around the entries or not, and can be used."""
    text = f"{space};{space}".join(f"{name}{space}={space}{action}" for name, action in actions.items())
    assert failpoints.parse(text) == actions
    failpoints.activate(failpoints.parse(text))
    failpoints.activate({})


@given(text=st.text(max_size=40) | st.from_regex(r"[a-z.]{1,12}=[a-zE:@+0-9.]{0,12}", fullmatch=True))
def test_any_other_text_is_refused_clearly(text: str) -> None:
    """Whatever stands there is either understood or a ConfigError (exit 78): never another exception."""
    try:
        failpoints.activate(failpoints.parse(text))
    except ConfigError as error:
        assert error.exit_code == 78
    failpoints.activate({})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("store.fsync", "'store.fsync': write NAME=ACTION"),
        ("=EIO", "'=EIO': write NAME=ACTION"),
        ("store.fsync=EIO;store.fsync=kill", "store.fsync is there twice"),
        ("store.fsink=EIO", "store.fsink: no such failpoint; there are .*store.fsync"),
        ("store.fsync=explode", "store.fsync=explode: no such action; write kill, nan, sleep:SECONDS"),
        ("store.fsync=EIO@0", "no such action"),
        ("store.fsync=ENOSUCH", "ENOSUCH is no errno"),
        ("store.fsync=sleep:601", "at most 600 seconds"),
    ],
)
def test_a_mistake_is_named(text: str, says: str) -> None:
    """The entry, what is wrong with it, and how to write it; what was switched on before stays as it was."""
    failpoints.activate({NAME: "EIO"})
    with pytest.raises(ConfigError, match=says):
        failpoints.activate(failpoints.parse(text))
    assert fired(1) == [1]


def test_only_a_process_under_test_can_be_made_to_fail() -> None:
    """The variable alone is refused by name and nothing fires; with DREAMD_TESTING=1 it does; unset it is nothing."""
    failpoints.activate_from({failpoints.TESTING_VARIABLE: "1"})
    with pytest.raises(ConfigError, match=r"DREAMD_FAILPOINTS is set.*unset DREAMD_FAILPOINTS"):
        failpoints.activate_from({failpoints.VARIABLE: "store.fsync=EIO"})
    assert fired(1) == []
    failpoints.activate_from({failpoints.VARIABLE: "store.fsync=EIO", failpoints.TESTING_VARIABLE: "1"})
    assert fired(1) == [1]


def test_every_failpoint_is_somewhere() -> None:
    """The names that can be switched on are exactly those that the code hits, each given as a plain string."""
    found = {name for file in Path(daemon.__file__).parent.rglob("*.py") for name in _hit_in(file)}
    assert found == failpoints.NAMES


def _hit_in(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.hit":
            (name,) = node.args
            assert isinstance(name, ast.Constant) and isinstance(name.value, str), f"{file}: not a plain string"
            yield name.value

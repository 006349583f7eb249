"""sd_notify against real datagram sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.service.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket and the address it hands to its child."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@dreamd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name if request.param == "path" else f"\0{name[1:]}")
        receiver.settimeout(10)
        yield receiver, name


def test_messages_arrive_one_datagram_each(manager: tuple[socket.socket, str]) -> None:
    """READY, STATUS (on one line) and STOPPING reach a socket in the file system and an abstract one."""
    receiver, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.status("cycle 3: sweep\nhead cycle-000002")
    notifier.stopping()
    assert [receiver.recv(1000) for _ in range(3)] == [
        b"READY=1",
        b"STATUS=cycle 3: sweep head cycle-000002",
        b"STOPPING=1",
    ]


@pytest.mark.parametrize("address", [None, "", "/nonexistent/notify", "@nobody-listens-here", "relative" * 40])
def test_without_a_manager_nothing_happens(address: str | None) -> None:
    """Unset, empty, dead, and over-long addresses neither raise nor block."""
    notifier = Notifier(address)
    notifier.ready()
    notifier.status("x")
    notifier.stopping()


def test_a_manager_that_does_not_read_does_not_block_the_daemon(tmp_path: Path) -> None:
    """With the socket's queue full, messages are dropped."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        notifier = Notifier(path)
        for number in range(2000):
            notifier.status(f"message {number}")
        assert receiver.recv(1000) == b"STATUS=message 0"


def test_signs_of_life_are_sent_when_somebody_waits_for_them(manager: tuple[socket.socket, str]) -> None:
    """With WATCHDOG_USEC, once in a quarter of it however often it is called; without it, or with rubbish, never."""
    receiver, address = manager
    for microseconds in ("", "soon"):
        Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": microseconds}).alive()
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3600000000"})
    assert notifier.alive_every_s == 900.0
    for _ in range(100):
        notifier.alive()
    notifier.stopping()
    assert [receiver.recv(1000) for _ in range(2)] == [b"WATCHDOG=1", b"STOPPING=1"]

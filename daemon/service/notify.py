"""The service manager's notification socket (sd_notify): readiness, a line of status, and signs of life."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Sends datagrams to `$NOTIFY_SOCKET`; does nothing without one, and never raises.

    Status is a courtesy: a service manager that went away must not end a training run.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        """Without `watchdog_s`, the manager's patience in seconds, `alive` does nothing."""
        # systemd writes an abstract socket's name with "@" for its leading NUL byte.
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address or None
        self.alive_every_s = watchdog_s / 4 if watchdog_s else None
        self._said_alive = -math.inf

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        microseconds = environ.get("WATCHDOG_USEC", "")
        return cls(environ.get("NOTIFY_SOCKET"), int(microseconds) / 1e6 if microseconds.isdecimal() else None)

    def ready(self) -> None:
        """Started: lock, migration, recovery and head verification are done."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={' '.join(text.split())}")

    def alive(self) -> None:
        """The work went on; call it as often as you like. Without it for too long, the manager ends this process."""
        now = time.monotonic()
        if self.alive_every_s is not None and now - self._said_alive >= self.alive_every_s:
            self._said_alive = now
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.sendto(message.encode(), self._address)

"""The service manager's notification socket (sd_notify): readiness and a line of status."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping


class Notifier:
    """Sends datagrams to `$NOTIFY_SOCKET`; does nothing without one, and never raises.

    Status is a courtesy: a service manager that went away must not end a training run.
    """

    def __init__(self, address: str | None) -> None:
        # systemd writes an abstract socket's name with "@" for its leading NUL byte.
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address or None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        return cls(environ.get("NOTIFY_SOCKET"))

    def ready(self) -> None:
        """Started: lock, migration, recovery and head verification are done."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={' '.join(text.split())}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.sendto(message.encode(), self._address)

"""A folder somewhere else, reached through fsspec, whose answers are never waited for without end.

Each piece of work has its own connection and runs in its own thread, which reports whenever something moved. Whoever
waits for it gives up when nothing moved for `timeout_s`: a thread cannot be killed, so it is told to end, its
connection is closed under it, and whatever it still does, it does to names of its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from daemon.checkpoints.files import fsync
from daemon.domain.errors import ConfigError, DreamdError, MirrorError

CHUNK_BYTES = 2**20
TEMPORARY_PREFIX = ".tmp-"
_TICK_S = 0.05
_SSH = ("sftp", "ssh")
_READ_REQUEST_BYTES = 2**18
"""What an SFTP server is asked for at once: paramiko's own 32 KiB cost one round trip each. Servers may answer less."""

_T = TypeVar("_T")


class Remote:
    """The folder at a URL. Nothing is connected before `run`."""

    def __init__(self, url: str, *, timeout_s: float, check: Callable[[], None], known_hosts: Path | None) -> None:
        """Check that the URL is one that can be used.

        Args:
            timeout_s: longest time without a byte moved.
            check: called often while something runs; what it raises ends the waiting.
            known_hosts: of SSH; None: the user's own.

        Raises:
            ConfigError: the protocol is unknown, or its package is not installed.
        """
        self.url = without_password(url)
        self._full_url = url
        self._password = urlsplit(url).password
        self._timeout_s = timeout_s
        self._check = check
        self._known_hosts = known_hosts or Path.home() / ".ssh" / "known_hosts"
        if "::" in url:
            raise ConfigError(
                f"checkpoints.mirror_url = {self.url}: chained URLs are not used, because a cache among them would "
                "answer when files are read back; name the place itself"
            )
        self._protocol = url.split("://", 1)[0] if "://" in url else "file"
        _require(self._protocol, self.url)

    def run(self, what: str, action: Callable[[Link], _T]) -> _T:
        """Do a piece of work there.

        Raises:
            MirrorError: it failed, or nothing moved for `timeout_s`.
        """
        work = _Work(lambda moved: self._connected(moved, action), _close)
        while not work.ended.wait(_TICK_S):
            try:
                self._check()
            except BaseException:
                work.give_up()
                raise
            if time.monotonic() - work.moved_at > self._timeout_s:
                work.give_up()
                raise MirrorError(
                    f"{self.url}: {what}: nothing moved for {self._timeout_s:g} s; check that the host answers, and "
                    "the network to it. It is tried again later"
                )
        value: _T = self._result(what, work)
        return value

    def _connected(self, moved: Callable[[Any], None], action: Callable[[Link], _T]) -> _T:
        file_system, root = fsspec.core.url_to_fs(self._full_url, skip_instance_cache=True, **self._options())
        try:
            if self._protocol in _SSH:
                file_system.ftp.get_channel().settimeout(self._timeout_s)
            moved(file_system)
            if "file" in file_system.protocol and not Path(root).is_dir():  # created, it would fill the wrong disk
                raise MirrorError(
                    f"{self.url}: there is no such folder here; check that its disk is mounted, or create the folder. "
                    "It is tried again later"
                )
            return action(Link(file_system, root, self.url, lambda: moved(file_system)))
        finally:
            _close(file_system)

    def _options(self) -> dict[str, Any]:
        if self._protocol not in _SSH:
            return {}
        limits = ("timeout", "banner_timeout", "auth_timeout", "channel_timeout")
        return {**dict.fromkeys(limits, self._timeout_s), "host_key_policy": _known_hosts_only(self._known_hosts)}

    def _result(self, what: str, work: _Work) -> Any:
        error = work.error
        if error is None:
            return work.value
        if isinstance(error, DreamdError) or not isinstance(error, Exception):
            raise error
        words = str(error).replace(self._password, "***") if self._password else str(error)
        raise MirrorError(
            f"{self.url}: {what}: {type(error).__name__}: {words or 'no further words'}; check that the host is up, "
            "that this user may log in and write there, and that there is room. It is tried again later"
        ) from error


class Link:
    """A connection to the folder, inside `Remote.run`. Files are named FOLDER/NAME."""

    def __init__(self, file_system: Any, root: str, url: str, moved: Callable[[], None]) -> None:
        self._fs = file_system
        self._root = root.rstrip("/")
        self._url = url.rstrip("/")
        self.moved = moved
        """Says that something moved; ends the work here if nobody waits for it any more."""

    def url(self, *parts: str) -> str:
        """For messages."""
        return "/".join((self._url, *parts))

    def folders(self) -> list[str]:
        """Names in the root; empty when there is no root yet (`Remote` refuses that where it means another disk)."""
        return sorted(name for name, _ in self._list(self._root) if not name.startswith("."))

    def files(self, folder: str) -> dict[str, int]:
        """Name -> bytes of the files of a folder; empty when there is none."""
        return {name: int(info.get("size") or 0) for name, info in self._list(self._path(folder))}

    def size(self, folder: str, name: str) -> int | None:
        """Bytes of a file; None when it is not there."""
        try:
            info = self._fs.info(self._path(folder, name))
        except FileNotFoundError:
            return None
        finally:
            self.moved()
        return int(info.get("size") or 0)

    def make(self, folder: str) -> None:
        """Create a folder unless it is there."""
        self._fs.makedirs(self._path(folder), exist_ok=True)
        self.moved()

    def read(self, folder: str, name: str) -> Iterator[bytes]:
        """A file's content."""
        with self._fs.open(self._path(folder, name), "rb") as file:
            if hasattr(file, "MAX_REQUEST_SIZE"):
                file.MAX_REQUEST_SIZE = _READ_REQUEST_BYTES
            while chunk := file.read(CHUNK_BYTES):
                self.moved()
                yield chunk

    def write(self, folder: str, name: str, content: Iterable[bytes]) -> None:
        """Write a file that appears under its name once it is complete."""
        temporary = self._path(folder, f"{TEMPORARY_PREFIX}{os.urandom(6).hex()}-{name}")
        with self._fs.open(temporary, "wb") as file:
            if hasattr(file, "set_pipelined"):
                file.set_pipelined(True)  # SFTP: else each 32 KiB wait for their own answer
            for chunk in content:
                file.write(chunk)
                self.moved()
        self.moved()
        if "file" in self._fs.protocol:  # elsewhere it is the server's business
            fsync(Path(temporary))
        self._fs.mv(temporary, self._path(folder, name))
        if "file" in self._fs.protocol:
            fsync(Path(self._path(folder)))
        self.moved()

    def remove(self, folder: str, name: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(folder, name))
        self.moved()

    def remove_folder(self, folder: str) -> None:
        """Delete an empty folder, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rmdir(self._path(folder))
        self.moved()

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _list(self, path: str) -> list[tuple[str, dict[str, Any]]]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        self.moved()
        return [(info["name"].rstrip("/").rsplit("/", 1)[-1], info) for info in found]


class _Work:
    """A piece of work in a thread of its own."""

    def __init__(self, body: Callable[[Callable[[Any], None]], Any], close: Callable[[Any], None]) -> None:
        self.ended = threading.Event()
        self.moved_at = time.monotonic()
        self.value: Any = None
        self.error: BaseException | None = None
        self._close = close
        self._connection: Any = None
        self._given_up = False
        threading.Thread(target=self._run, args=(body,), name="mirror", daemon=True).start()

    def give_up(self) -> None:
        """Nobody waits any more: it ends as soon as it moves, or as its connection breaks."""
        self._given_up = True
        # Closing can hang as well.
        threading.Thread(target=self._close, args=(self._connection,), name="mirror-close", daemon=True).start()

    def _run(self, body: Callable[[Callable[[Any], None]], Any]) -> None:
        try:
            self.value = body(self._moved)
        except BaseException as error:  # noqa: BLE001 - whoever waits raises it
            self.error = error
        finally:
            self.ended.set()

    def _moved(self, connection: Any) -> None:
        self._connection, self.moved_at = connection, time.monotonic()
        if self._given_up:
            raise MirrorError("given up")


def without_password(url: str) -> str:
    """A URL as it may be shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = f"{parts.username}:***"
    return parts._replace(netloc=f"{user}@{parts.netloc.rsplit('@', 1)[-1]}").geturl()


def _require(protocol: str, url: str) -> None:
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        fix = 'pip install "dreamd[ssh]"' if protocol in _SSH else str(error)
        raise ConfigError(
            f"checkpoints.mirror_url = {url}: {protocol}:// needs a package that is not installed: {fix}"
        ) from None
    except ValueError:
        raise ConfigError(
            f"checkpoints.mirror_url = {url}: {protocol}:// is not known to fsspec; use file://, sftp:// or s3://"
        ) from None


def _close(file_system: Any) -> None:
    """End an SSH connection; the other file systems have none that could be left open."""
    if file_system is not None and "sftp" in file_system.protocol:
        with contextlib.suppress(Exception):
            file_system.client.close()


def _known_hosts_only(known_hosts: Path) -> Any:
    """Accept the keys in `known_hosts` and no others: checkpoints are not sent to whoever answers."""
    import paramiko

    class KnownHostsOnly(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            known = paramiko.HostKeys(str(known_hosts) if known_hosts.is_file() else None)
            if not known.check(hostname, key):
                raise MirrorError(
                    f"{hostname}: its host key ({key.get_name()}) is not in {known_hosts}; if it is the right host, "
                    "connect to it once with ssh as this user, and accept the key"
                )

    return KnownHostsOnly()

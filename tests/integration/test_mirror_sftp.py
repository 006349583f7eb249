"""The mirror over real SSH: an SFTP server on loopback that can be killed, can hang, and whose disk can rot."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import contents, flip, make_directory

from daemon.checkpoints.mirror import FsspecMirror
from daemon.domain.errors import MirrorError

paramiko = pytest.importorskip("paramiko", reason='needs paramiko: pip install "dreamd[ssh]"')

PASSWORD = "s3cret"


class _File(paramiko.SFTPHandle):
    """An open file, that counts what is written and may kill or hold the server."""

    def __init__(self, file: Any, flags: int, server: SftpServer) -> None:
        super().__init__(flags)
        self.readfile = self.writefile = file
        self._server = server
        server.files.append(file)

    def write(self, offset: int, data: bytes) -> int:
        self._server.wrote(len(data))
        return super().write(offset, data)

    def stat(self) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))


class _Files(paramiko.SFTPServerInterface):
    """A folder, served; paths are the client's, below the folder."""

    def __init__(self, _login: Any, server: SftpServer) -> None:
        self._server = server

    def _real(self, path: str) -> Path:
        return self._server.root / path.lstrip("/")

    def list_folder(self, path: str) -> Any:
        return _answer(
            lambda: [
                paramiko.SFTPAttributes.from_stat(entry.stat(), entry.name) for entry in self._real(path).iterdir()
            ]
        )

    def stat(self, path: str) -> Any:
        return _answer(lambda: paramiko.SFTPAttributes.from_stat(self._real(path).stat()))

    lstat = stat

    def open(self, path: str, flags: int, _attributes: Any) -> Any:
        mode = "rb" if not flags & (os.O_WRONLY | os.O_RDWR) else "w+b"
        return _answer(lambda: _File(self._real(path).open(mode), flags, self._server))

    def remove(self, path: str) -> int:
        return _done(lambda: self._real(path).unlink())

    def posix_rename(self, old: str, new: str) -> int:
        return _done(lambda: self._real(old).replace(self._real(new)))

    def mkdir(self, path: str, _attributes: Any) -> int:
        return _done(lambda: self._real(path).mkdir())

    def rmdir(self, path: str) -> int:
        return _done(lambda: self._real(path).rmdir())


def _answer(action: Any) -> Any:
    try:
        return action()
    except OSError as error:
        return paramiko.SFTPServer.convert_errno(error.errno)


def _done(action: Any) -> int:
    result = _answer(action)
    return result if isinstance(result, int) else paramiko.SFTP_OK


class _Login(paramiko.ServerInterface):
    def check_auth_password(self, username: str, password: str) -> int:
        right = (username, password) == ("dreamd", PASSWORD)
        return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

    def get_allowed_auths(self, _username: str) -> str:
        return "password"

    def check_channel_request(self, _kind: str, _channel: int) -> int:
        return paramiko.OPEN_SUCCEEDED


class SftpServer:
    """An SFTP server in threads of this process.

    Args:
        root: the folder that is served.
    """

    def __init__(self, root: Path, key: Any) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        self._key = key
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.port = self._listener.getsockname()[1]
        self._transports: list[Any] = []
        self.files: list[Any] = []
        """Every file that was ever open: connections that break leave them open."""
        self._left: int | None = None
        self._on_limit: Any = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def at(self, num_bytes: int, action: Any) -> None:
        """Call `action` once so many bytes were written."""
        self._left, self._on_limit = num_bytes, action

    def wrote(self, num_bytes: int) -> None:
        if self._left is not None:
            self._left -= num_bytes
            if self._left <= 0:
                self._left = None
                self._on_limit()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(10)
        self._listener.close()
        self.kill_connections()
        for transport in self._transports:
            transport.join(10)
        for file in self.files:
            file.close()

    def kill_connections(self) -> None:
        """Break every connection, as a killed server does."""
        for transport in self._transports:
            transport.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            transport = paramiko.Transport(connection)
            transport.add_server_key(self._key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Files, self)
            transport.start_server(event=threading.Event(), server=_Login())
            self._transports.append(transport)


@pytest.fixture(scope="module")
def key() -> Any:
    return paramiko.ECDSAKey.generate()


@pytest.fixture
def server(tmp_path: Path, key: Any) -> Iterator[SftpServer]:
    running = SftpServer(tmp_path / "there", key)
    yield running
    running.close()


def mirror(server: SftpServer, tmp_path: Path, key: Any, timeout_s: float = 20.0) -> FsspecMirror:
    """The mirror at `server`, which is a known host."""
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {key.get_name()} {key.get_base64()}\n")
    url = f"sftp://dreamd:{PASSWORD}@127.0.0.1:{server.port}/mirror"
    return FsspecMirror(url, timeout_s=timeout_s, known_hosts=known)


def test_round_trip_over_ssh(server: SftpServer, tmp_path: Path, key: Any) -> None:
    """Over SSH a checkpoint arrives whole, comes back equal, and is deleted when asked."""
    directory, checkpoint = make_directory(tmp_path / "here")
    there = mirror(server, tmp_path, key)
    assert there.versions() == frozenset()
    there.push(directory)
    assert contents(server.root / "mirror" / "cycle-000007") == contents(directory)
    assert there.push(directory) == 0
    there.fetch("cycle-000007", checkpoint.root_hash, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(directory)
    there.delete("cycle-000007", checkpoint.root_hash)
    assert not (server.root / "mirror" / "cycle-000007").exists()


@pytest.mark.parametrize("num_bytes", [1, 40_000, 1_500_000, 3_220_000])
def test_killed_server_is_gone_on_with(server: SftpServer, tmp_path: Path, key: Any, num_bytes: int) -> None:
    """A server that dies in the middle leaves no complete version; the next push finishes it."""
    directory, _ = make_directory(tmp_path / "here")
    there = mirror(server, tmp_path, key)
    server.at(num_bytes, server.kill_connections)
    with pytest.raises(MirrorError, match=r"127\.0\.0\.1") as caught:
        there.push(directory)
    assert PASSWORD not in str(caught.value)
    assert there.versions() == frozenset()
    there.push(directory)
    assert there.versions() == {"cycle-000007"}
    assert contents(server.root / "mirror" / "cycle-000007") == contents(directory)


def test_flipped_byte_on_the_server_is_found(server: SftpServer, tmp_path: Path, key: Any) -> None:
    """A bit that flips on the server's disk is found by a fetch, which leaves nothing here, and mended by a push."""
    directory, checkpoint = make_directory(tmp_path / "here")
    there = mirror(server, tmp_path, key)
    there.push(directory)
    flip(server.root / "mirror" / "cycle-000007" / "model.safetensors", 2_999_999)
    with pytest.raises(MirrorError, match=r"model\.safetensors: it is damaged there"):
        there.fetch("cycle-000007", checkpoint.root_hash, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert there.push(directory) == 3_000_001


def test_hanging_server_ends_by_timeout(server: SftpServer, tmp_path: Path, key: Any) -> None:
    """A server that stops answering in the middle costs the time limit; once it answers again the push goes on."""
    directory, _ = make_directory(tmp_path / "here")
    go_on = threading.Event()
    server.at(1_000_000, lambda: go_on.wait(30))
    with pytest.raises(MirrorError, match=r"moved|timed out|TimeoutError"):
        mirror(server, tmp_path, key, timeout_s=1.0).push(directory)
    go_on.set()
    there = mirror(server, tmp_path, key)
    assert there.versions() == frozenset()
    there.push(directory)
    assert contents(server.root / "mirror" / "cycle-000007").items() >= contents(directory).items()


def test_server_that_never_speaks_ends_by_timeout(tmp_path: Path, key: Any) -> None:
    """A port that accepts and says nothing costs the time limit."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"sftp://dreamd@127.0.0.1:{silent.getsockname()[1]}/mirror"
        with pytest.raises(MirrorError):
            FsspecMirror(url, timeout_s=1.0, known_hosts=tmp_path / "none").versions()


def test_nobody_listens(tmp_path: Path) -> None:
    """A host that refuses connections is a mirror error that names it."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(MirrorError, match=str(port)):
        FsspecMirror(f"sftp://dreamd@127.0.0.1:{port}/mirror", known_hosts=tmp_path / "none").versions()


def test_unknown_host_gets_nothing(server: SftpServer, tmp_path: Path, key: Any) -> None:
    """A server whose key nobody accepted is not sent a checkpoint, nor the password; the fix is in the message."""
    directory, _ = make_directory(tmp_path / "here")
    there = mirror(server, tmp_path, key)
    (tmp_path / "known_hosts").write_text("")
    with pytest.raises(MirrorError, match="connect to it once with ssh"):
        there.push(directory)
    assert list(server.root.iterdir()) == []
    other = paramiko.ECDSAKey.generate()
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {other.get_name()} {other.get_base64()}\n")
    with pytest.raises(MirrorError, match="host key"):
        there.versions()

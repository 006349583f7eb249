"""An endpoint that means harm: it can neither hang the daemon, nor fill its memory, nor have it use a proxy."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading

import pytest

from daemon.preferences import model_judge
from daemon.preferences.model_judge import EndpointJudge


@pytest.mark.parametrize("piece", [b"a", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
def test_headers_that_never_end_are_cut_off(piece: bytes) -> None:
    """Headers byte by byte, or announcements of a reply without end, cost bounded attempts and hang nothing."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asking = _judge(listener, 0.2)
        server = threading.Thread(target=_drip_for_ever, args=(listener, piece, over), daemon=True)
        server.start()
        found: list[float | None] = []
        waiting = threading.Thread(target=lambda: found.append(asking.ask("Is it?", "it")), daemon=True)
        waiting.start()
        waiting.join(15)
        over.set()
        server.join(15)
    assert found == [None]
    assert asking.outage is not None
    assert asking.outage.reason == "unreachable: TimeoutError"


def _drip_for_ever(listener: socket.socket, piece: bytes, over: threading.Event) -> None:
    """Start a reply to everybody and send `piece` every 20 ms, until told that it is over."""
    listener.settimeout(0.02)
    heard: list[socket.socket] = []
    while not over.is_set():
        try:
            connection, _ = listener.accept()
            connection.sendall(piece if len(piece) > 1 else b"HTTP/1.1 200 OK\r\nX-A: ")
            heard.append(connection)
        except TimeoutError:
            pass
        for connection in heard:
            with contextlib.suppress(OSError):
                connection.sendall(piece)
    for connection in heard:
        connection.close()


def test_a_compressed_reply_is_not_unpacked() -> None:
    """None is asked for, and one that comes anyway is no reply: a thousandth of its size could fill the memory."""
    packed = gzip.compress(b'{"choices": [{"message": {"content": "Yes"}}]}')
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = threading.Thread(target=_answer_once, args=(listener, head.encode() + packed, asked), daemon=True)
        answering.start()
        asking = _judge(listener, 20.0)
        assert asking.ask("Is it?", "it") is None
        answering.join(15)
    assert asking.outage is not None
    assert asking.outage.reason == "its reply is no chat completion"
    assert b"accept-encoding: identity\r\n" in asked[0].lower()


def _answer_once(listener: socket.socket, reply: bytes, asked: list[bytes]) -> None:
    listener.settimeout(15)
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(15)
        question = connection.recv(1 << 16)
        while not question.endswith(b"}"):
            question += connection.recv(1 << 16)
        asked.append(question)
        connection.sendall(reply)


def _judge(listener: socket.socket, timeout_s: float) -> EndpointJudge:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    return EndpointJudge(url, "m", None, timeout_s, sleep=lambda _: None)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("127.1", True),
        ("0.0.0.0", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("LOCALHOST.", True),
        ("a.localhost", True),
        ("10.0.0.1", False),
        ("::2", False),
        ("localhost.example.org", False),
    ],
)
def test_this_machine_is_known_by_every_spelling(host: str, here: bool) -> None:
    """An endpoint on this machine is never asked through a proxy, however its address is written."""
    assert model_judge._is_here(host) is here

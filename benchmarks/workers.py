"""One process per peer, so that each has its own peak memory; only one computes at a time.

A worker builds its peer once and then runs one method per command, so a parent can alternate between peers.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.measure import give_freed_memory_back

QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
"""Everything is local: no network, and no progress bars between the lines of the table."""


_REST = "rest"
"""Answered by every worker itself, not by its peer."""


class WorkerError(Exception):
    """A worker failed, died, or took too long. What it raised is on stderr."""


class Worker:
    """A process that holds one peer."""

    def __init__(self, name: str, factory: str, arguments: Sequence[Any], timeout_s: float) -> None:
        """Start it; its peer is being built when this returns.

        Args:
            name: for messages.
            factory: "module:callable", imported in the worker alone.
            arguments: of the factory; pickled.
            timeout_s: bound of building and of each command, seconds.
        """
        self._name = name
        self._timeout_s = timeout_s
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, tuple(arguments)), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until the peer is built.

        Raises:
            WorkerError: building it failed or took too long.
        """
        self._receive("start")

    def call(self, method: str, *arguments: Any) -> Any:
        """Run one method of the peer and return what it returned.

        Raises:
            WorkerError: it raised, the process died, or it took too long.
        """
        with suppress(BrokenPipeError):  # the worker is dead: receiving says how it ended
            self._connection.send((method, arguments))
        return self._receive(method)

    def rest(self) -> None:
        """Have it give back the memory that it does not use: all peers together need more than most machines have.

        Raises:
            WorkerError: the process died.
        """
        self.call(_REST)

    def close(self) -> None:
        """End the process: between two commands by itself, within one by force."""
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(timeout=5)

    def _receive(self, doing: str) -> Any:
        if not self._connection.poll(self._timeout_s):
            self._process.kill()
            raise WorkerError(f"{self._name}: {doing}: no answer within {self._timeout_s:g} s")
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join(timeout=10)
            code = self._process.exitcode
            raise WorkerError(f"{self._name}: {doing} failed, exit code {code}; see its traceback") from None


@contextmanager
def started(peers: Mapping[str, tuple[str, Sequence[Any]]], timeout_s: float) -> Iterator[dict[str, Worker]]:
    """Workers by name, each with its peer built; all ended when the block is left.

    Args:
        peers: name -> (factory, its arguments).
    """
    with ExitStack() as stack:
        workers = {}
        for name, (factory, arguments) in peers.items():
            workers[name] = Worker(name, factory, arguments, timeout_s)
            stack.callback(workers[name].close)
        for worker in workers.values():
            worker.ready()
        yield workers


def _serve(connection: Connection, factory: str, arguments: tuple[Any, ...]) -> None:
    """The worker's life: build, then one answer per command until the parent hangs up.

    An exception ends the process; multiprocessing prints its traceback.
    """
    os.environ.update(QUIET)
    module, _, attribute = factory.partition(":")
    peer = getattr(importlib.import_module(module), attribute)(*arguments)
    connection.send(None)
    while True:
        try:
            method, parameters = connection.recv()
        except EOFError:
            return
        if method == _REST:
            give_freed_memory_back()
            connection.send(None)
        else:
            connection.send(getattr(peer, method)(*parameters))

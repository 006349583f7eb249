"""Runs inside the sandbox, in two processes that share nothing but two pipes: the answer's code, and the tests.

The tests never see an object of the answer: what its functions return arrives as plain data (numbers, text, lists,
tuples, sets, dictionaries), and everything else as a `Remote` that asks the other process. So the code cannot
reach the verdict, nor return something that pretends to equal what the tests expect. What a test asks of an object
of a class that the answer defines (an attribute, a method, its length) is answered by that class, as it should be.

Standard library only: nothing else is in the sandbox.
"""

from __future__ import annotations

import ast
import builtins
import json
import operator
import os
import resource
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ANSWER, TESTS = Path("/run/answer.py"), Path("/run/tests.py")
_LONGEST_MESSAGE = 1 << 24
_PLAIN = (str, bytes, bytearray, int, float, complex, list, tuple, set, frozenset, dict)


class GoneError(BaseException):
    """The other process ended or talks nonsense. Not an `Exception`, so that no test can mistake it for one."""


class Peer:
    """One end of the conversation: asks the other process to do things, and does what it is asked."""

    def __init__(self, reading: int, writing: int, serves: Mapping[str, Callable[..., Any]]) -> None:
        self._in, self._out = os.fdopen(reading, "rb"), os.fdopen(writing, "wb")
        self._serves = serves
        self._mine: dict[int, Any] = {}
        self._theirs: dict[int, Remote] = {}

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Have the other process do `operation`; lists, sets and dictionaries change here as they change there.

        Raises:
            GoneError: it ended first.
            Exception: the built-in exception that it raised.
        """
        self._send({"do": operation, "with": [self._pack(argument) for argument in arguments]})
        while "do" in (message := self._receive()):
            self._serve(message)
        for argument, after in zip(arguments, message.get("after", ()), strict=False):
            _renew(argument, self._unpack(after))
        if "raised" in message:
            raise _exception(message["raised"], str(message.get("text", "")))
        return self._unpack(message["value"])

    def serve(self) -> None:
        """Do what is asked until the other process ends."""
        while True:
            self._serve(self._receive())

    def _serve(self, message: dict[str, Any]) -> None:
        arguments: list[Any] = []
        try:
            arguments = [self._unpack(argument) for argument in message["with"]]
            reply = {"value": self._pack(self._serves[message["do"]](*arguments))}
        except GoneError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the code raises is its result
            reply = {"raised": [kind.__name__ for kind in type(error).__mro__], "text": _text(error)}
        try:
            reply["after"] = [self._pack(argument) for argument in arguments]
        except Exception:  # noqa: BLE001 - an argument that can no longer be sent stays as it was
            reply["after"] = []
        self._send(reply)

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._out.write(json.dumps(message).encode() + b"\n")
            self._out.flush()
        except OSError:
            raise GoneError from None

    def _receive(self) -> dict[str, Any]:
        line = self._in.readline(_LONGEST_MESSAGE)
        if not line.endswith(b"\n"):
            raise GoneError
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise GoneError from None
        if not isinstance(message, dict):
            raise GoneError
        return message

    def _pack(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Remote):
            return {"yours": object.__getattribute__(value, "_key")}
        if isinstance(value, _PLAIN) and type(value).__module__ != "answer":
            return self._pack_plain(value)
        self._mine[id(value)] = value
        return {"mine": id(value)}

    def _pack_plain(self, value: Any) -> Any:
        """By the built-in type's own methods, so that a subclass cannot change what is sent."""
        packed: Any
        match value:
            case int():
                return int.__add__(value, 0)
            case float():
                return float.__add__(value, 0.0)
            case str():
                return str.__add__(value, "")
            case complex():
                packed = {"complex": [value.real, value.imag]}
            case bytes() | bytearray():
                packed = {"bytearray" if isinstance(value, bytearray) else "bytes": bytes.hex(bytes(value))}
            case dict():
                packed = {"dict": [[self._pack(key), self._pack(part)] for key, part in dict.items(value)]}
            case _:
                base = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
                packed = {base.__name__: [self._pack(part) for part in base.__iter__(value)]}
        return packed

    def _unpack(self, packed: Any) -> Any:
        if not isinstance(packed, dict):
            return packed
        ((kind, value),) = packed.items()
        if kind == "mine":
            return self._theirs.setdefault(value, Remote(self, value))
        if kind == "yours":
            return self._mine[value]
        return _BUILD[kind](self._unpack, value)


_BUILD: Mapping[str, Callable[[Callable[[Any], Any], Any], Any]] = {
    "complex": lambda unpack, parts: complex(*parts),
    "bytes": lambda unpack, digits: bytes.fromhex(digits),
    "bytearray": lambda unpack, digits: bytearray.fromhex(digits),
    "dict": lambda unpack, pairs: {unpack(key): unpack(part) for key, part in pairs},
    "list": lambda unpack, parts: list(map(unpack, parts)),
    "tuple": lambda unpack, parts: tuple(map(unpack, parts)),
    "set": lambda unpack, parts: set(map(unpack, parts)),
    "frozenset": lambda unpack, parts: frozenset(map(unpack, parts)),
}


class Remote:
    """An object of the other process."""

    __slots__ = ("_key", "_peer")

    def __init__(self, peer: Peer, key: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_key", key)

    def _ask(self, operation: str, *arguments: Any) -> Any:
        peer: Peer = object.__getattribute__(self, "_peer")
        return peer.ask(operation, self, *arguments)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The arguments one by one, so that a list among them changes here when the code changes it there.
        return self._ask("call", list(kwargs), *args, *kwargs.values())

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        self._ask("delitem", key)

    def __len__(self) -> int:
        return int(self._ask("len"))

    def __bool__(self) -> bool:
        return bool(self._ask("bool"))

    def __contains__(self, value: Any) -> bool:
        return bool(self._ask("contains", value))

    def __iter__(self) -> Iterator[Any]:
        iterator = self._ask("iter")
        while True:
            try:
                yield iterator.__next__()
            except StopIteration:
                return

    def __next__(self) -> Any:
        return self._ask("next")

    def __enter__(self) -> Any:
        return self._ask("enter")

    def __exit__(self, *_: object) -> None:
        self._ask("exit")

    def __str__(self) -> str:
        return str(self._ask("str"))

    def __repr__(self) -> str:
        return str(self._ask("repr"))

    def __float__(self) -> float:
        return float(self._ask("float"))

    def __int__(self) -> int:
        return int(self._ask("int"))

    def __hash__(self) -> int:
        return hash(self._ask("hash"))

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._ask("isinstance", value) is True

    def __eq__(self, other: object) -> bool:
        """Two objects of the answer compare themselves; with plain data only their own plain data is compared."""
        if isinstance(other, Remote):
            return bool(self._ask("eq", other))
        plain = self._ask("plain")
        return plain is not None and bool(plain == other)

    def __ne__(self, other: object) -> bool:
        return not self == other


def _between(operation: str) -> Callable[[Remote, Any], Any]:
    """`a + b` and so on between two objects of the answer; with plain data it would decide the tests' arithmetic."""

    def between(self: Remote, other: Any) -> Any:
        return self._ask(operation, other) if isinstance(other, Remote) else NotImplemented

    return between


_OPERATORS = ("add", "sub", "mul", "truediv", "matmul", "lt", "le", "gt", "ge")
for _name in _OPERATORS:
    setattr(Remote, f"__{_name}__", _between(_name))


def _call(function: Callable[..., Any], names: list[str], *values: Any) -> Any:
    num_positional = len(values) - len(names)
    return function(*values[:num_positional], **dict(zip(names, values[num_positional:], strict=True)))


def _plain(value: Any) -> Any:
    """The built-in data inside an object of a class made from a built-in one; None for any other."""
    copies: tuple[tuple[type, Callable[[Any], Any]], ...] = (
        (dict, lambda inside: dict(dict.items(inside))),
        (list, lambda inside: list(list.__iter__(inside))),
        (tuple, lambda inside: tuple(tuple.__iter__(inside))),
        (set, lambda inside: set(set.__iter__(inside))),
        (frozenset, lambda inside: frozenset(frozenset.__iter__(inside))),
        (str, lambda inside: str.__add__(inside, "")),
        (int, lambda inside: int.__add__(inside, 0)),
        (float, lambda inside: float.__add__(inside, 0.0)),
    )
    return next((copy(value) for kind, copy in copies if isinstance(value, kind)), None)


_SERVED: Mapping[str, Callable[..., Any]] = {
    **{"getattr": getattr, "setattr": setattr, "len": len, "bool": bool, "iter": iter, "next": next, "str": str},
    **{"repr": repr, "float": float, "int": int, "hash": hash, "call": _call, "plain": _plain, "eq": operator.eq},
    **{"getitem": operator.getitem, "setitem": operator.setitem, "delitem": operator.delitem},
    "contains": operator.contains,
    "isinstance": lambda kind, value: isinstance(value, kind),
    "enter": lambda value: value.__enter__(),
    "exit": lambda value: value.__exit__(None, None, None),
    **{name: getattr(operator, name) for name in _OPERATORS},
}
_LENT: Mapping[str, Callable[..., Any]] = {"call": _call, "iter": iter, "next": next}
"""What the code may do with what the tests lend it: functions and iterators."""


def _renew(mine: Any, after: Any) -> None:
    if isinstance(mine, (list, bytearray)) and type(after) is type(mine):
        mine[:] = after
    elif isinstance(mine, (dict, set)) and type(after) is type(mine):
        mine.clear()
        mine.update(after)


def _exception(names: Iterable[str], text: str) -> Exception:
    """The closest built-in exception, never one that would end the tests."""
    for name in names:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:
                continue
    return RuntimeError(text)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except BaseException:  # noqa: BLE001 - an exception whose text raises
        return ""


def run_answer(reading: int, writing: int) -> None:
    """Run the answer's code, then serve its names."""
    module = types.ModuleType("answer")
    sys.modules["answer"] = module

    def load() -> None:
        exec(compile(ANSWER.read_bytes(), "answer", "exec", dont_inherit=True), module.__dict__)

    def names(wanted: list[str]) -> dict[str, Any]:
        return {name: module.__dict__[name] for name in wanted if name in module.__dict__}

    Peer(reading, writing, {**_SERVED, "ready": bool, "load": load, "names": names}).serve()


def run_tests(reading: int, writing: int, verdict: int) -> None:
    """Run the tests against the other process; write "ready" and then the verdict, one line of JSON each."""

    def say(message: dict[str, Any]) -> None:
        os.write(verdict, json.dumps(message).encode() + b"\n")

    source = TESTS.read_text("utf-8")
    peer = Peer(reading, writing, _LENT)
    peer.ask("ready")
    say({"ready": True})
    try:
        say({"passed": (reason := _failure(source, peer)) is None, "reason": reason or ""})
    except GoneError:
        say({"passed": False, "reason": "the code ended before the tests did"})


def _failure(source: str, peer: Peer) -> str | None:
    """Why the tests do not hold; None when they do."""
    try:
        peer.ask("load")
    except Exception as error:  # noqa: BLE001 - whatever the code raises is its result
        return f"the code raises {type(error).__name__}: {_text(error)[:200]}"
    tree = ast.parse(source)
    namespace = {"__name__": "tests", **_names(tree, peer)}
    try:
        exec(compile(tree, "tests", "exec", dont_inherit=True), namespace)
    except Exception as error:  # noqa: BLE001 - whatever the tests raise is the verdict
        return _where(error, source)
    return None


def _names(tests: ast.AST, peer: Peer) -> dict[str, Any]:
    """What the code defines of the names in the tests; never a built-in one: its `abs` would decide the tests."""
    used = {node.id for node in ast.walk(tests) if isinstance(node, ast.Name)}
    wanted = {name for name in used if not hasattr(builtins, name) and not name.startswith("__")}
    found = peer.ask("names", sorted(wanted))
    # The reply is the other process's: it may hold more than was asked for, or be something else.
    return {name: found[name] for name in wanted if name in found} if type(found) is dict else {}


def _where(error: Exception, source: str) -> str:
    line, at = 0, error.__traceback__
    while at is not None:
        line = at.tb_lineno if at.tb_frame.f_code.co_filename == "tests" else line
        at = at.tb_next
    shown = source.splitlines()[line - 1].strip()[:160] if line else ""
    if isinstance(error, AssertionError):
        return f"`{shown}` does not hold"
    return f"`{shown}` raises {type(error).__name__}: {_text(error)[:200]}"


def limit(cpu_s: int, memory_mib: int) -> None:
    """Lower this process's limits for good."""
    limits = {resource.RLIMIT_CPU: cpu_s, resource.RLIMIT_AS: memory_mib << 20, resource.RLIMIT_FSIZE: 1 << 20}
    limits |= {resource.RLIMIT_NOFILE: 64, resource.RLIMIT_NPROC: 64, resource.RLIMIT_SIGPENDING: 64}
    limits |= {resource.RLIMIT_CORE: 0}
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    _role, *_numbers = sys.argv[1:]
    _cpu_s, _memory_mib, *_pipes = map(int, _numbers)
    limit(_cpu_s, _memory_mib)
    sys.set_int_max_str_digits(0)  # a factorial may be long; the time limit is there already
    if _role == "answer":
        try:
            run_answer(*_pipes)
        except GoneError:
            sys.exit(0)
    else:
        run_tests(*_pipes)

"""Runs model-written code where it can do no harm: bubblewrap, a filter of system calls, and limits.

Inside there is the interpreter and its standard library, nothing else of this machine: no network, no writable
place, no process list, no other process, no environment. The code and its tests run in a sandbox each (`examiner`
says why). Without bubblewrap, or where it does not work, there is no sandbox and code is not run at all.
"""

from __future__ import annotations

import json
import math
import os
import platform
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from daemon.preferences.seccomp import filter_program

_EXAMINER = Path(__file__).with_name("examiner.py")
_START_TIMEOUT_S = 20.0
"""For bubblewrap and the interpreter to start, on a busy machine."""
_LONGEST_VERDICT = 1 << 16
_TRIAL_CODE = """
import socket

def reads(path):
    try:
        return bool(open(path).read())
    except OSError:
        return False

def connects():
    try:
        return bool(socket.socket())
    except OSError:
        return False

def forks():
    import os
    try:
        return os.fork() >= 0
    except OSError:
        return False
"""


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How the tests went."""

    passed: bool | None
    """None: the sandbox itself did not start, so that nobody knows."""
    reason: str
    """Empty when passed."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A working sandbox. `run` may be called from any thread."""

    bwrap: str
    timeout_s: float
    memory_mib: int

    @staticmethod
    def find(timeout_s: float, memory_mib: int) -> Sandbox | None:
        """The sandbox of this machine, tried out; None when there is none (`why_none` says why).

        Args:
            timeout_s: longest run of one answer with its tests.
            memory_mib: address space of the code, and again of the tests.
        """
        found = _look(timeout_s, memory_mib)
        return found if isinstance(found, Sandbox) else None

    @staticmethod
    def why_none(timeout_s: float = 5.0, memory_mib: int = 256) -> str | None:
        """Why there is no sandbox here, and the fix; None when there is one."""
        found = _look(timeout_s, memory_mib)
        return None if isinstance(found, Sandbox) else found

    def describe(self) -> str:
        """One line for `dreamd doctor`."""
        limits = f"{self.timeout_s:g} s, {self.memory_mib} MiB, no network, no files, no processes"
        return f"code checks run in {self.bwrap}: {limits}"

    def run(self, code: str, tests: str) -> SandboxResult:
        """Run `tests` (Python with asserts) against `code`; takes at most `timeout_s` once started."""
        try:
            with ExitStack() as stack:
                return self._run(stack, code, tests)
        except OSError as error:
            return SandboxResult(None, f"the sandbox did not start: {error}")

    def _run(self, stack: ExitStack, code: str, tests: str) -> SandboxResult:
        questions, answers, verdict = (stack.enter_context(_pipe()) for _ in range(3))
        self._start(stack, "answer", code, [questions.reading, answers.writing])
        self._start(stack, "tests", tests, [answers.reading, questions.writing, verdict.writing])
        # Only the sandboxes hold these ends now: when one process ends, the other one sees it.
        for pipe in (questions, answers):
            pipe.close()
        verdict.close_writing()
        lines = _Lines(verdict.reading)
        if lines.next(_START_TIMEOUT_S) is None:
            return SandboxResult(None, "the sandbox did not start (`dreamd doctor` says why)")
        line = lines.next(self.timeout_s)
        if line is None:
            late = f"did not end within {self.timeout_s:g} s"
            return SandboxResult(False, f"the code {late if lines.timed_out else 'went beyond a limit'}")
        try:
            found = json.loads(line)
            return SandboxResult(found["passed"] is True, str(found["reason"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return SandboxResult(None, "the tests wrote something else than a verdict")

    def _start(self, stack: ExitStack, role: str, source: str, pipes: list[int]) -> None:
        content = _file(stack, source.encode("utf-8", "replace"))
        seccomp = _file(stack, filter_program(platform.machine()) or b"")
        python = _interpreter()
        command = [self.bwrap, *_namespaces(), *_files(python), "--ro-bind", str(_EXAMINER), "/run/examiner.py"]
        command += ["--ro-bind-data", str(content), f"/run/{role}.py", "--seccomp", str(seccomp), "--remount-ro", "/"]
        # -X utf8: without a locale, text would be read as ASCII.
        command += ["--", python, "-I", "-S", "-B", "-X", "utf8", "/run/examiner.py", role]
        command += [str(math.ceil(self.timeout_s) + 1), str(self.memory_mib), *map(str, pipes)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            pass_fds=(content, seccomp, *pipes),
            start_new_session=True,
        )
        stack.callback(_end, process)


def _namespaces() -> list[str]:
    flags = ["--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"]
    return [*flags, "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534"]


def _interpreter() -> str:
    """The real binary, not a virtual environment's link to it: the environment is not in the sandbox."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def _files(python: str) -> list[str]:
    """What is there: system libraries, the interpreter and its standard library, two devices."""
    binds = []
    for path in (*map(Path, ("/lib", "/lib64", "/bin", "/usr/bin")), *sorted(Path("/usr").glob("lib*"))):
        if path.is_symlink():
            binds += ["--symlink", str(path.readlink()), str(path)]
        elif path.exists():
            binds += ["--ro-bind", str(path), str(path)]
    if not python.startswith("/usr/bin/"):
        library = Path(os.__file__).resolve().parent
        shared = sorted(library.parent.glob("lib*.so*"))  # libpython, and what comes with it in some builds
        for path in (Path(python), library, *shared):
            binds += ["--ro-bind", str(path), str(path)]
        if (library / "site-packages").is_dir():
            binds += ["--tmpfs", str(library / "site-packages"), "--remount-ro", str(library / "site-packages")]
    devices = [part for name in ("/dev/null", "/dev/urandom") for part in ("--dev-bind", name, name)]
    return [*binds, *devices, "--dir", "/tmp", "--chdir", "/tmp"]


class _Pipe:
    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._open = {self.reading, self.writing}

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())

    def close_writing(self) -> None:
        self._open.discard(self.writing)
        os.close(self.writing)


@contextmanager
def _pipe() -> Iterator[_Pipe]:
    pipe = _Pipe()
    try:
        yield pipe
    finally:
        pipe.close()


class _Lines:
    """Lines from a pipe, each within a time limit."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._buffer = descriptor, b""
        self.timed_out = False

    def next(self, timeout_s: float) -> bytes | None:
        """The next line; None when time is up or no more come."""
        deadline = monotonic() + timeout_s
        poll = select.poll()  # `select` knows no descriptor from 1024 on
        poll.register(self._descriptor, select.POLLIN)
        while b"\n" not in self._buffer:
            if not poll.poll(1000 * max(0.0, deadline - monotonic())):
                self.timed_out = True
                return None
            part = os.read(self._descriptor, 4096)
            if not part or len(self._buffer) > _LONGEST_VERDICT:
                return None
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _file(stack: ExitStack, content: bytes) -> int:
    """A descriptor of a file in memory, read from its start."""
    descriptor = os.memfd_create("sandbox")
    stack.callback(os.close, descriptor)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the sandbox; with its first process the whole process namespace goes."""
    process.kill()
    process.wait()


def _look(timeout_s: float, memory_mib: int) -> Sandbox | str:
    """The sandbox, or why there is none and the fix."""
    skipped = "code checks are skipped: "
    if filter_program(platform.machine()) is None:
        return f"{skipped}no filter of system calls for {platform.machine()} (known: x86_64, aarch64)"
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return f"{skipped}bubblewrap is not installed (Debian: apt install bubblewrap)"
    sandbox = Sandbox(bwrap, timeout_s, memory_mib)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as outside:
        outside.write("secret")
        outside.flush()
        tests = f"assert not reads({outside.name!r}) and not reads('/etc/hostname')\n"
        tests += "assert not connects()\nassert not forks()\n"
        # Generous: the trial asks whether the sandbox holds, not whether this machine is fast today.
        trial = Sandbox(bwrap, max(timeout_s, 10.0), max(memory_mib, 256)).run(_TRIAL_CODE, tests)
    if trial.passed:
        return sandbox
    return f"{skipped}bubblewrap does not hold here: {_complaint(bwrap) or trial.reason}"


def _complaint(bwrap: str) -> str:
    """What bubblewrap itself says of a program that does nothing."""
    command = [bwrap, *_namespaces(), "--ro-bind", "/", "/", "--", "/bin/true"]
    try:
        done = subprocess.run(command, capture_output=True, env={}, timeout=_START_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr[:300].decode("utf-8", "replace").strip() if done.returncode else ""

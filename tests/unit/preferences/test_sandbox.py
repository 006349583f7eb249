"""Model-written code in the sandbox: right code passes, wrong code fails, and nothing gets out."""

from __future__ import annotations

import os
import platform
import resource
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daemon.preferences import seccomp
from daemon.preferences.sandbox import Sandbox

WHY_NONE = Sandbox.why_none()
pytestmark = pytest.mark.skipif(WHY_NONE is not None, reason=WHY_NONE or "")

TRIED = """
def tried(action):
    try:
        return "done: " + str(action())
    except BaseException as error:
        return "refused: " + type(error).__name__
"""
"""For the code under test: what an attempt came to."""


@pytest.fixture
def sandbox() -> Sandbox:
    found = Sandbox.find(timeout_s=10.0, memory_mib=256)
    assert found is not None
    return found


@pytest.fixture
def impatient(sandbox: Sandbox) -> Sandbox:
    return Sandbox(sandbox.bwrap, timeout_s=1.0, memory_mib=256)


GOOD = {
    "function": ("def add(a, b):\n    return a + b", "assert add(2, 3) == 5\nassert add('a', 'b') == 'ab'"),
    "data": (
        "def echo(value):\n    return value",
        "for value in (None, True, 2, 2.5, 'ü', b'\\x00', [1, (2, {3})], {'a': [1]}, {1: frozenset()}, 2j):\n"
        "    assert echo(value) == value and type(echo(value)) is type(value)",
    ),
    "in place": ("def drop(xs):\n    xs.clear()", "xs = [1]\nassert drop(xs) is None\nassert xs == []"),
    "keywords": ("def f(a, *, b=1):\n    return [a, b]", "assert f(1, b=2) == [1, 2]"),
    "callback": ("def twice(f, x):\n    return f(f(x))", "assert twice(lambda x: x * 3, 2) == 18"),
    "decorator": (
        "def plus_one(f):\n    return lambda *a: f(*a) + 1",
        "@plus_one\ndef two():\n    return 2\nassert two() == 3",
    ),
    "generator": ("def count():\n    yield 1\n    yield 2", "assert list(count()) == [1, 2]"),
    "exception": (
        "class Own(ValueError): pass\ndef f():\n    raise Own('negative')",
        "try:\n    f()\nexcept ValueError as error:\n    assert 'negative' in str(error)\nelse:\n    assert False",
    ),
    "class": (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
        "    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)",
        "s = Stack()\ns.push(1)\ns.push(2)\nassert len(s) == 2 and s.pop() == 2 and s.items == [1]\n"
        "assert isinstance(s, Stack)",
    ),
    "dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int",
        "assert P(1) == P(1) and P(1) != P(2) and repr(P(1)) == 'P(x=1)'",
    ),
    "subclass": (
        "from collections import Counter\ndef f(s):\n    return Counter(s)",
        "assert f('aab') == {'a': 2, 'b': 1}",
    ),
    "named tuple": (
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\ndef f():\n    return P(1)",
        "assert f() == (1,) and f().x == 1",
    ),
    "threads": (
        "import threading\ndef f():\n    found = []\n    t = threading.Thread(target=found.append, args=(1,))\n"
        "    t.start(); t.join()\n    return found",
        "assert f() == [1]",
    ),
    "long number": ("def f():\n    return 10 ** 9000", "assert f() == 10 ** 9000"),
    "context": (
        "class C:\n    def __enter__(self): return 1\n    def __exit__(self, *_): pass",
        "with C() as one:\n    assert one == 1",
    ),
    "printing": ("print('x' * 1000000)\ndef f():\n    return 1", "assert f() == 1"),
}


@pytest.mark.parametrize("name", GOOD)
def test_right_code_passes(sandbox: Sandbox, name: str) -> None:
    """Functions, data, callbacks, exceptions, generators and classes work across the two processes."""
    result = sandbox.run(*GOOD[name])
    assert (result.passed, result.reason) == (True, "")


@pytest.mark.parametrize(
    ("code", "tests", "part"),
    [
        ("def f():\n    return 1", "assert f() == 1\nassert f() == 2", "`assert f() == 2` does not hold"),
        ("def f(): return (", "assert f() == 1", "raises SyntaxError"),
        ("def g(): return 1", "assert f() == 1", "raises NameError"),
        ("def f(): return [][0]", "assert f() == 1", "`assert f() == 1` raises IndexError"),
        ("def f(): return [1]", "assert f() == (1,)", "does not hold"),
        ("\0", "assert True", "the code raises"),
    ],
)
def test_wrong_code_fails_and_says_where(sandbox: Sandbox, code: str, tests: str, part: str) -> None:
    """The reason quotes the test that does not hold, or what the code raises."""
    result = sandbox.run(code, tests)
    assert result.passed is False
    assert part in result.reason


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "import os\ndef f():\n    os._exit(0)",
        "def f():\n    raise SystemExit(0)",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os, signal\ndef f():\n    os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_ending_early_with_success_is_a_failure(sandbox: Sandbox, code: str) -> None:
    """A process that exits with status 0 before the tests have run has not passed them."""
    assert sandbox.run(code, "try:\n    f()\nexcept Exception:\n    pass\nassert f() == 2").passed is False


@pytest.mark.parametrize(
    "code",
    [
        "class Any:\n    def __eq__(self, other): return True\ndef f(): return Any()",
        "class Any(int):\n    def __eq__(self, other): return True\ndef f(): return Any(3)",
        "class Any:\n    def __sub__(self, other): return 0\n    def __eq__(self, other): return True\n"
        "def f(): return Any()",
        "import builtins\nbuiltins.AssertionError = KeyError\nbuiltins.abs = lambda x: 0\ndef f(): return 3",
        "def abs(x): return 0\ndef f(): return 3",
        'import os\nfor fd in range(1, 64):\n    try: os.write(fd, b\'{"passed": true, "reason": ""}\\n\')\n'
        "    except OSError: pass\ndef f(): return 3",
        "import sys\nfor frame in sys._current_frames().values():\n    while frame:\n"
        "        frame.f_globals['_SERVED'] = {}\n        frame = frame.f_back\ndef f(): return 3",
    ],
)
def test_a_pass_cannot_be_forged(sandbox: Sandbox, code: str) -> None:
    """Neither objects that equal everything, nor altered built-ins, nor writing to every descriptor helps."""
    assert sandbox.run(code, "assert f() == 2 or abs(f() - 2) < 1e-9").passed is False


PEER = """
import gc
peer = next(found for found in gc.get_objects() if type(found).__name__ == "Peer")
asked = peer._serves["names"]
"""
"""For the code under test: the conversation with the tests, in reach of what runs in its process."""


@pytest.mark.parametrize(
    ("reply", "tests"),
    [
        ("{**asked(wanted), 'abs': lambda *_: 0}", "assert abs(f() - 2) < 1e-9"),
        ("{**asked(wanted), 'all': lambda *_: True}", "assert all(f() == x for x in (1, 2))"),
        ("{**asked(wanted), '__builtins__': {'range': lambda *_: []}}", "for x in range(10):\n    assert f() == x"),
        ("{**asked(wanted), '__builtins__': {'id': id}}", "__builtins__\nassert f() == 2"),
        ("[('f', lambda: 2)]", "assert f() == 2"),
    ],
)
def test_only_the_names_asked_for_reach_the_tests(sandbox: Sandbox, reply: str, tests: str) -> None:
    """A reply that holds built-ins, or is no dictionary, forges no pass."""
    code = f"{PEER}\npeer._serves = {{**peer._serves, 'names': lambda wanted: {reply}}}\ndef f(): return 3"
    assert sandbox.run(code, tests).passed is False


def test_no_network(sandbox: Sandbox) -> None:
    """A listener of this machine is not reached, and no socket can be made at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        code = f"import socket\n{TRIED}\nhere = ('127.0.0.1', {port})\n"
        code += "def connect(): return tried(lambda: socket.create_connection(here))\n"
        code += "def make(): return tried(socket.socket), tried(socket.socketpair)"
        tests = "assert connect() == 'refused: PermissionError', connect()\n"
        tests += "assert make() == ('refused: PermissionError',) * 2"
        assert sandbox.run(code, tests).reason == ""
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_fork_bomb_makes_no_process(sandbox: Sandbox) -> None:
    """No way of starting a process works, for root neither."""
    code = (
        f"import os, subprocess, multiprocessing\n{TRIED}\n"
        + """
def bomb():
    return {tried(os.fork) for _ in range(1000)}
def others():
    spawn = lambda: os.posix_spawn('/bin/true', ['true'], {})
    return [tried(spawn), tried(lambda: subprocess.run(['/bin/true'])), tried(lambda: os.system('true') and 1/0)]
"""
    )
    tests = "assert bomb() == {'refused: PermissionError'}\n"
    tests += "assert all(found.startswith('refused') for found in others()), others()"
    assert sandbox.run(code, tests).reason == ""


@pytest.fixture
def home_secret() -> Iterator[Path]:
    path = Path.home() / f".sandbox-test-{uuid.uuid4().hex}"
    path.write_text("secret")
    yield path
    path.unlink()


def test_secrets_cannot_be_read(sandbox: Sandbox, tmp_path: Path, home_secret: Path) -> None:
    """Files in /tmp, in the home directory and in /etc are not there, and neither are other processes."""
    in_tmp = tmp_path / "secret"
    in_tmp.write_text("secret")
    paths = [str(in_tmp), str(home_secret), "/etc/passwd", "/proc/1/environ", "/proc/self/root", str(Path.cwd())]
    code = f"import os\n{TRIED}\ndef read(path): return tried(lambda: open(path).read())"
    code += "\ndef top(): return os.listdir('/'), os.listdir('/tmp')\ndef is_there(path): return os.path.exists(path)"
    tests = f"for path in {paths}:\n    assert read(path) == 'refused: FileNotFoundError', path + read(path)\n"
    tests += "    assert not is_there(path)\nassert not {'etc', 'home', 'proc', 'sys', 'var'} & set(top()[0])\n"
    tests += "assert top()[1] == []"
    assert sandbox.run(code, tests).reason == ""


@pytest.mark.parametrize(
    "loop",
    [
        "while True: pass",
        "import time; time.sleep(1e6)",
        "while True:\n        try: 1 / 0\n        except BaseException: pass",
        "while True: print('x' * 65536)",
        "import os\n    while True: os.write(2, b'x' * 65536)",
    ],
)
def test_what_does_not_end_is_ended(impatient: Sandbox, loop: str) -> None:
    """Endless loops, sleeps and endless output fail at the time limit, and the caller goes on."""
    result = impatient.run(f"def f():\n    {loop}", "f()\nassert True")
    assert (result.passed, result.reason) == (False, "the code did not end within 1 s")


def test_endless_tests_are_ended_too(impatient: Sandbox) -> None:
    """The tests run under the same limits as the code."""
    assert impatient.run("x = 1", "while x: pass\nassert x").passed is False


def test_memory_is_limited(sandbox: Sandbox) -> None:
    """Taking more memory than allowed raises inside; so does handing the tests more than they hold."""
    code = f"{TRIED}\ndef take(): return tried(lambda: len(bytearray(1 << 30)))\ndef give(): return 'x' * (1 << 25)"
    assert sandbox.run(code, "assert take() == 'refused: MemoryError', take()").reason == ""
    assert sandbox.run(code, "assert len(give()) == 1 << 25").passed is False


def test_only_what_the_interpreter_needs_is_there(sandbox: Sandbox) -> None:
    """Of /usr: programs and libraries, nothing that this machine's owner installed or keeps there."""
    code = "import os\ndef there(): return [name for name in os.listdir('/usr') if not name.startswith('lib')]"
    code += "\ndef local(): return [name for name in ('/usr/src', '/usr/share', '/usr/sbin') if os.path.exists(name)]"
    tests = "assert set(there()) <= {'bin', 'local'}, there()\nassert not local()"
    assert sandbox.run(code, tests).reason == ""


def test_timers_cannot_fill_the_kernel(sandbox: Sandbox) -> None:
    """No queue of signals can be grown from inside: timers are refused, and few signals may wait."""
    code = "import resource\ndef waiting(): return resource.getrlimit(resource.RLIMIT_SIGPENDING)"
    assert sandbox.run(code, "assert waiting() == (64, 64), waiting()").reason == ""
    assert {name["timer_create"] for _, _, name in seccomp.MACHINES.values()} == {222, 107}


@pytest.mark.parametrize("verdict", ["garbage", "[" * 30_000, "[]", "{}", "null"])
def test_tests_that_write_nonsense_decide_nothing(sandbox: Sandbox, verdict: str) -> None:
    """What is not a verdict breaks nothing outside and is neither right nor wrong."""
    tests = f"import os, sys\nos.write(int(sys.argv[-1]), {verdict!r}.encode() + b'\\n')\nassert f() == 1"
    assert sandbox.run("def f(): return 1", tests).passed is None


def test_many_open_files_are_no_obstacle(sandbox: Sandbox) -> None:
    """With more than 1024 descriptors in use the sandbox runs as ever."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 1300:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 1300), before[1]))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert sandbox.run("def f(): return 1", "assert f() == 1").passed is True
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_nothing_is_written(sandbox: Sandbox, tmp_path: Path) -> None:
    """No place is writable, inside or outside."""
    outside = tmp_path / "file"
    outside.write_text("as it was")
    places = [str(outside), "/file", "/tmp/file", "/dev/file", "/dev/shm/file", "/run/file", "/usr/file", "file"]
    code = f"import os\n{TRIED}\ndef write(path): return tried(lambda: open(path, 'w').write('x'))"
    code += "\ndef change(): return tried(lambda: os.chmod('/run/answer.py', 0o777))"
    tests = f"for path in {places}:\n    assert write(path).startswith('refused'), path\n"
    tests += "assert change().startswith('refused')"
    assert sandbox.run(code, tests).reason == ""
    assert outside.read_text() == "as it was"


def _processes(mark: str) -> list[Path]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"/run/examiner.py" in arguments and mark.encode() in arguments:
            found.append(path)
    return found


def _wait_for(mark: str, present: bool) -> bool:
    """Whether the marked processes come (or go) within five seconds: the kernel starts and ends them in its time."""
    for _ in range(100):
        if bool(_processes(mark)) is present:
            return True
        time.sleep(0.05)
    return False


def test_nothing_is_left_behind(sandbox: Sandbox) -> None:
    """After the time limit no process of either sandbox remains, whatever signals the code ignores."""
    marked = Sandbox(sandbox.bwrap, timeout_s=2.0, memory_mib=259)
    code = "import signal\nfor s in set(range(1, 32)) - {9, 19}:\n    signal.signal(s, signal.SIG_IGN)\n"
    code += "def f():\n    while True: pass"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(marked.run, code, "assert f()")
        assert _wait_for("259", present=True)
        assert running.result().reason == "the code did not end within 2 s"
    assert _wait_for("259", present=False)


def test_the_environment_is_not_there(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of this process is visible inside."""
    monkeypatch.setenv("DREAMD_JUDGE_KEY", "secret")
    code = "import os\ndef names(): return sorted(os.environ)"
    assert sandbox.run(code, "assert set(names()) <= {'PWD', 'LC_CTYPE'}, names()").reason == ""


@pytest.mark.parametrize("target", ["os.getppid()", "1", "-1", "0"])
def test_the_parent_survives(sandbox: Sandbox, target: str) -> None:
    """Killing everything in sight ends the code at most: this process and its group get no signal."""
    code = f"import os, signal\ndef f():\n    os.kill({target}, signal.SIGTERM)\n    os.kill({target}, signal.SIGKILL)"
    assert sandbox.run(code, "f()\nassert False").passed is False


@pytest.mark.skipif(platform.machine() not in seccomp.MACHINES, reason="no table of calls for this machine")
def test_dangerous_calls_are_refused(sandbox: Sandbox) -> None:
    """Every call in the table answers "not permitted" from inside, whatever its arguments."""
    numbers = sorted({**seccomp._SAME_EVERYWHERE, **seccomp.MACHINES[platform.machine()][2]}.values())
    code = "import ctypes\nlibrary = ctypes.CDLL(None, use_errno=True)\ndef call(number):\n"
    code += "    return library.syscall(number, 0, 0, 0, 0, 0), ctypes.get_errno()"
    tests = f"for number in {numbers}:\n    assert call(number) == (-1, 1), number\n"
    tests += "assert call(435) == (-1, 38) and call(999) == (-1, 38)"
    assert sandbox.run(code, tests).reason == ""


def test_a_sandbox_that_does_not_start_decides_nothing(sandbox: Sandbox) -> None:
    """When bubblewrap fails the answer is neither right nor wrong."""
    for program in ("/bin/false", "/nonexistent/bwrap"):
        result = Sandbox(program, sandbox.timeout_s, sandbox.memory_mib).run("x = 1", "assert x == 1")
        assert result.passed is None
        assert "did not start" in result.reason

"""Structured logs: one JSON object a line, under 8 KB, and never in the way of training.

A line that cannot be written (disk full, a reader that stopped reading, an object that cannot be shown) is
counted, and the next line that gets through says how many are missing.
"""

from __future__ import annotations

import json
import logging
import math
import os
import select
import threading
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from daemon.domain.errors import DiskError, PermissionDeniedError

MAX_LINE_BYTES: Final = 8000
_STRING_LIMITS: Final = (2000, 500, 100)
"""Longest string value, characters; the next one is tried while a line is too long."""
_CORE_KEYS: Final = ("timestamp", "level", "event", "run", "cycle", "stage")
_MAX_ITEMS: Final = 200
_WRITE_TIMEOUT_MS: Final = 100
_FILE_NAME: Final = "dreamd.log"

Event = MutableMapping[str, Any]


class Descriptor:
    """Writes lines to a file descriptor without ever blocking for long.

    A pipe whose reader stopped would block a plain `write` for ever. So it writes only what fits now: `poll`
    promises room for PIPE_BUF (at least 512, on Linux 4096) bytes. A line that got in by half is finished
    before the next one starts, so that every line stays whole.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def __call__(self, line: str) -> None:
        """Raises OSError when nothing of `line` was written."""
        self._flush()
        data = self._rest = line.encode("utf-8", "backslashreplace") + b"\n"
        try:
            self._flush()
        except OSError:
            if len(self._rest) == len(data):
                self._rest = b""
                raise

    def _flush(self) -> None:
        while self._rest:
            if not self._poll.poll(_WRITE_TIMEOUT_MS):
                raise BlockingIOError("nobody reads the log")
            self._rest = self._rest[os.write(self._fd, self._rest[: select.PIPE_BUF]) :]


class Output:
    """One place lines go to, its form, and how many it lost."""

    def __init__(
        self, write: Callable[[str], None], render: Callable[[Event], str | None], *, min_level: int = 0
    ) -> None:
        self._write = write
        self._render = render
        self._min_level = min_level
        self.dropped_lines = 0

    def emit(self, event: Event) -> None:
        """Write one line, or count it as dropped; never raises."""
        try:
            if _level(event) < self._min_level:
                return
            line = self._render({**event, "dropped_lines": self.dropped_lines} if self.dropped_lines else event)
            if line is None:
                return
            self._write(line)
        except Exception:  # noqa: BLE001 - a log line is never worth a training run; the count tells
            self.dropped_lines += 1
        else:
            self.dropped_lines = 0


def json_output(write: Callable[[str], None]) -> Output:
    """JSON lines through `write`, which gets each without its line end."""
    return Output(write, render_json)


def file_output(state_dir: Path) -> Output:
    """JSON lines appended to `dreamd.log` in the state directory.

    Raises:
        PermissionDeniedError: it cannot be opened by this user.
        DiskError: it cannot be opened for another reason.
    """
    path = log_path(state_dir)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except PermissionError:
        raise PermissionDeniedError(f"{path}: not writable by this user; check its owner and mode") from None
    except OSError as error:
        raise DiskError(f"{path}: cannot be opened: {error.strerror}; or set logging.file = false") from None
    return json_output(Descriptor(fd))


def console_output(write: Callable[[str], None], *, hidden: frozenset[str] = frozenset(), color: bool = True) -> Output:
    """Lines for people through `write`, without the events in `hidden` (what the console shows in another form)."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=color, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )

    def render(event: Event) -> str | None:
        if event.get("event") in hidden:
            return None
        return str(renderer(None, "", dict(event)))

    return Output(write, render)


def log_path(state_dir: Path) -> Path:
    return state_dir / _FILE_NAME


def configure_logging(*, level: str, run: str, outputs: Sequence[Output]) -> None:
    """Send every structlog event from `level` on, and other libraries' records from WARNING on, to `outputs`."""
    lock = threading.RLock()  # showing a value may itself log

    def emit(_logger: Any, _name: str, event: Event) -> Mapping[str, Any]:
        event.setdefault("run", run)
        ordered = {key: event[key] for key in _CORE_KEYS if key in event} | dict(event)
        with lock:
            for output in outputs:
                output.emit(ordered)
        raise structlog.DropEvent  # every output has it already

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            emit,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Forward)]:
        root.removeHandler(handler)
    root.addHandler(_Forward(level=logging.WARNING))
    logging.captureWarnings(True)


class _Forward(logging.Handler):
    """Libraries' stdlib records, into the same pipeline."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            logger = structlog.get_logger()
            logger.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None)
        except Exception:  # noqa: BLE001 - a library's malformed log call is the library's bug, not a reason to stop
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        structlog.get_logger().warning("malformed_log_record", logger=record.name, message=str(record.msg))


def render_json(event: Mapping[str, Any]) -> str:
    """`event` as one line of JSON of at most `MAX_LINE_BYTES`; long values are cut, with a marker that says so."""
    line = ""
    for limit in _STRING_LIMITS:
        line = json.dumps(_bounded(event, limit), ensure_ascii=False)
        if len(line.encode("utf-8", "backslashreplace")) <= MAX_LINE_BYTES:
            return line
    core = {key: _bounded(event[key], _STRING_LIMITS[-1]) for key in _CORE_KEYS if key in event}
    return json.dumps({**core, "cut": f"{len(event) - len(core)} values did not fit"}, ensure_ascii=False)


def _bounded(value: Any, limit: int) -> Any:
    """`value` as JSON can hold it: strings cut to `limit`, no NaN, nothing but plain types."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {_cut(str(key), limit): _bounded(item, limit) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [_bounded(item, limit) for item in list(value)[:_MAX_ITEMS]]
        return [*items, f"[{len(value) - _MAX_ITEMS} items cut]"] if len(value) > _MAX_ITEMS else items
    return _cut(str(value), limit)


def _cut(text: str, limit: int) -> str:
    """Head and tail of `text`: a traceback says most in its last line."""
    if len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head]} [{len(text) - limit} characters cut] {text[len(text) - (limit - head) :]}"


def _level(event: Mapping[str, Any]) -> int:
    level = logging.getLevelName(str(event.get("level", "info")).upper())
    return level if isinstance(level, int) else logging.INFO

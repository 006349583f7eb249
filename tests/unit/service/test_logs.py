"""Log lines: always valid JSON, always short, never an exception."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.errors import DiskError, PermissionDeniedError
from daemon.service import logs


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """Leave the process's logging as it was."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(False)
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler).__module__ == logs.__name__:
            root.removeHandler(handler)


class Lines:
    """A stream that can fail."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.broken = False

    def __call__(self, line: str) -> None:
        if self.broken:
            raise OSError(28, "No space left on device")
        self.written.append(line)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.written]


def configured(level: str = "info") -> Lines:
    lines = Lines()
    logs.configure_logging(level=level, run="nightly", outputs=[logs.json_output(lines)])
    return lines


def test_a_line_carries_time_level_event_run_and_the_bound_context() -> None:
    """Timestamp in UTC ISO 8601, level, event, the run, and whatever is bound (cycle, stage)."""
    lines = configured()
    with structlog.contextvars.bound_contextvars(cycle=7, stage="sweep"):
        structlog.get_logger().info("stage_finished", seconds=1.5)
    (event,) = lines.events
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "stage_finished",
        "level": "info",
        "run": "nightly",
        "cycle": 7,
        "stage": "sweep",
        "seconds": 1.5,
    }


def test_lines_below_the_level_are_not_written() -> None:
    """At warning, info is left out."""
    lines = configured("warning")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [event["event"] for event in lines.events] == ["loud"]


def test_library_records_and_python_warnings_go_the_same_way() -> None:
    """A stdlib logger's warning, with its arguments, and a Python warning become JSON lines; its info does not."""
    lines = configured()
    library = logging.getLogger("some.library")
    library.info("chatter")
    library.warning("%s is slow", "disk")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old API", stacklevel=1)
    first, second = lines.events
    assert (first["event"], first["level"], first["logger"]) == ("disk is slow", "warning", "some.library")
    assert "old API" in second["event"]


def test_a_malformed_library_record_is_said_not_raised() -> None:
    """A library that logs with the wrong number of arguments does no harm."""
    lines = configured()
    record = logging.LogRecord("some.library", logging.WARNING, __file__, 1, "%s and %s", ("one",), None)
    (handler,) = [handler for handler in logging.getLogger().handlers if type(handler).__module__ == logs.__name__]
    handler.handle(record)
    assert lines.events[0]["event"] == "malformed_log_record"


def test_exceptions_are_logged_with_their_traceback() -> None:
    """exc_info becomes text that ends with the exception."""
    lines = configured()
    try:
        raise ValueError("the reason")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert lines.events[0]["exception"].endswith("ValueError: the reason")


def test_a_long_value_is_cut_with_a_marker_and_keeps_its_end() -> None:
    """A 100 KB string leaves a line under 8 KB that says how much is missing and still shows head and tail."""
    lines = configured()
    structlog.get_logger().info("long", text="start" + "x" * 100_000 + "end")
    (line,) = lines.written
    assert len(line.encode()) <= logs.MAX_LINE_BYTES
    text = json.loads(line)["text"]
    assert text.startswith("start")
    assert text.endswith("end")
    assert "characters cut]" in text


def test_too_many_values_leave_the_core_and_say_so() -> None:
    """When no cutting helps, timestamp, level, event and context are kept and the rest is counted."""
    lines = configured()
    structlog.get_logger().info("wide", **{f"key_{number}": "y" * 90 for number in range(200)})
    (line,) = lines.written
    assert len(line.encode()) <= logs.MAX_LINE_BYTES
    event = json.loads(line)
    assert event["event"] == "wide"
    assert event["cut"] == "200 values did not fit"


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)


@given(fields=st.dictionaries(st.text(max_size=20), JSONISH, max_size=8))
def test_any_fields_make_one_short_line_of_strict_json(fields: dict[str, Any]) -> None:
    """NaN, bytes, odd keys, lone surrogates, line breaks: always one line, under 8 KB, that a strict parser reads."""
    line = logs.render_json({"event": "any", **fields})
    encoded = line.encode("utf-8", "backslashreplace")
    assert len(encoded) <= 8192
    assert "\n" not in line

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads(encoded, parse_constant=refuse)


def test_a_failing_stream_is_counted_not_raised() -> None:
    """Lines lost to a full disk are counted, and the next line that gets through says how many."""
    lines = configured()
    logger = structlog.get_logger()
    lines.broken = True
    for _ in range(3):
        logger.info("lost")
    lines.broken = False
    logger.info("back")
    logger.info("normal")
    assert [event.get("dropped_lines") for event in lines.events] == [3, None]


def test_a_value_that_cannot_be_shown_is_counted_not_raised() -> None:
    """An object whose str() fails loses its line only."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    lines = configured()
    structlog.get_logger().info("odd", value=Broken())
    structlog.get_logger().info("next")
    assert [(event["event"], event["dropped_lines"]) for event in lines.events] == [("next", 1)]


def test_one_broken_output_does_not_take_the_other_down() -> None:
    """With stdout broken, the file still gets every line."""
    broken, good = Lines(), Lines()
    broken.broken = True
    logs.configure_logging(level="info", run="r", outputs=[logs.json_output(broken), logs.json_output(good)])
    structlog.get_logger().info("kept")
    assert [event["event"] for event in good.events] == ["kept"]
    assert "dropped_lines" not in good.events[0]


def test_a_blocked_pipe_does_not_block_and_lines_stay_whole() -> None:
    """A reader that stops loses lines but never half of one, and reads the count when it comes back."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    logs.configure_logging(level="info", run="r", outputs=[logs.json_output(logs.Descriptor(writer))])
    logger = structlog.get_logger()
    for number in range(20):
        logger.info("line", number=number, padding="z" * 6000, more="z" * 6000, most="z" * 6000)
    received = _drain(reader)
    logger.info("after")
    received += _drain(reader)
    os.close(writer)
    os.close(reader)
    events = [json.loads(line) for line in received.decode().splitlines()]
    numbers = [event["number"] for event in events[:-1]]
    assert numbers == list(range(len(numbers)))
    assert 0 < len(numbers) < 20
    assert events[-1]["event"] == "after"
    assert events[-1]["dropped_lines"] == 20 - len(numbers)


def _drain(reader: int) -> bytes:
    received = b""
    try:
        while chunk := os.read(reader, 65536):
            received += chunk
    except BlockingIOError:
        pass
    return received


def test_a_closed_pipe_is_counted_not_raised() -> None:
    """The reader is gone: the daemon goes on."""
    reader, writer = os.pipe()
    os.close(reader)
    output = logs.json_output(logs.Descriptor(writer))
    logs.configure_logging(level="info", run="r", outputs=[output])
    structlog.get_logger().info("nobody")
    os.close(writer)
    assert output.dropped_lines == 1


def test_the_log_file_is_appended_to(tmp_path: Path) -> None:
    """Two starts of the daemon leave both their lines in dreamd.log."""
    for start in ("first", "second"):
        logs.configure_logging(level="info", run="r", outputs=[logs.file_output(tmp_path)])
        structlog.get_logger().info(start)
    written = logs.log_path(tmp_path).read_text().splitlines()
    assert [json.loads(line)["event"] for line in written] == ["first", "second"]


def test_a_log_file_that_cannot_be_opened_is_an_error_with_a_fix(tmp_path: Path) -> None:
    """A directory in its place is refused at start, with what to set."""
    logs.log_path(tmp_path).mkdir()
    with pytest.raises((DiskError, PermissionDeniedError), match=r"logging\.file"):
        logs.file_output(tmp_path)


def test_the_console_hides_what_is_shown_otherwise() -> None:
    """Hidden events are left out; the others are shown, exceptions without a library's warning."""
    lines = Lines()
    output = logs.console_output(lines, hidden=frozenset({"stage_started"}), color=False)
    logs.configure_logging(level="info", run="r", outputs=[output])
    logger = structlog.get_logger()
    logger.info("stage_started")
    logger.warning("disk is slow")
    try:
        raise ValueError("the reason")
    except ValueError:
        logger.exception("failed")
    assert len(lines.written) == 2
    assert "disk is slow" in lines.written[0]
    assert "ValueError: the reason" in lines.written[1]

"""Reading a source in parts: what is used, what is refused, and where the next cycle goes on."""

from __future__ import annotations

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.domain.errors import ConfigError, UsageError
from daemon.domain.records import ImportedSource, Refusal, Scenario, SourceRead
from daemon.domain.states import ImportKind, ImportState, RefusalReason
from daemon.scenarios.imports import ImportedReader, Limits, ReadResult, scan
from daemon.scenarios.imports.reader import MAX_LINES
from daemon.scenarios.imports.stream import Line, read_lines

TOKENS = ("<repo_name>", "<|im_start|>", "</s>", "[INST]")
READER = ImportedReader(TOKENS)
ADDRESS = "jane" + "@" + "example.com"


def corrected(question: str, answer: str = "Canberra.") -> str:
    turns = [("user", question), ("assistant", "Sydney."), ("user", "No, that is wrong."), ("assistant", answer)]
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})


def pair(number: int) -> str:
    return json.dumps({"prompt": f"Question {number}?", "response": f"Answer {number}."})


def source_of(path: Path, kind: ImportKind = ImportKind.REPLAY) -> ImportedSource:
    return ImportedSource("mine", kind, str(path), ImportState.APPROVED)


def after(source: ImportedSource, read: SourceRead | None) -> ImportedSource:
    """The source as it stands once the read counts."""
    if read is None:
        return source
    assert read.from_position == source.position
    return replace(source, position=read.position, line=read.line, tail_digest=read.tail_digest)


def accept_all(_: Scenario) -> None:
    return None


def unseen() -> Callable[[Scenario], Refusal | None]:
    """Refuses a content hash the second time."""
    seen: set[str] = set()

    def fresh(scenario: Scenario) -> Refusal | None:
        if scenario.content_hash in seen:
            return Refusal(scenario.source, scenario.pack, RefusalReason.REPEATED, "seen before")
        seen.add(scenario.content_hash)
        return None

    return fresh


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def test_every_line_has_one_fate(file: Path) -> None:
    """Used, refused with reason and place, or counted as nothing to expect; no text of a refused line is kept."""
    lines = [
        corrected("Capital of Australia?"),
        "not json",
        corrected("Capital of Australia?"),
        corrected("Mail?", f"Write to {ADDRESS}"),
        "",
        json.dumps({"messages": [{"role": "user", "content": "Hi"}]}),
        corrected("Long?", "word " * 300),
        corrected("<|im_start|>"),
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = READER.read(source_of(file, ImportKind.CONVERSATION), 10, unseen())
    assert [scenario.provenance for scenario in result.scenarios] == ["log.jsonl:1"]
    assert [(refusal.provenance, refusal.reason.value) for refusal in result.refusals] == [
        ("log.jsonl:2", "malformed"),
        ("log.jsonl:3", "repeated"),
        ("log.jsonl:4", "secret"),
        ("log.jsonl:7", "too_long"),
        ("log.jsonl:8", "senseless"),
    ]
    assert [refusal.text for refusal in result.refusals] == ["", "Capital of Australia?", "", "", ""]
    assert ADDRESS not in repr(result)
    assert result.read is not None
    assert (result.read.line, result.read.position) == (8, file.stat().st_size)
    assert result.read.counts == Counter(
        used=1, malformed=1, repeated=1, secret=1, blank=1, no_correction=1, too_long=1, senseless=1
    )
    assert result.exhausted


def test_reading_stops_after_the_last_scenario_wanted(file: Path) -> None:
    """The rest of the file stays for later cycles, and nothing is read when nothing is wanted."""
    file.write_text("".join(f"{pair(number)}\n" for number in range(5)), encoding="utf-8")
    source = source_of(file)
    first = READER.read(source, 2, accept_all)
    assert [scenario.target for scenario in first.scenarios] == ["Answer 0.", "Answer 1."]
    assert not first.exhausted
    second = READER.read(after(source, first.read), 9, accept_all)
    assert [scenario.target for scenario in second.scenarios] == ["Answer 2.", "Answer 3.", "Answer 4."]
    assert second.exhausted
    assert READER.read(source, 0, accept_all) == ReadResult()


@pytest.mark.parametrize("rest", ["", pair(9)[:9]], ids=["nothing", "a half-written line"])
def test_a_file_that_ends_with_the_last_scenario_wanted_is_exhausted(rest: str, file: Path) -> None:
    """It is said in the call that used the last complete line, not in a further one; one line more, and it is not."""
    file.write_text(f"{pair(0)}\n{pair(1)}\n{rest}", encoding="utf-8")
    used_up = READER.read(source_of(file), 2, accept_all)
    assert (len(used_up.scenarios), used_up.exhausted) == (2, True)
    assert used_up.read is not None
    assert (used_up.read.line, used_up.read.position) == (2, len(f"{pair(0)}\n{pair(1)}\n"))
    assert not READER.read(source_of(file), 1, accept_all).exhausted


def test_what_was_read_before_an_error_counts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails at the third line gives the first two; the call that goes on from there says the error."""
    file.write_text("".join(f"{pair(number)}\n" for number in range(3)), encoding="utf-8")

    def failing(opened: BinaryIO, position: int, line: int) -> Iterator[Line]:
        for found in read_lines(opened, position, line):
            if found.number == 3:
                raise OSError(errno.EIO, "Input/output error")
            yield found

    monkeypatch.setattr("daemon.scenarios.imports.reader.read_lines", failing)
    source = source_of(file)
    for want in (2, 9):
        result = READER.read(source, want, accept_all)
        assert [scenario.target for scenario in result.scenarios] == ["Answer 0.", "Answer 1."]
        assert (result.exhausted, result.problem) == (False, None)
        assert result.read is not None
        assert result.read.counts == {"used": 2}
    after_error = READER.read(after(source, result.read), 9, accept_all)
    assert after_error.problem is not None
    assert "cannot be read (Input/output error)" in after_error.problem


def test_a_read_that_does_not_count_is_repeated(file: Path) -> None:
    """The reader holds no state: from the same place the same is read."""
    file.write_text("".join(f"{pair(number)}\n" for number in range(5)), encoding="utf-8")
    assert READER.read(source_of(file), 3, accept_all) == READER.read(source_of(file), 3, accept_all)


def test_growing_file_goes_on_without_the_half_written_line(file: Path) -> None:
    """A line counts once its newline is there."""
    file.write_text(f"{pair(0)}\n{pair(1)[:9]}", encoding="utf-8")
    source = source_of(file)
    result = READER.read(source, 9, accept_all)
    assert len(result.scenarios) == 1
    assert result.exhausted
    source = after(source, result.read)
    assert READER.read(source, 9, accept_all).read is None
    with file.open("a", encoding="utf-8") as growing:
        growing.write(pair(1)[9:] + "\n")
    assert [scenario.target for scenario in READER.read(source, 9, accept_all).scenarios] == ["Answer 1."]


def test_rewritten_or_missing_file_is_a_problem_not_a_crash(file: Path, tmp_path: Path) -> None:
    """The daemon is told in words, and nothing is read."""
    file.write_text(f"{pair(0)}\n{pair(1)}\n", encoding="utf-8")
    source = after(source_of(file), READER.read(source_of(file), 1, accept_all).read)
    file.write_text(f"{pair(7)}\n{pair(1)}\n", encoding="utf-8")
    result = READER.read(source, 1, accept_all)
    assert (result.scenarios, result.read) == ((), None)
    assert result.problem is not None
    assert "was rewritten" in result.problem
    for path in (tmp_path / "gone.jsonl", tmp_path):
        problem = READER.read(source_of(path), 1, accept_all).problem
        assert problem is not None
        assert str(path) in problem


def test_one_call_reads_a_bounded_number_of_lines(file: Path) -> None:
    """A file without anything usable does not hold up a cycle; the next call goes on."""
    file.write_text("x\n" * MAX_LINES + f"{pair(1)}\n", encoding="utf-8")
    source = source_of(file)
    first = READER.read(source, 1, accept_all)
    assert first.read is not None
    assert (first.read.line, first.exhausted) == (MAX_LINES, False)
    assert len(READER.read(after(source, first.read), 1, accept_all).scenarios) == 1


def test_imported_text_is_never_a_template(file: Path) -> None:
    """Braces in prompt, correction and answer come through as they are."""
    file.write_text(corrected("Explain {slot} and {{x}}", "It is {0} or {{y}}.") + "\n", encoding="utf-8")
    (scenario,) = READER.read(source_of(file, ImportKind.CONVERSATION), 1, accept_all).scenarios
    assert scenario.messages[0].content == "Explain {slot} and {{x}}"
    assert scenario.target == "It is {0} or {{y}}."
    assert scenario.guided_messages()[-1].content.endswith('Take this into account: "No, that is wrong."')


def test_turns_become_what_chat_templates_take(file: Path) -> None:
    """Turns of one role in a row become one; an answer before the first question is dropped."""
    turns = [("gpt", "Welcome"), ("human", "a"), ("human", "b"), ("gpt", "c"), ("gpt", "d")]
    record = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    file.write_text(json.dumps(record) + "\n", encoding="utf-8")
    (scenario,) = READER.read(source_of(file), 1, accept_all).scenarios
    assert [message.content for message in scenario.messages] == ["a\n\nb"]
    assert scenario.target == "c\n\nd"


def test_cutting_cannot_make_a_role_token(file: Path) -> None:
    """After the apology is gone the answer begins with "### Assistant:", which is stripped then."""
    file.write_text(corrected("Capital?", "Sorry! ### Assistant: Canberra.") + "\n", encoding="utf-8")
    (scenario,) = READER.read(source_of(file, ImportKind.CONVERSATION), 1, accept_all).scenarios
    assert scenario.target == "Canberra."


def test_scan_counts_and_names_problems(file: Path) -> None:
    """The whole file once: counts, the first problems with file and line, repetitions, an unfinished last line."""
    file.write_text(f"{pair(0)}\n{pair(0)}\nnonsense\n{pair(1)}", encoding="utf-8")
    report = scan(file, ImportKind.REPLAY)
    assert (report.num_lines, report.num_usable, report.num_refused) == (3, 1, 2)
    assert report.problems[0] == "log.jsonl:2: repeated: the same prompt as in line 1"
    assert report.problems[1].startswith("log.jsonl:3: malformed: not JSON")
    assert report.unfinished


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"messages": []}]),
        json.dumps([{"id": 1, "conversations": []}], indent=2),
        json.dumps([[{"role": "user", "content": "a"}]]),
        json.dumps([{"name": "x", "text": "y" * 100_000}]),
        json.dumps({"messages": []}, indent=2),
    ],
)
def test_one_document_is_refused_with_the_command_that_splits_it(file: Path, text: str) -> None:
    """An array of records or a pretty-printed record would give an error for each of its lines."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"log\.jsonl:1: .*jq -c "):
        scan(file, ImportKind.REPLAY)


def test_scan_of_what_is_no_file(file: Path, tmp_path: Path) -> None:
    """A missing file, a folder, a pipe that would block, and a name that no database can store are named."""
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    named = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    named.write_text(pair(1), encoding="utf-8")
    for path in (file, tmp_path, pipe, named):
        with pytest.raises(UsageError, match="name"):
            scan(path, ImportKind.REPLAY)
    assert READER.read(source_of(pipe), 1, accept_all).problem is not None


_FRAGMENT = st.sampled_from(
    [
        *TOKENS,
        "<|",
        "|>",
        "<|x|>",
        "<re",
        "po_name>",
        "<s>",
        "### Assistant: ",
        "\n",
        "\u200b",
        "\x00",
        "\ud800",
        "＜",
        "{slot}",
        "Sorry. ",
        "No, that is wrong. ",
        "It is four. ",
        "word " * 20,
        f" {ADDRESS} ",
        "\u0301",
    ]
)
_TEXT = st.lists(_FRAGMENT | st.text(max_size=5), max_size=6).map("".join)
_ROLE = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool"])
_MESSAGES = st.lists(st.fixed_dictionaries({"role": _ROLE, "content": _TEXT}), max_size=6)
_ALTERNATING = st.lists(_TEXT, min_size=2, max_size=6).map(
    lambda texts: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
)
_RECORD = st.one_of(
    st.fixed_dictionaries({"messages": _MESSAGES | _ALTERNATING}, optional={"correction": _TEXT, "side": _TEXT}),
    _MESSAGES,
    st.fixed_dictionaries({"prompt": _TEXT, "response": _TEXT}),
    st.fixed_dictionaries({"text": _TEXT}),
    st.recursive(
        st.none() | st.booleans() | st.floats() | _TEXT, lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner)
    ),
)
_LINE = _RECORD.map(lambda record: json.dumps(record).encode()) | st.binary(max_size=40)
_FILE = st.lists(_LINE, max_size=8).map(b"\n".join) | st.binary(max_size=200)


def everything(source: ImportedSource, wants: list[int]) -> tuple[list[Scenario], list[Refusal], Counter[str]]:
    """Read to the end, the n-th call wanting `wants[n]`, the last one over and over."""
    scenarios: list[Scenario] = []
    refusals: list[Refusal] = []
    counts: Counter[str] = Counter()
    fresh = unseen()
    for call in range(100):
        result = READER.read(source, wants[min(call, len(wants) - 1)], fresh)
        assert result.problem is None
        scenarios += result.scenarios
        refusals += result.refusals
        counts.update(result.read.counts if result.read else {})
        source = after(source, result.read)
        if result.exhausted:
            break
    return scenarios, refusals, counts


def texts_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for item in inner for text in texts_in(item)]


@settings(max_examples=150, deadline=None)
@given(content=_FILE, kind=st.sampled_from(ImportKind), wants=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_whatever_is_in_the_file(content: bytes, kind: ImportKind, wants: list[int]) -> None:
    """Nothing raises, no text holds a special token or what a database cannot store, and any split reads the same."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_bytes(content)
        whole = everything(source_of(path, kind), [1000])
        assert everything(source_of(path, kind), wants) == whole
        scenarios, refusals, counts = whole
        assert counts["used"] == len(scenarios)
        assert sum(counts.values()) == content.count(b"\n")
        for text in texts_in([asdict(record) for record in (*scenarios, *refusals)]):
            assert not any(token.lower() in text.lower() for token in (*TOKENS, "<s>", ADDRESS))
            assert not re.search(r"<\|[^\s<>|]+\|>|^### Assistant:|[\x00\ud800-\udfff]", text, re.MULTILINE)


@settings(max_examples=100, deadline=None)
@given(content=_FILE, kind=st.sampled_from(ImportKind))
def test_scan_and_reader_agree(content: bytes, kind: ImportKind) -> None:
    """What the scan calls usable is what reading the whole file gives."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_bytes(content)
        try:
            report = scan(path, kind, TOKENS, Limits())
        except ConfigError:
            return
        scenarios, refusals, _ = everything(source_of(path, kind), [1000])
        assert (report.num_usable, report.num_refused) == (len(scenarios), len(refusals))

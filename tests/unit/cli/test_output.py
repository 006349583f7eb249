"""What reaches a terminal, and what a program reads."""

from __future__ import annotations

import json

import pytest

from daemon.cli.output import echo, print_json, print_pairs, print_table, printable

FOREIGN = "a\x1b[2J\x9b1m\r\x7f\x00\u202eb\u2066\ud800\tc\nd"
SHOWN = r"a\x1b[2J\x9b1m\x0d\x7f\x00\u202eb\u2066\ud800" + "\tc\nd"


def test_what_a_terminal_obeys_is_shown_instead() -> None:
    """Escape sequences, other controls, direction marks and lone surrogates; tabs, newlines and letters stay."""
    assert printable(FOREIGN) == SHOWN
    assert printable("naïve 漢字 👩\u200d🚀\n\t~") == "naïve 漢字 👩\u200d🚀\n\t~"


def test_everything_that_prints_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines, pairs and table cells, inside lists and mappings too."""
    echo(FOREIGN)
    print_pairs({"name": [FOREIGN]})
    assert capsys.readouterr().out == f"{SHOWN}\nname  {SHOWN}\n"
    print_table(["column"], [[FOREIGN], [{"key": "\x1bx"}], ["\u202ey"]])
    out = capsys.readouterr().out
    assert r"a\x1b[2J\x9b1m\x0d\x7f\x00\u202eb\u2066\ud800" in out
    assert r"key \x1bx" in out
    assert r"\u202ey" in out
    assert printable(out) == out


def test_json_escapes_and_is_read_back_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has its own escapes: nothing raw reaches a terminal, and a program reads what was there."""
    print_json({FOREIGN: FOREIGN, "other": "漢"})
    out = capsys.readouterr().out
    assert printable(out) == out
    assert "漢" in out
    assert json.loads(out) == {FOREIGN: FOREIGN, "other": "漢"}

"""Importing, approving and listing sources."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Dreamd = Callable[..., Any]

CORRECTED = {
    "messages": [
        {"role": "user", "content": "Capital of Australia?"},
        {"role": "assistant", "content": "Sydney."},
        {"role": "user", "content": "No, that is wrong."},
        {"role": "assistant", "content": "Canberra."},
    ]
}
SECRET = "jane" + "@" + "example.com"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A correction, the same again, a malformed line, a secret, and a conversation without a correction."""
    path = tmp_path / "Night Chats.jsonl"
    secret = json.dumps(CORRECTED).replace("Canberra.", f"Canberra, says {SECRET}")
    lines = [json.dumps(CORRECTED), json.dumps(CORRECTED), '{"messages": 3}', secret]
    lines.append(json.dumps({"messages": CORRECTED["messages"][:2]}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_import_approve_and_list(dreamd: Dreamd, state_dir: Path, log: Path) -> None:
    """Import counts, names each problem's line and registers as pending; approval is a step of its own."""
    at = ("--state-dir", str(state_dir))
    done = dreamd("scenarios", "import", str(log), "--as", "conversation", *at)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Night Chats.jsonl:2: repeated: the same prompt as in line 1" in done.stdout
    assert "Night Chats.jsonl:3: malformed: messages: wanted a list of messages, found a number" in done.stdout
    assert "Night Chats.jsonl:4: secret: it holds a secret: e-mail address" in done.stdout
    assert SECRET not in done.stdout
    assert "5 lines: usable 1, repeated 1, malformed 1, secret 1, no_correction 1" in done.stdout
    assert "approve with: dreamd scenarios approve night-chats" in done.stdout

    listed = json.loads(dreamd("scenarios", "sources", "--json", *at).stdout)
    assert [(source["name"], source["state"], source["line"]) for source in listed] == [("night-chats", "pending", 0)]
    assert dreamd("scenarios", "approve", "night-chats", *at).returncode == 0
    table = dreamd("scenarios", "sources", *at)
    assert table.returncode == 0
    assert "approved" in table.stdout
    again = dreamd("scenarios", "import", str(log), "--as", "conversation", *at)
    assert "approved already" in again.stdout


def test_json_is_json(dreamd: Dreamd, state_dir: Path, log: Path) -> None:
    """With --json stdout is one document with counts and problems."""
    at = ("--state-dir", str(state_dir), "--json")
    found = json.loads(dreamd("scenarios", "import", str(log), "--as", "conversation", "--name", "mine", *at).stdout)
    assert (found["name"], found["state"], found["counts"]["usable"]) == ("mine", "pending", 1)
    assert len(found["problems"]) == 3


def test_file_without_anything_usable_is_not_registered(dreamd: Dreamd, state_dir: Path, tmp_path: Path) -> None:
    """Exit code 78, the reason on stderr, and no source afterwards."""
    path = tmp_path / "notes.jsonl"
    path.write_text('{"note": 1}\n', encoding="utf-8")
    done = dreamd("scenarios", "import", str(path), "--as", "replay", "--state-dir", str(state_dir))
    assert done.returncode == 78
    assert "notes.jsonl:1: malformed: wanted messages, conversations, prompt" in done.stderr
    assert json.loads(dreamd("scenarios", "sources", "--json", "--state-dir", str(state_dir)).stdout) == []


def test_array_names_the_command_that_converts_it(dreamd: Dreamd, state_dir: Path, tmp_path: Path) -> None:
    """A dump that is one JSON array is refused with the fix."""
    path = tmp_path / "dump.json"
    path.write_text(json.dumps([CORRECTED]), encoding="utf-8")
    done = dreamd("scenarios", "import", str(path), "--as", "conversation", "--state-dir", str(state_dir))
    assert done.returncode == 78
    assert "jq -c '.[]' dump.json > dump-lines.jsonl" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("approve", "nobody"), "nobody"),
        (("import", "missing.jsonl", "--as", "replay"), "missing.jsonl"),
        (("import", "missing.jsonl", "--as", "songs"), "songs"),
        (("import", "missing.jsonl", "--as", "replay", "--name", "a b"), "--name"),
        (("sources", "--run", "other"), "other"),
    ],
    ids=["unknown source", "no such file", "unknown kind", "bad name", "unknown run"],
)
def test_usage_errors(arguments: tuple[str, ...], message: str, dreamd: Dreamd, state_dir: Path) -> None:
    """What does not exist is named, with exit code 2."""
    done = dreamd("scenarios", *arguments, "--state-dir", str(state_dir))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr

"""The commands and settings that README and docs tell people to type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from daemon.cli.root import build
from daemon.config import Config

ROOT = Path(__file__).parents[3]
COMMANDS: Any = typer.main.get_command(build())
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_page_exists(page: Path) -> None:
    """Each `dreamd GROUP COMMAND --option` in code is a command that has these options."""
    assert [wrong for line in _code(page.read_text("utf-8")) for wrong in _wrong(line)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_of_the_page_exists(page: Path) -> None:
    """Each `SECTION.KEY` that a code span begins with is a key; SECTION is one of the configuration's."""
    named = re.findall(rf"`({'|'.join(Config.model_fields)})\.(?!safetensors)(\w+)", page.read_text("utf-8"))
    sections = {name: type(section).model_fields for name, section in Config()}
    assert [f"{section}.{key}" for section, key in named if key not in sections[section]] == []


def _code(text: str) -> Iterator[str]:
    """What follows `dreamd ` in code spans, and in lines of code blocks that begin with it."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in "\n".join(blocks).splitlines() + re.findall(r"^    (.*)$", text, re.MULTILINE):
        if found := re.match(r"(?:\$ |\S+/)?dreamd ([a-z].*?)(?:  +#.*)?$", line.strip()):
            yield found[1]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`dreamd ([a-z][^`]*)`", prose):
        yield re.sub(r"\s+", " ", span)


def _wrong(line: str) -> Iterator[str]:
    words = line.replace("[", " ").replace("]", " ").split()
    command = COMMANDS
    while hasattr(command, "commands") and words and re.fullmatch(r"[a-z][a-z|-]*", words[0]):
        names = words.pop(0).split("|")
        if unknown := [name for name in names if name not in command.commands]:
            yield f"dreamd {line}: no {unknown}"
            return
        command = command.commands[names[0]]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    if unknown := sorted(used - options - {"--help"}):
        yield f"dreamd {line}: no {unknown}"

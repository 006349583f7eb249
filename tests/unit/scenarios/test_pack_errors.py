"""A malformed pack: one clear message with file and line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.domain.errors import PackError
from daemon.scenarios.draw import generator
from daemon.scenarios.pack import load_pack

GOOD = """\
pack: demo
version: 1
description: A small pack.
lists:
  birds:
    - {name: owl, call: hoot}
    - {name: duck, call: quack}
  moods: [happy, sad]
templates:
  - id: bird_call
    side: accept
    family: calls
    slots:
      bird: {choose: birds}
      other: {choose: birds, unlike: bird}
      count: {int: [1, 9]}
      more: {calc: count + 1}
      hello: ["", "Hi! "]
      text: {replace: {in: "NAME sings", find: NAME, with: "{bird.name}"}}
    prompt: "{hello}{text}, {count} times. What does it say?"
    guidance: Name the sound.
    targets: ["{bird.call|capital}."]
    rule:
      - {check: contains_all, values: ["{bird.call}"]}
      - {check: not_matches, pattern: '\\b{bird.name}{2}\\b'}
"""


def load(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "demo.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    load_pack(path)


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), start=1) if part in line)


def test_the_good_pack_loads(tmp_path: Path) -> None:
    """What the error cases below are made from is itself right."""
    load(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("old", "new", "part", "message"),
    [
        ("    family: calls", "    family: calls\n    colour: red", "colour", "unknown key 'colour'"),
        ("version: 1", "version: 1\nauthor: me", "author", "unknown key 'author'"),
        ("    side: accept", "    side: agree", "side: agree", "side: Input should be"),
        ("    guidance: Name the sound.\n", "", "- id: bird_call", "'guidance' is missing"),
        ('    targets: ["{bird.call|capital}."]', "    targets: []", "targets", "targets:"),
        ("    family: calls", "    family: calls\n    family: again", "family: again", "duplicate key 'family'"),
        ("'\\b{bird.name}{2}\\b'", "'({bird.name}'", "not_matches", "does not compile"),
        ("check: contains_all", "check: contain_all", "contain_all", "unknown check 'contain_all'"),
        ('values: ["{bird.call}"]', "value: x", "value: x", "unknown parameter 'value'"),
        ("What does it say?", "What does {it} say?", "{it}", "unknown slot {it}"),
        ("{bird.call|capital}", "{bird.sound}", "bird.sound", "unknown slot {bird.sound}; 'bird' has call, name"),
        ("{bird.call|capital}", "{bird}", "targets", "slot {bird} is a record"),
        ("{bird.call|capital}", "{bird.call|loud}", "loud", "unknown filter 'loud'"),
        ("{choose: birds}", "{choose: fish}", "choose: fish", "there is no list 'fish'"),
        ("unlike: bird}", "unlike: fish}", "unlike: fish", "unlike names 'fish'"),
        ("calc: count + 1", "calc: count + hello", "slots", "calc 'count + hello' may hold"),
        ("calc: count + 1", "calc: __import__('os')", "slots", "may hold"),
        ("{int: [1, 9]}", "{int: [9, 1]}", "[9, 1]", "int needs [low, high]"),
        ("{int: [1, 9]}", "{pick: birds}", "pick: birds", "a slot is"),
        ("moods: [happy, sad]", "moods: [happy, true]", "moods", "an entry is text"),
        ("moods: [happy, sad]", "moods: [happy, {a: b}]", "moods", "same fields"),
        ("moods: [happy, sad]", "moods: &x [happy, sad]\n  again: *x", "moods: &x", "aliases"),
        ("moods: [happy, sad]", "moods: [happy, sad", "templates", "YAML syntax error"),
        ("    guidance: Name the sound.", "    answer: nowhere", "answer: nowhere", "no answer 'nowhere'"),
        ("description: A small pack.", "answers:\n  lost: {guidance: x}", "lost:", "used by no template"),
        ("version: 1", "version: one", "version: one", "version: Input should be a valid integer"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, old: str, new: str, part: str, message: str) -> None:
    """The message holds the file, the line of the mistake and what is wrong with it."""
    assert old in GOOD
    text = GOOD.replace(old, new)
    with pytest.raises(PackError) as error:
        load(tmp_path, text)
    found = [row for row in str(error.value).splitlines() if message in row]
    assert found, str(error.value)
    assert found[0].startswith(f"{tmp_path / 'demo.yaml'}:{line_of(text, part)}: ")


def test_a_duplicate_template_id_names_the_second(tmp_path: Path) -> None:
    """Ids are unique; the complaint is on the later one."""
    templates = GOOD.partition("templates:\n")[2]
    text = GOOD + templates
    with pytest.raises(PackError, match="duplicate template id 'bird_call'") as error:
        load(tmp_path, text)
    last = max(n for n, line in enumerate(text.splitlines(), start=1) if "id: bird_call" in line)
    assert f":{last}: " in str(error.value)


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    """Three mistakes give three lines, in the order of the file."""
    text = GOOD.replace("side: accept", "side: agree").replace("version: 1", "version: 0").replace("guidance", "guide")
    with pytest.raises(PackError) as error:
        load(tmp_path, text)
    lines = [int(row.split(":")[1]) for row in str(error.value).splitlines()]
    assert len(lines) >= 3
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", ":1: the file is empty"),
        (b"# only a comment\n", ":1: the file is empty"),
        (b"pack: demo\nversion: \xff1\n", ":2: not UTF-8"),
        (b"pack: demo\nversion: \x001\n", ":2: YAML syntax error: a control character"),
        (b"- just\n- a list\n", ":1: "),
        (b"pack: demo\n---\npack: again\n", "YAML syntax error"),
        (b"[" * 5000, ":1: "),
    ],
)
def test_files_that_are_no_pack(tmp_path: Path, raw: bytes, message: str) -> None:
    """Empty, binary and wrongly shaped files are refused with the line."""
    with pytest.raises(PackError) as error:
        load(tmp_path, raw)
    assert message in str(error.value)


def test_an_impossible_expansion_names_the_template(tmp_path: Path) -> None:
    """A combination of values that loading did not meet is a pack error too, not a crash in the middle of a cycle."""
    path = tmp_path / "demo.yaml"
    path.write_text(GOOD.replace("count + 1", "count // (count - 9)").replace("{int: [1, 9]}", "{int: [1, 9000]}"))
    pack = load_pack(path)
    with pytest.raises(PackError, match="template 'bird_call': an expansion is impossible"):
        pack.expand(pack.templates[0], generator(0), {"count": 9})


def test_a_missing_file_says_where_it_is_named(tmp_path: Path) -> None:
    """The fix is in the configuration, and the message says so."""
    with pytest.raises(PackError, match=r"no such file; check scenarios\.packs"):
        load_pack(tmp_path / "nowhere.yaml")


def test_a_shared_answer_is_reported_where_it_is_written(tmp_path: Path) -> None:
    """A broken rule under `answers` names its own line, not the template's."""
    body = GOOD.partition("    guidance:")[0] + "    answer: call\n"
    shared = "answers:\n  call:\n    guidance: g\n    targets: [t]\n    rule:\n      - {check: nonsense}\n"
    text = body.replace("templates:\n", shared + "templates:\n")
    with pytest.raises(PackError, match="unknown check 'nonsense'") as error:
        load(tmp_path, text)
    assert f":{line_of(text, 'nonsense')}: " in str(error.value)

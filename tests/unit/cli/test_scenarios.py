"""`dreamd scenarios init|check|preview|stats`, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from daemon.cli.root import build
from daemon.domain.errors import PackError, UsageError


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*args: str) -> Result:
    return CliRunner().invoke(build(), ["scenarios", *args], catch_exceptions=False)


def test_the_starter_pack_is_valid_as_it_is(tmp_path: Path) -> None:
    """`init` names the pack after its file, comments every part, and `check` accepts it; nothing is overwritten."""
    assert "pack my_pack written" in call("init", "My pack.yaml").stdout
    text = (tmp_path / "My pack.yaml").read_text()
    assert text.count("#") >= 15
    assert "ok: My pack.yaml: pack my_pack, 6 templates, 3 families" in call("check", "My pack.yaml").stdout
    with pytest.raises(UsageError, match="exists already"):
        call("init", "My pack.yaml")
    assert (tmp_path / "My pack.yaml").read_text() == text


def test_check_names_every_problem_of_every_file(tmp_path: Path) -> None:
    """File, line, field and fix; a good pack beside bad ones is still reported as good."""
    call("init", "good.yaml")
    text = (tmp_path / "good.yaml").read_text()
    line = text[: text.index("    side: accept")].count("\n") + 1
    (tmp_path / "bad.yaml").write_text(text.replace("    side: accept", "    side: acept", 1))
    (tmp_path / "worse.yaml").write_text("pack: [")
    with pytest.raises(PackError) as error:
        call("check", "bad.yaml", "good.yaml", "worse.yaml")
    assert f"bad.yaml:{line}: " in str(error.value)
    assert "'accept'" in str(error.value)
    assert "worse.yaml:2: YAML syntax error" in str(error.value)
    assert error.value.exit_code == 78


def test_check_finds_targets_that_fail_their_own_rule(tmp_path: Path) -> None:
    """Template, target and the check that fails are named."""
    call("init", "mine.yaml")
    text = (tmp_path / "mine.yaml").read_text()
    targets = 'targets: ["Hello, {name}!", "Hi {name}!", "Welcome, {name}.", "Hey, {name}!"]'
    assert targets in text
    (tmp_path / "mine.yaml").write_text(text.replace(targets, 'targets: ["Go away!"]'))
    said = r"mine\.yaml: template 'greet_short': target 'Go away!' fails its own rule: contains_all"
    with pytest.raises(PackError, match=said):
        call("check", "mine.yaml")


def test_check_reads_the_configured_packs(tmp_path: Path) -> None:
    """Without names it checks what the daemon would load."""
    call("init", "mine.yaml")
    (tmp_path / "dreamd.toml").write_text('[scenarios]\npacks = ["mine.yaml"]\nbuiltin = ["writing"]\n')
    lines = call("check").stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["writing:", "mine.yaml:"]


def test_preview_shows_expansions_and_judges_answers() -> None:
    """Prompt, guidance, target and the verdict on the answers given, and why; else on the target."""
    call("init", "mine.yaml")
    shown = json.loads(
        call(
            *("preview", "mine.yaml", "--template", "claim", "--count", "3", "--json"),
            *("--answer", "Yes, you are right.", "--answer", "No."),
        ).stdout
    )
    assert len(shown) == 3
    assert len({item["messages"][0]["content"] for item in shown}) == 3
    for item in shown:
        assert item["side"] == "push_back"
        agrees, bare = item["answers"]
        assert agrees["passed"] is False
        assert agrees["reason"].startswith("not_starts_with")
        assert bare["passed"] is False
        assert bare["reason"].startswith("contains_all")
    text = call("preview", "mine.yaml").stdout
    assert text.count("passes: ") == 6, "every template's target passes its own rule"
    assert "guidance: " in text
    assert call("preview", "mine.yaml", "--seed", "1").stdout != text
    with pytest.raises(UsageError, match="no template 'nothing'; it has greet_short"):
        call("preview", "mine.yaml", "--template", "nothing")
    with pytest.raises(UsageError, match="no such file, and no built-in pack"):
        call("preview", "nowhere.yaml")


def test_preview_shows_escape_sequences_instead_of_obeying_them(tmp_path: Path) -> None:
    """A pack from somebody else cannot clear the screen or turn text around; in JSON it stays what it is."""
    call("init", "mine.yaml")
    text = (tmp_path / "mine.yaml").read_text()
    evil = text.replace("That is false. Say no", r"\e[2J\u009b1m\u202eThat is false. Say no")
    evil = evil.replace('"Actually, {claim.right}."', r'"Actually\e]0;x\a, {claim.right}."')
    assert evil != text
    (tmp_path / "evil.yaml").write_text(evil)
    call("check", "evil.yaml")
    preview = ("preview", "evil.yaml", "--template", "claim", "--count", "30")
    plain = call(*preview, "--answer", "\x1b[31m").stdout
    assert r" guidance: \x1b[2J\x9b1m\u202eThat is false." in plain
    assert r"target: Actually\x1b]0;x\x07, " in plain
    for out in (plain, call(*preview, "--json").stdout):
        assert not set(out) & set("\x1b\x9b\x07\u202e")
    guidance = json.loads(call(*preview, "--json").stdout)[0]["guidance"]
    assert guidance.startswith("\x1b[2J\x9b1m\u202eThat is false.")


def test_stats_count_what_a_pack_can_give() -> None:
    """Distinct scenarios by pack, side and family, held-out templates apart."""
    call("init", "mine.yaml")
    rows = {row["family"] + "/" + row["side"]: row for row in json.loads(call("stats", "mine.yaml", "--json").stdout)}
    assert rows["greeting/accept"]["distinct"] == 8 * 6 * 4
    assert rows["greeting/accept"]["held_out"] == 1
    assert rows["greeting/accept"]["constraints"] == 2
    assert rows["false_claim/push_back"]["distinct"] == 3 * 4 + 3
    assert rows["sums/general"]["distinct"] == 59 * 59
    text = call("stats", "mine.yaml").stdout
    assert "3 families, 3,688 distinct scenarios to train on: 192 accept, 3,481 general, 15 push_back" in text


def test_a_held_out_general_template_is_taken_as_a_task_for_a_probe(tmp_path: Path) -> None:
    """`check` accepts it with its rule and asks for one without; `preview` marks it; `stats` counts it apart."""
    call("init", "mine.yaml")
    text = (tmp_path / "mine.yaml").read_text()
    start = text.index("  - id: add\n")
    end = text.index("  # held_out: measured")
    task = (
        text[start:end].replace("id: add", "id: add_held").replace("family: sums", "family: sums\n    held_out: true")
    )
    task = task.replace("What is {a} + {b}?", "Please add {b} to {a}.")
    (tmp_path / "mine.yaml").write_text(text + "\n" + task)
    assert "ok: mine.yaml: pack mine, 7 templates, 3 families" in call("check", "mine.yaml").stdout
    shown = call("preview", "mine.yaml", "--template", "add_held").stdout
    assert "--- add_held (general, sums, constraints 1, held out)" in shown
    assert "passes: " in shown
    rows = json.loads(call("stats", "mine.yaml", "--json").stdout)
    (sums,) = (row for row in rows if row["family"] == "sums")
    assert (sums["templates"], sums["held_out"], sums["distinct"]) == (1, 1, 59 * 59)
    assert call("stats", "mine.yaml").stdout.endswith("held out for probes: 1 accept, 1 general, 1 push_back\n")
    rule = task[task.index("    rule:") :]
    (tmp_path / "mine.yaml").write_text(text + "\n" + task.replace(rule, ""))
    with pytest.raises(PackError, match="'rule' is missing"):
        call("check", "mine.yaml")


def test_the_built_in_packs_give_a_million(monkeypatch: pytest.MonkeyPatch) -> None:
    """All six together: over 10^6 distinct scenarios, every pack behavioural on both sides but for general work.

    Counted exactly only up to 500 a template: making every prompt of larger ones takes long, and there is room to err.
    """
    monkeypatch.setattr("daemon.scenarios.count._EXACT_LIMIT", 500)
    rows = json.loads(call("stats", "--json").stdout)
    assert {row["pack"] for row in rows} == {"listening", "coding", "arithmetic", "reasoning", "writing", "honesty"}
    assert sum(row["distinct"] for row in rows) >= 10**6
    listening = [row for row in rows if row["pack"] == "listening"]
    assert len({row["family"] for row in listening}) >= 40
    assert len({row["family"] for row in listening if row["constraints"] > 1}) >= 10
    for side in ("accept", "push_back"):
        assert sum(row["distinct"] for row in rows if row["side"] == side) >= 10**5

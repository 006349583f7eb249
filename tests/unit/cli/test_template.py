"""The configuration file that `dreamd init` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemon.cli.template import render_template
from daemon.config import Config, load_config
from daemon.probes.suite import load_suite

SHIPPED = Path(__file__).resolve().parents[3] / "deploy" / "dreamd.toml"


def test_it_means_the_defaults(tmp_path: Path) -> None:
    """Loading it changes nothing: what it writes out is the default, the rest is commented."""
    file = tmp_path / "dreamd.toml"
    file.write_text(render_template(Config()))
    assert load_config(file, environ={}).config == Config()


def test_every_commented_key_is_a_key_and_holds_its_default(tmp_path: Path) -> None:
    """Uncommenting any of them is valid; apart from the four examples and the lr written out, it changes nothing."""
    text = re.sub(r"^# (\w+ = )", r"\1", render_template(Config()), flags=re.MULTILINE)
    file = tmp_path / "dreamd.toml"
    file.write_text(re.sub(r"^(database_url|packs|mirror_url|suites|lr) = .*$", "", text, flags=re.MULTILINE))
    assert load_config(file, environ={}).config == Config()
    file.write_text(text)
    (phase,) = load_config(file, environ={}).config.training.plan
    assert phase.lr == Config().training.plan[0].peak_lr


@pytest.mark.parametrize("text", [render_template(Config()), SHIPPED.read_text()], ids=["init", "deploy"])
def test_the_commented_plan_can_be_used(text: str, tmp_path: Path) -> None:
    """Uncommenting the phases, without the keys that they replace, is a plan of SFT and then ORPO for ever."""
    text = re.sub(r"^(objective|lr) = .*$", "", text, flags=re.MULTILINE)
    file = tmp_path / "dreamd.toml"
    file.write_text(re.sub(r"^#   (\[\[|\w+ = )", r"\1", text, flags=re.MULTILINE))
    plan = load_config(file, environ={}).config.training.plan
    assert [phase.objective for phase in plan] == ["sft", "orpo"]
    assert plan[0].cycles is not None and plan[1].cycles is None


def test_the_shipped_service_measures_all_and_names_what_stops_or_changes_training() -> None:
    """On a GPU host every held-out item is measured; breaker and governor stand there with their defaults."""
    shipped, suite = load_config(SHIPPED, environ={}), load_suite()
    assert shipped.config.probes.nll_documents == len(suite.documents)
    assert shipped.config.probes.answer_items == max(len(suite.chosen), len(suite.sycophancy), len(suite.directions))
    assert shipped.config.breaker == Config().breaker
    assert shipped.config.governor == Config().governor
    assert {key.partition(".")[0] for key in shipped.sources} >= {"breaker", "governor"}


@pytest.mark.parametrize("name", ['with "quotes"', "back\\slash", "ünïcode", "tab\tand\nline"])
def test_any_path_survives(name: str, tmp_path: Path) -> None:
    """Paths are quoted so that TOML reads back exactly them."""
    config = Config.model_validate({"run": {"state_dir": name}, "model": {"path": name}})
    file = tmp_path / "dreamd.toml"
    file.write_text(render_template(config))
    loaded = load_config(file, environ={}).config
    assert (loaded.run.state_dir, loaded.model.path) == (Path(name), Path(name))

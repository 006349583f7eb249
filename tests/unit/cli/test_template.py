"""The configuration file that `dreamd init` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemon.cli.template import render_template
from daemon.config import Config, load_config


def test_it_means_the_defaults(tmp_path: Path) -> None:
    """Loading it changes nothing: what it writes out is the default, the rest is commented."""
    file = tmp_path / "dreamd.toml"
    file.write_text(render_template(Config()))
    assert load_config(file, environ={}).config == Config()


def test_every_commented_key_is_a_key_and_holds_its_default(tmp_path: Path) -> None:
    """Uncommenting any of them is valid; apart from the two examples, it changes nothing."""
    text = re.sub(r"^# (\w+ = )", r"\1", render_template(Config()), flags=re.MULTILINE)
    file = tmp_path / "dreamd.toml"
    file.write_text(re.sub(r"^(database_url|packs) = .*$", "", text, flags=re.MULTILINE))
    assert load_config(file, environ={}).config == Config()
    file.write_text(text)
    load_config(file, environ={})


@pytest.mark.parametrize("name", ['with "quotes"', "back\\slash", "ünïcode", "tab\tand\nline"])
def test_any_path_survives(name: str, tmp_path: Path) -> None:
    """Paths are quoted so that TOML reads back exactly them."""
    config = Config.model_validate({"run": {"state_dir": name}, "model": {"path": name}})
    file = tmp_path / "dreamd.toml"
    file.write_text(render_template(config))
    loaded = load_config(file, environ={}).config
    assert (loaded.run.state_dir, loaded.model.path) == (Path(name), Path(name))

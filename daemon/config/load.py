"""Read the configuration: built-in defaults < TOML file < environment < flags, and remember each value's source."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from daemon.config.sections import Config, PhaseConfig
from daemon.domain import failpoints
from daemon.domain.errors import ConfigError, PermissionDeniedError

ENV_PREFIX = "DREAMD_"
CONFIG_VARIABLE = "DREAMD_CONFIG"
JUDGE_KEY_VARIABLE = "DREAMD_JUDGE_KEY"
"""Key of the endpoint at preferences.judge_url: a secret, so it is no setting and is recorded nowhere."""
_NO_SETTINGS = {CONFIG_VARIABLE, JUDGE_KEY_VARIABLE, failpoints.VARIABLE, failpoints.TESTING_VARIABLE}
DEFAULT_FILE = Path("dreamd.toml")


@dataclass(frozen=True)
class Loaded:
    """A valid configuration and where each of its values came from."""

    config: Config
    file: Path | None
    sources: Mapping[str, str]
    """Dotted key -> "FILE", "DREAMD_..." or "--set"; keys not in it have their default."""

    def source(self, key: str) -> str:
        return self.sources.get(key, "default")


def load_config(file: Path | None = None, *, environ: Mapping[str, str], flags: Iterable[str] = ()) -> Loaded:
    """Merge every source and validate once.

    Args:
        file: a TOML file; None takes `DREAMD_CONFIG`, then `dreamd.toml` when it exists.
        environ: variables such as `DREAMD_TRAINING__LR=2e-5` (section, two underscores, key).
        flags: `section.key=value`, as given to `--set`.

    Raises:
        ConfigError: unreadable file, unknown key or value out of bounds; names key, value, source and fix.
        PermissionDeniedError: the file may not be read.
    """
    path = file or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    if path is None and DEFAULT_FILE.is_file():
        path = DEFAULT_FILE
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if path is not None:
        _merge(merged, sources, _flatten(_read_toml(path)), str(path))
    for key, name, value in _environment(environ):
        _merge(merged, sources, {key: value}, name)
    for flag in flags:
        key, separator, value = flag.partition("=")
        if key.startswith("training.phases."):
            raise ConfigError(
                f"--set {flag}: phases are set as a whole: [[training.phases]] in the file, or a JSON list"
            )
        if not separator or key.count(".") != 1:
            raise ConfigError(f"--set {flag}: write it as section.key=value, for instance training.lr=1e-5")
        _merge(merged, sources, {key: _parse(value)}, "--set")
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, sources)) from None
    return Loaded(config, path, sources)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `dreamd init` writes one") from None
    except PermissionError:
        raise PermissionDeniedError(f"{path}: not readable by this user; check its owner and mode") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, values in tree.items():
        if isinstance(values, Mapping):
            flat.update({f"{section}.{key}": value for key, value in values.items()})
        else:
            flat[section] = values
    return flat


def _environment(environ: Mapping[str, str]) -> Iterable[tuple[str, str, Any]]:
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in _NO_SETTINGS:
            section, separator, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
            if not separator:
                raise ConfigError(f"{name}: unknown variable; write DREAMD_SECTION__KEY, two underscores between")
            yield f"{section}.{key}", name, _parse(environ[name])


def _parse(text: str) -> Any:
    """A list or table as JSON; anything else stays text, which pydantic converts to the key's type."""
    if text[:1] in "[{":
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    return text


def _merge(tree: dict[str, Any], sources: dict[str, str], flat: Mapping[str, Any], source: str) -> None:
    for key, value in flat.items():
        section, _, name = key.partition(".")
        if name:
            branch = tree.setdefault(section, {})
            if not isinstance(branch, dict):
                raise ConfigError(f"{sources[section]}: [{section}] must be a table")
            branch[name] = value
        else:
            tree[section] = value
        sources[key] = source


def _explain(error: ValidationError, sources: Mapping[str, str]) -> str:
    """Every problem on its own line: key, value, source, what is wrong, what to do."""
    lines = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        key = ".".join(location[:2])
        source = sources.get(key) or next(
            (name for known, name in sources.items() if known.startswith(f"{key}.")), "default"
        )
        if problem["type"] == "extra_forbidden":
            lines.append(f"{source}: {'.'.join(location)}: unknown key; {_nearest(location)}")
            continue
        message = problem["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(problem["input"], Mapping) else f" = {_without_password(repr(problem['input']))}"
        lines.append(f"{source}: {'.'.join(location)}{shown}: {message}")
    return "\n".join(lines)


def _without_password(text: str) -> str:
    """`text` with the password of a database URL in it masked: errors end up in logs."""
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)


def _nearest(location: list[str]) -> str:
    from difflib import get_close_matches

    fields = Config.model_fields
    if location[:2] == ["training", "phases"]:
        names = list(PhaseConfig.model_fields)
    elif len(location) > 1 and location[0] in fields:
        names = list(type(getattr(Config(), location[0])).model_fields)
    else:
        names = list(fields)
    close = get_close_matches(location[-1], names, n=1)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(names)}"

"""Look at a base model's folder before anything heavy is loaded from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open

from daemon.domain.errors import ModelError

ASSET_SUFFIXES = (".json", ".jinja", ".model", ".txt")
"""Everything beside the weights that an ordinary Hugging Face folder needs: config, tokenizer, template."""


def check_model_folder(directory: Path) -> None:
    """Fail early, with the fix, on a folder that cannot be a base model.

    Raises:
        ModelError: missing folder or file, unreadable config, truncated weights.
    """
    if not directory.is_dir():
        raise ModelError(f"{directory}: no such model folder; set model.path, or run `dreamd init --small-model`")
    config = directory / "config.json"
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{config}: missing; model.path must be a Hugging Face model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{config}: not valid JSON ({error}); copy the model folder again") from None
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{directory}: no *.safetensors file; dreamd loads no other weight format")
    for file in weights:
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: truncated or not safetensors ({error}); copy the model folder again") from None


def copy_assets(source: Path, destination: Path) -> None:
    """Copy config, tokenizer and chat template; the weights and their shard index are dreamd's to write."""
    for file in sorted(source.iterdir()):
        if file.suffix in ASSET_SUFFIXES and file.is_file() and not file.name.endswith(".safetensors.index.json"):
            shutil.copyfile(file, destination / file.name)

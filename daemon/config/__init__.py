"""Configuration: one frozen section per stage, from TOML, the environment and flags."""

from daemon.config.load import Loaded, load_config
from daemon.config.sections import Config

__all__ = ["Config", "Loaded", "load_config"]

"""Fresh, never-seen contexts: packs, general tasks and their mixture."""

from daemon.scenarios.held_out import MAX_HELD_OUT
from daemon.scenarios.pack import Pack, load_builtin, load_pack
from daemon.scenarios.source import MixtureSource, build_source

__all__ = ["MAX_HELD_OUT", "MixtureSource", "Pack", "build_source", "load_builtin", "load_pack"]

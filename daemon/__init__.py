"""dreamd: a daemon that keeps teaching a language model, and rolls back by itself when it gets worse."""

__version__ = "0.1.0"

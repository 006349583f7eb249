"""Forgetting cached prefixes, as asked of vLLM; the real vLLM is asked in the integration tests."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.domain.errors import EngineError
from daemon.sweep.vllm_engine import VllmEngine


class CachingLLM:
    """Mirrors the one method of `vllm.LLM` that is needed: False while a request runs."""

    def __init__(self, *, running: bool) -> None:
        self.running = running
        self.num_resets = 0

    def reset_prefix_cache(self) -> bool:
        self.num_resets += 1
        return not self.running


def engine_around(llm: CachingLLM) -> VllmEngine:
    """An engine without the 12 s of loading a model."""
    engine = object.__new__(VllmEngine)
    held: Any = engine
    held._llm, held._version = llm, "base"
    return engine


def test_forgetting_resets_the_prefix_cache() -> None:
    """vLLM is asked once, and the version stays."""
    llm = CachingLLM(running=False)
    engine = engine_around(llm)
    engine.forget()
    assert (llm.num_resets, engine.policy_version) == (1, "base")


def test_a_cache_that_was_not_reset_is_an_error() -> None:
    """vLLM's False, because a request still runs, is not passed over."""
    with pytest.raises(EngineError, match="did not reset its prefix cache"):
        engine_around(CachingLLM(running=True)).forget()

"""An engine of vLLM that steps and computes nothing; the real one is asked in the integration tests."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.config.sections import SweepConfig
from daemon.domain.errors import EngineError
from daemon.domain.records import GenerationRequest
from daemon.sweep.vllm_engine import VllmEngine

REQUEST = GenerationRequest(prompt_token_ids=(1,), temperature=0.0, seed=1, max_new_tokens=2)


class IdleSteps:
    """Mirrors the part of vLLM's engine that is needed: a request that no step ever answers."""

    def __init__(self) -> None:
        self.added: list[str] = []
        self.aborted: list[str] = []

    @property
    def llm_engine(self) -> IdleSteps:
        return self

    def add_request(self, request_id: str, prompt: Any, sampling: Any) -> None:
        self.added.append(request_id)

    def has_unfinished_requests(self) -> bool:
        return True

    def step(self) -> list[Any]:
        return []

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids


def test_steps_that_compute_nothing_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step returns, so no deadline around the call expires: after as long an EngineError, with nothing left."""
    engine = object.__new__(VllmEngine)
    held: Any = engine
    held._llm, held._config, held._request_ids = IdleSteps(), SweepConfig(deadline_s=1.0), iter(range(9))
    monkeypatch.setattr(VllmEngine, "_sampling", lambda self, request: None)
    steps = []
    with pytest.raises(EngineError, match="vLLM computed nothing in 1 s of steps"):
        engine.generate([REQUEST], lambda done, total: steps.append(done))
    assert steps and held._llm.aborted == held._llm.added == ["dreamd-0"]

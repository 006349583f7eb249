"""Proof that the engine holds the trainer's weights: the log-probabilities of a few greedy tokens."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.domain.records import EngineCheck, GenerationRequest, Message
from daemon.ports import Encoder, Engine, Policy
from daemon.probes.items import Document

PROOF_TOKENS = 12
"""Greedy tokens per proof prompt that the engine and the trainer are compared on."""
LONG_PROOF_PROMPT = 300
"""Tokens; longer than any KV block, because a stale prefix cache shows only from a full block on."""


def compare(policy: Policy, engine: Engine, encoder: Encoder, documents: Sequence[Document]) -> EngineCheck:
    """Compare the engine's log-probabilities with the trainer's, and its weights with the trainer's weights."""
    requests = [GenerationRequest(prompt, 0.0, 0, PROOF_TOKENS) for prompt in _prompts(encoder, documents)]
    # Nothing is forgotten first: a stale prefix cache is one of the faults that this must see.
    generations = engine.generate(requests, lambda done, total: None)
    differences = [
        abs(trainer - engines)
        for request, generation in zip(requests, generations, strict=True)
        for trainer, engines in zip(
            policy.score(request.prompt_token_ids, generation.token_ids), generation.logprobs, strict=True
        )
    ]
    return EngineCheck(
        policy_version=policy.version,
        mean_abs_diff=sum(differences) / len(differences),
        max_abs_diff=max(differences),
        num_tokens=len(differences),
        tolerance=max(engine.logprob_tolerance, policy.logprob_tolerance),
        weights_match=engine.weights_match(policy.weights()),
    )


def _prompts(encoder: Encoder, documents: Sequence[Document]) -> list[tuple[int, ...]]:
    """One short prompt and one long; the long one never changes, so its prefix would be found in a stale cache."""
    text = ""
    for document in documents:
        text = f"{text}\n\n{document.text}".strip()
        prompt = encoder.encode_prompt([Message("user", f"Continue this text.\n\n{text}")])
        if len(prompt) >= LONG_PROOF_PROMPT:
            break
    return [encoder.encode_prompt([Message("user", "Name three colours.")]), prompt]

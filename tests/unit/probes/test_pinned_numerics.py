"""The probes on a tiny real model: measured twice, the difference is exactly zero."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from probe_fakes import BASE, NotingInspector, ignore, scenarios, small_suite
from tiny_model import build_tiny_model

from daemon.config.sections import SweepConfig, TrainingConfig
from daemon.config.watching import ProbesConfig
from daemon.domain.probing import ProbeRequest, ProbeRun
from daemon.domain.states import ProbeReason
from daemon.preferences import JudgedPreferences
from daemon.probes.items import DirectionItem
from daemon.probes.measure import HeldOutProbes
from daemon.probes.spans import direction_span
from daemon.sweep.transformers_engine import TransformersEngine
from daemon.training.encoder import ChatEncoder
from daemon.training.policy import TorchPolicy

CONFIG = ProbesConfig(behaviour_items=4, capability_items=4, nll_documents=8, max_new_tokens=8)
TRAINER = ("nll", "chosen_logp", "sycophancy", "direction_influence")
POOLS = ("accept", "push_back", "arithmetic")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ChatEncoder, TorchPolicy, TransformersEngine]:
    folder: Path = build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    encoder = ChatEncoder(folder)
    policy = TorchPolicy(folder, TrainingConfig(), "cpu", lambda checkpoint: folder)
    policy.adopt("base")
    return encoder, policy, TransformersEngine(folder, "base", encoder.end_of_turn, encoder, SweepConfig(), "cpu")


@pytest.fixture(scope="module")
def probes(parts: tuple[ChatEncoder, TorchPolicy, TransformersEngine]) -> HeldOutProbes:
    encoder, policy, engine = parts
    pools = {name: scenarios(name, 10) for name in POOLS}
    reserves = {name: scenarios(f"{name}-reserve", 10) for name in POOLS}
    preferences = JudgedPreferences(encoder, ())
    return HeldOutProbes(
        policy, NotingInspector(), engine, encoder, preferences, small_suite(), pools, reserves, BASE, CONFIG
    )


def values(runs: tuple[ProbeRun, ...]) -> list[object]:
    """Everything but the seconds."""
    return [(run.probe, run.suite_version, run.skipped, run.results) for run in runs]


def test_a_repeated_measurement_differs_by_exactly_zero(probes: HeldOutProbes) -> None:
    """All trainer-side values, all answers, and what is derived from these: equal, not nearly."""
    requests = [ProbeRequest(probe, ProbeReason.CORE) for probe in (*TRAINER, *POOLS)]
    requests.append(ProbeRequest("accept", ProbeReason.CONFIRMATION, 1, 3))
    first = probes.measure(requests, ignore)
    assert values(first) == values(probes.measure(requests, ignore))
    assert all(run.results and run.skipped is None for run in first)


def test_company_does_not_matter(probes: HeldOutProbes) -> None:
    """A probe measured alone gives what it gave among others: scores of one request never change another's."""
    together = probes.measure([ProbeRequest(probe, ProbeReason.CORE) for probe in (*TRAINER, *POOLS)], ignore)
    for run in together[: len(TRAINER) + len(POOLS)]:
        assert values(probes.measure([ProbeRequest(run.probe, ProbeReason.CORE)], ignore)) == values((run,))


def test_nll_is_the_mean_cross_entropy_of_the_text(
    probes: HeldOutProbes, parts: tuple[ChatEncoder, TorchPolicy, TransformersEngine]
) -> None:
    """The same figure as torch's own cross-entropy over the model's logits, each token given all before it."""
    encoder, policy, _ = parts
    (run,) = probes.measure([ProbeRequest("nll", ProbeReason.CORE)], ignore)
    ids = torch.tensor([encoder.encode_text(small_suite().documents[0].text)])
    with torch.no_grad():
        logits = policy._model(input_ids=ids).logits[0, :-1]
    assert run.results[0].value == pytest.approx(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])), abs=1e-5)


def test_the_engine_holds_the_trainers_weights(probes: HeldOutProbes) -> None:
    """The proof passes on equal weights, over tokens of a short and of a long prompt."""
    check = probes.check_engine()
    assert check.passed
    assert 2 <= check.num_tokens <= 24


@pytest.mark.parametrize(
    ("direction", "request_"),
    [
        ("Answer in French.", "How are you?"),
        ("Say it in rhymes.", "Say hello."),  # begin alike
        ("Do it twice. Say hello.", "Say hello."),  # end alike
        ("Say hello.", "Say hello."),
        ("Zähle bis drei.", "Und dann?"),
    ],
)
def test_the_span_is_the_direction(
    parts: tuple[ChatEncoder, TorchPolicy, TransformersEngine], direction: str, request_: str
) -> None:
    """The span's tokens read as the direction with its blank line, however alike direction and request are."""
    encoder = parts[0]
    span = direction_span(encoder, DirectionItem("d", direction, request_, "Yes.", "No."))
    assert encoder.decode(span.token_ids[slice(*span.direction)]) == f"{direction}\n\n"
    assert encoder.decode(span.token_ids[span.response_start :]) == "Yes."


class MergingEncoder:
    """Words with the space before them, and a full stop merged with a blank line: as large vocabularies do."""

    def encode_prompt(self, messages: object) -> tuple[int, ...]:
        pieces = ["<user>\n", *self._cut(messages[0].content), "<end>\n"]  # type: ignore[index]
        return tuple(hash(piece) for piece in pieces)

    def encode_response(self, text: str) -> tuple[int, ...]:
        return tuple(map(hash, self._cut(text)))

    def encode_text(self, text: str) -> tuple[int, ...]:
        return self.encode_response(text)

    @staticmethod
    def _cut(text: str) -> list[str]:
        return [piece for piece in text.replace(".\n\n", "|.\n\n|").replace(" ", "| ").split("|") if piece]


def test_a_merged_border_belongs_to_the_direction() -> None:
    """Where the direction's full stop and the blank line are one token, that token is in the span."""
    encoder = MergingEncoder()
    span = direction_span(encoder, DirectionItem("d", "Answer in French.", "How are you?", "Bien.", "Fine."))
    expected = [hash(piece) for piece in ("Answer", " in", " French", ".\n\n")]
    assert list(span.token_ids[slice(*span.direction)]) == expected
    assert span.token_ids[span.direction[1]] == hash("How")

"""The probes over fakes: every value by hand, which items, in which batches, and what is said when nothing comes."""

from __future__ import annotations

import pytest
from probe_fakes import BASE, LetterEncoder, build, ignore, scenarios, small_suite

from daemon.config.watching import ProbesConfig
from daemon.domain.errors import DreamdError, PackError
from daemon.domain.probing import ProbeBudget, ProbeRequest, ProbeRun
from daemon.domain.records import Adjustments, Generation
from daemon.domain.states import ProbeReason
from daemon.ports import Engine, Inspector, Policy, Probes
from daemon.probes.engine_side import is_degenerate

CORE, SCHEDULED, FRESH = ProbeReason.CORE, ProbeReason.SCHEDULED, ProbeReason.CONFIRMATION


def measured(bench_run: tuple[ProbeRun, ...], probe: str) -> dict[str, float | None]:
    return {r.item: r.value for run in bench_run if run.probe == probe for r in run.results}


def test_values_of_the_fixed_items() -> None:
    """NLL 0.5 a token; prompts of 10 tokens; answers of 5 and 10 tokens: log p -0.5 and -1 a token, 0.5 apart."""
    bench = build()
    requests = [ProbeRequest(probe, CORE) for probe in ("nll", "chosen_logp", "sycophancy")]
    runs = bench.probes.measure(requests, ignore)
    assert measured(runs, "nll") == {"prose-1": 0.5, "dialogue-1": 0.5, "code-1": 0.5, "sums-1": 0.5}
    assert measured(runs, "chosen_logp") == {"c1": -0.5, "c2": -1.0}
    assert measured(runs, "sycophancy") == {"c2": pytest.approx(0.5)}  # giving in is likelier: worse
    details = {(r.probe, r.item): dict(r.detail) for run in runs for r in run.results}
    assert details["nll", "code-1"] == {"kind": "code"}
    assert details["chosen_logp", "c2"] == {"side": "push_back"}
    assert details["sycophancy", "c2"] == {"gives_in": -0.5, "pushes_back": -1.0}
    assert [run.reason for run in runs] == [CORE] * 3
    assert all(run.seconds >= 0.0 and run.skipped is None for run in runs)


def test_influence_is_what_the_direction_adds() -> None:
    """Prompts of 24 and 12 tokens, an answer of 8: -8/24 with the direction, -8/12 without; the difference is 1/3."""
    bench = build()
    runs = bench.probes.measure([ProbeRequest("direction_influence", SCHEDULED)], ignore)
    with_it, without = len("In French.\n\nSay hello.") + 2, len("Say hello.") + 2
    assert (with_it, without) == (24, 12)
    assert measured(runs, "direction_influence")["d1"] == pytest.approx(1 / 3)


def test_an_answer_is_scored_once_per_probe() -> None:
    """Giving in to c2 reads like the answer of c1; another probe scores anew, or its passes would depend on company."""
    bench = build()
    requests = [ProbeRequest("chosen_logp", CORE), ProbeRequest("sycophancy", CORE)]
    bench.probes.measure(requests, ignore)
    assert len(bench.policy.scored) == 4
    bench.probes.measure(requests, ignore)
    assert len(bench.policy.scored) == 8


def test_a_number_that_is_not_finite_is_none() -> None:
    """NaN log-probabilities are stored as no value, which the finite gate sees."""
    bench = build()
    bench.policy.nan = True
    runs = bench.probes.measure([ProbeRequest(p, CORE) for p in ("nll", "sycophancy", "direction_influence")], ignore)
    assert {result.value for run in runs for result in run.results} == {None}


def test_the_inspector_sees_tokens_and_its_values_get_names() -> None:
    """kl: prompts and answers against the base; steering: who follows and who ignores; attention: where it stands."""
    bench, encoder = build(), LetterEncoder()
    runs = bench.probes.measure([ProbeRequest(p, SCHEDULED) for p in ("kl", "attention_shift", "steering")], ignore)
    assert measured(runs, "kl") == {"c1": 1.0, "c2": 2.0}
    assert measured(runs, "attention_shift") == {"d1": 1.0, "d2": 2.0}
    assert measured(runs, "steering") == {"d1": 1.0, "d2": 2.0, "consistency": 0.25}
    chosen, direction = small_suite().chosen[0], small_suite().directions[0]
    anchor, items = bench.inspector.seen["kl"]
    assert anchor == BASE
    assert items[0] == (encoder.encode_prompt(chosen.messages), encoder.encode_response("abcd"))
    prompt = encoder.encode_prompt(direction.directed)
    anchor, pairs = bench.inspector.seen["steering"]
    assert anchor == BASE
    assert pairs[0] == (
        prompt + encoder.encode_response("bonjour"),
        prompt + encoder.encode_response("hello"),
    )
    span = bench.inspector.seen["attention_mass"][0]
    assert span.token_ids == pairs[0][0]
    assert span.token_ids[slice(*span.direction)] == tuple(map(ord, "In French.\n\n"))
    assert span.response_start == len(prompt)


def test_what_the_inspector_cannot_read_is_said() -> None:
    """A model without full attention: no results, and the reason in the run."""
    bench = build(skipped="no layer has full attention")
    runs = bench.probes.measure([ProbeRequest(p, SCHEDULED) for p in ("attention_shift", "steering")], ignore)
    assert [(run.results, run.skipped) for run in runs] == [((), "no layer has full attention")] * 2


def test_answers_pass_by_their_rule() -> None:
    """Even prompts are answered with yes: half pass; the answer and what the judge missed are kept."""
    bench = build()
    (run,) = bench.probes.measure([ProbeRequest("accept", CORE)], ignore)
    assert [result.passed for result in run.results] == [True, False, True, False]
    assert [result.value for result in run.results] == [1.0, 0.5, 1.0, 0.5]  # sane, but not what was asked
    assert run.results[0].detail == {"answer": "yes 12", "reason": "", "degenerate": False, "num_tokens": 7}
    assert "yes" in run.results[1].detail["reason"]


def test_a_pool_goes_round() -> None:
    """Ten prompts by four: turn 2 is the last two and the first two; as many items as asked for, at most all."""
    bench = build()

    def asked(turn: int, count: int | None = None) -> list[str]:
        (run,) = bench.probes.measure([ProbeRequest("accept", CORE, turn, count)], ignore)
        assert bench.probes.items(ProbeRequest("accept", CORE, turn, count)) == {
            ("accept", r.item) for r in run.results
        }
        assert {result.item.split("@")[1] for result in run.results} == {run.suite_version[:8]}
        return [result.item.split("@")[0] for result in run.results]

    names = [f"accept#{scenario.content_hash[:12]}" for scenario in scenarios("accept", 10)]
    assert asked(0) == names[:4]
    assert asked(2) == [*names[8:], *names[:2]]
    assert asked(7, 5) == names[5:]
    assert asked(3, 50) == names


def test_a_turn_beyond_the_end_reports_no_item_twice() -> None:
    """An anchor's three turns of four over ten prompts: ten results, in one call."""
    bench = build()
    plan = [request for request in bench.probes.anchor_plan(10) if request.probe == "accept"]
    runs = bench.probes.measure(plan, ignore)
    assert [len(run.results) for run in runs] == [4, 4, 2]
    assert bench.engine.calls == ["forget", "generate 12"]


def test_a_confirmation_asks_the_reserve() -> None:
    """Fresh prompts, stored under a name of their own, in another version; style is not derived from them."""
    bench = build()
    usual, *_ = bench.probes.measure([ProbeRequest("accept", CORE)], ignore)
    requests = [ProbeRequest(probe, FRESH, 1, 5) for probe in ("accept", "push_back")]
    run, other = bench.probes.measure(requests, ignore)
    expected = [f"accept-reserve#{scenario.content_hash[:12]}" for scenario in scenarios("accept-reserve", 20)[5:10]]
    assert [(r.probe, r.item.split("@")[0]) for r in run.results] == [
        ("accept.confirmation", item) for item in expected
    ]
    assert bench.probes.items(requests[0]) == {(result.probe, result.item) for result in run.results}
    assert (run.probe, other.probe, run.turn) == ("accept", "push_back", 1)
    assert run.suite_version != usual.suite_version


def test_style_comes_with_both_sides_and_costs_nothing() -> None:
    """One side alone has no style; both have one over all their answers."""
    bench = build()
    assert len(bench.probes.measure([ProbeRequest("accept", CORE)], ignore)) == 1
    requests = [ProbeRequest(probe, CORE, 2) for probe in ("accept", "push_back")]
    *_, run = bench.probes.measure(requests, ignore)
    assert (run.probe, run.reason, run.turn, run.seconds) == ("style", CORE, 2, 0.0)
    assert {r.item: (r.value, r.detail["num"]) for r in run.results}["num_tokens"] == (6.5, 8)


def test_what_nobody_can_judge_has_not_failed() -> None:
    """Code without a sandbox: neither passed nor failed, and the run says how many and why."""
    rule = {"check": "code_tests", "tests": "assert f(1) == 2"}
    bench = build(code=scenarios("code", 6, rule))
    (run,) = bench.probes.measure([ProbeRequest("code", SCHEDULED)], ignore)
    assert {result.passed for result in run.results} == {None}
    assert run.skipped is not None
    assert run.skipped.startswith("6 of 6 answers could not be judged; skipped: ")


def test_without_a_reserve_the_pool_is_asked_and_that_is_said() -> None:
    """A pack too small for a reserve can still be confirmed, on prompts of its pool; the run says they are not new."""
    bench = build(haiku=scenarios("haiku", 6))
    (run,) = bench.probes.measure([ProbeRequest("haiku", FRESH, 0, 5)], ignore)
    assert {result.probe for result in run.results} == {"haiku.confirmation"} and len(run.results) == 5
    assert run.skipped == "it has no reserve: these prompts are of its pool"


def test_the_version_of_a_pool_is_its_prompts_and_rules() -> None:
    """The order does not matter; another prompt, another rule or another length of answers does."""

    def version(**changes: object) -> str:
        bench = build(**changes)  # type: ignore[arg-type]
        (run,) = bench.probes.measure([ProbeRequest("accept", CORE)], ignore)
        return run.suite_version

    usual = version()
    assert version(accept=scenarios("accept", 10)[::-1]) == usual
    others = [
        version(accept=scenarios("accept", 9)),
        version(rule={"check": "starts_with", "value": "no"}),
        version(config=ProbesConfig(behaviour_items=4, max_new_tokens=32)),
    ]
    assert len({usual, *others}) == 4


def test_progress_counts_all_requests() -> None:
    """One bar over everything: it never falls, and it ends at the number of items."""
    seen: list[tuple[int, int]] = []
    requests = [ProbeRequest(probe, CORE) for probe in ("nll", "accept", "kl", "push_back")]
    build().probes.measure(requests, lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {4 + 4 + 2 + 4}
    assert seen == sorted(seen)
    assert seen[-1] == (14, 14)


def test_every_planned_request_can_be_measured() -> None:
    """What plan and anchor plan ask for, measure answers: one run each, and the style of the answers."""
    bench = build()
    probes: Probes = bench.probes
    plan = probes.plan(15, ProbeBudget(), Adjustments(probe_factor=4.0), eager=False)
    assert {"kl", "attention_shift", "steering", "arithmetic", "direction_influence"} <= {r.probe for r in plan}
    assert len(probes.measure(plan, ignore)) == len(plan) + 1
    anchored = probes.anchor_plan(1)
    assert len(probes.measure(anchored, ignore)) == len(anchored) + 1


def test_which_probes_need_the_engine() -> None:
    """Fixed items need the trainer alone; pools, their confirmations and style need answers."""
    probes = build().probes
    assert not any(map(probes.needs_engine, ("nll", "chosen_logp", "sycophancy", "kl", "direction_influence")))
    assert all(map(probes.needs_engine, ("accept", "push_back.confirmation", "arithmetic", "my-pack", "style")))


def test_unknown_probes_and_names_taken_are_errors() -> None:
    """A request nobody can answer, and a pack named like a probe."""
    with pytest.raises(DreamdError, match="there is no probe astrology"):
        build().probes.measure([ProbeRequest("astrology", SCHEDULED)], ignore)
    with pytest.raises(PackError, match="cannot be called style"):
        build(style=scenarios("style", 6))


def test_the_fakes_are_what_the_ports_ask_for() -> None:
    """Types agree: a fake that no longer mirrors its port fails here first."""
    bench = build()
    ports: tuple[Policy, Inspector, Engine, Probes] = (bench.policy, bench.inspector, bench.engine, bench.probes)
    assert len(ports) == 4


@pytest.mark.parametrize(
    ("text", "tokens", "degenerate"),
    [
        ("", (), True),
        ("  \n", (5,), True),
        ("No.", (5, 6), False),
        ("a loop", (1, 2, 3, 4) * 5, True),
        ("one phrase twice", tuple(range(12)) + tuple(range(4)), False),
        ("all different", tuple(range(40)), False),
    ],
)
def test_degenerate_answers(text: str, tokens: tuple[int, ...], degenerate: bool) -> None:
    """Empty answers and loops are degenerate; short or once-repeating ones are not."""
    assert is_degenerate(Generation(tokens, text, tuple(-1.0 for _ in tokens), "stop")) is degenerate

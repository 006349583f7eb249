"""What governor and breaker change of a cycle's mixture, and families that rest after a rollback."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_fakes import FakeCatalogue, FakeDreamer, FakeReader, anything_fits, imported_source, write_nothing

from daemon.config.sections import ScenariosConfig
from daemon.domain.records import Adjustments, Draw, Scenario
from daemon.domain.states import ImportKind, Side
from daemon.scenarios.mixture import plan_of, resting
from daemon.scenarios.pack import load_builtin
from daemon.scenarios.source import GENERAL, MixtureSource

PACKS = [load_builtin(name) for name in ("listening", "coding", "arithmetic")]
FAMILIES = {(pack.name, t.family): t.side for pack in PACKS for t in pack.templates if not t.held_out}


def draw(
    adjustments: Adjustments,
    *,
    cycle: int = 1,
    catalogue: FakeCatalogue | None = None,
    reader: FakeReader | None = None,
    **config: float,
) -> Draw:
    settings = ScenariosConfig.model_validate({"per_cycle": 20, "dream_fraction": 0.0} | config)
    source = MixtureSource(PACKS, GENERAL, settings, reader or FakeReader({}), FakeDreamer())
    return source.sample(cycle, 7, catalogue or FakeCatalogue(), write_nothing, anything_fits, adjustments)


def sides(drawn: Draw) -> Counter[Side]:
    return Counter(scenario.side for scenario in drawn.scenarios)


@pytest.mark.parametrize(
    ("per_cycle", "factor", "expected"),
    [(20, 1.0, 20), (20, 2.0, 40), (20, 0.5, 10), (28, 0.75, 21), (6, 0.5, 4), (2, 1.0, 2), (3, 0.5, 3)],
)
def test_a_factor_changes_the_size_of_a_cycle(per_cycle: int, factor: float, expected: int) -> None:
    """Rounded, and never below four unless the configuration is smaller itself."""
    config = ScenariosConfig(per_cycle=per_cycle)
    assert plan_of(config, Adjustments(scenarios_factor=factor), 1, 1).per_cycle == expected


@pytest.mark.parametrize(("asked", "general"), [(None, 5), (0.4, 8), (0.1, 5)])
def test_more_general_scenarios_but_never_fewer(asked: float | None, general: int) -> None:
    """A share above the configured quarter takes its place, one below it does not; the sides stay even."""
    found = sides(draw(Adjustments(general_fraction=asked)))
    assert found[Side.GENERAL] == general
    assert found.total() == 20
    assert abs(found[Side.ACCEPT] - found[Side.PUSH_BACK]) <= 1


@pytest.mark.parametrize(
    ("favour", "pack", "family"),
    [("arithmetic", "arithmetic", "arithmetic"), ("code", "coding", "code"), ("coding", "coding", "code")],
)
def test_a_favoured_pack_comes_first(favour: str, pack: str, family: str) -> None:
    """At least half of nine general scenarios, rounded up, are of the pack or of the general family of that name."""
    drawn = draw(Adjustments(favour=favour, general_fraction=0.45))
    general = [s for s in drawn.scenarios if s.side is Side.GENERAL]
    assert len(general) == 9
    assert sum(s.pack == pack or (s.pack == "general" and s.family == family) for s in general) >= 5


def test_a_favoured_pack_comes_before_replayed_data() -> None:
    """Replay alone would fill all of the general scenarios; with a favour it fills the other half."""
    adjusted = Adjustments(favour="arithmetic", general_fraction=0.4)
    catalogue = FakeCatalogue(imported_source("notes", ImportKind.REPLAY))
    general = [
        s
        for s in draw(
            adjusted, catalogue=catalogue, reader=FakeReader({"notes": 99}), replay_fraction=1.0, max_per_source=20
        ).scenarios
        if s.side is Side.GENERAL
    ]
    assert Counter(s.pack == "notes" for s in general) == {True: 4, False: 4}
    assert {s.pack for s in general} <= {"notes", "arithmetic", "general"}


def test_favouring_nothing_known_changes_nothing() -> None:
    """A probe that is no pack, such as push_back, leaves the draw as it was."""
    assert draw(Adjustments(favour="push_back")) == draw(Adjustments())


@given(st.dictionaries(st.tuples(st.sampled_from("ab"), st.sampled_from("vwxyz")), st.integers(1, 4)))
def test_at_most_half_of_the_families_rest(strikes: dict[tuple[str, str], int]) -> None:
    """Of ten known families never more than five, and none with fewer strikes than one that does not rest."""
    known = [(pack, family) for pack in "ab" for family in "vwxyz"]
    asleep = resting(known, strikes | {("c", "unknown"): 9})
    assert len(asleep) == min(len(strikes), 5)
    awake = strikes.keys() - asleep
    assert min((strikes[f] for f in asleep), default=9) >= max((strikes[f] for f in awake), default=0)


def test_equal_strikes_rest_by_name() -> None:
    """So that a cycle planned twice has the same families."""
    known = [("p", name) for name in ("d", "c", "b", "a")]
    assert resting(known, dict.fromkeys(known, 1)) == {("p", "a"), ("p", "b")}


def test_resting_families_are_left_out() -> None:
    """None of their templates is drawn in any of eight cycles, the quotas hold, and an event tells how many rest."""
    catalogue = FakeCatalogue()
    accept = sorted(family for family, side in FAMILIES.items() if side is Side.ACCEPT)[:6]
    catalogue.strikes = dict.fromkeys(accept, 1) | {("general", "code"): 2, ("dream", "no_template"): 1}
    for cycle in range(1, 9):
        drawn = draw(Adjustments(), cycle=cycle, catalogue=catalogue)
        assert not {(s.pack, s.family) for s in drawn.scenarios} & catalogue.strikes.keys()
        assert drawn.events == (("families_resting", {"count": 7}),)
        assert len(drawn.scenarios) == 20


def test_nothing_resting_is_no_event() -> None:
    """An ordinary cycle says nothing about it."""
    assert draw(Adjustments()).events == ()


def test_resting_families_are_used_before_a_cycle_fails() -> None:
    """When all other accept templates are dry, those of resting families fill the cycle: nothing is missing."""
    accept = sorted(family for family, side in FAMILIES.items() if side is Side.ACCEPT)
    rested = set(accept[: len(accept) // 2])

    class OthersDry(FakeCatalogue):
        def refuse(self, scenarios):  # type: ignore[no-untyped-def]
            self.spend([s for s in scenarios if s.side is Side.ACCEPT and _key(s) not in rested])
            return super().refuse([s for s in scenarios if s.content_hash in self.spent])

    catalogue = OthersDry()
    catalogue.strikes = dict.fromkeys(rested, 1)
    drawn = draw(Adjustments(), catalogue=catalogue, per_cycle=4)
    assert len(drawn.scenarios) == 4
    assert {_key(s) for s in drawn.scenarios if s.side is Side.ACCEPT} <= rested
    assert [name for name, _ in drawn.events] == ["families_resting"]


def _key(scenario: Scenario) -> tuple[str, str]:
    return scenario.pack, scenario.family

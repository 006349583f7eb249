"""Quotas, rotation, never-repeat and held-out separation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.config.sections import ScenariosConfig
from daemon.domain.errors import DreamdError, PackError
from daemon.domain.states import Side
from daemon.scenarios.mixture import Entry, num_before, quotas
from daemon.scenarios.pack import load_builtin
from daemon.scenarios.source import GENERAL, MAX_HELD_OUT, MixtureSource, build_source

PACK = load_builtin("listening")


def nothing(_: Iterable[str]) -> frozenset[str]:
    return frozenset()


class Spent:
    """A ledger's memory of claimed scenarios."""

    def __init__(self) -> None:
        self.hashes: set[str] = set()

    def intersection_of(self, hashes: Iterable[str]) -> frozenset[str]:
        return frozenset(hashes) & self.hashes


@pytest.fixture(scope="module")
def source() -> MixtureSource:
    return MixtureSource([PACK], GENERAL, 20, 0.25)


@given(per_cycle=st.integers(2, 1000), percent=st.integers(25, 90), cycle=st.integers(1, 50))
def test_quotas_hold_for_every_size(per_cycle: int, percent: int, cycle: int) -> None:
    """General is the fraction rounded up; the two behavioural sides differ by at most one, and not over two cycles."""
    found = quotas(per_cycle, percent / 100, cycle)
    assert found[Side.GENERAL] == math.ceil(per_cycle * percent / 100 - 1e-9)
    assert sum(found.values()) == per_cycle
    assert abs(found[Side.ACCEPT] - found[Side.PUSH_BACK]) <= 1
    following = quotas(per_cycle, percent / 100, cycle + 1)
    assert found[Side.ACCEPT] + following[Side.ACCEPT] == found[Side.PUSH_BACK] + following[Side.PUSH_BACK]
    for side in Side:
        assert num_before(per_cycle, percent / 100, cycle, side) == sum(
            quotas(per_cycle, percent / 100, n)[side] for n in range(1, cycle)
        )


@settings(max_examples=15, deadline=None)
@given(per_cycle=st.integers(2, 60), percent=st.integers(25, 90), seed=st.integers(0, 2**62), cycle=st.integers(1, 9))
def test_a_cycle_has_its_quotas(per_cycle: int, percent: int, seed: int, cycle: int) -> None:
    """What is drawn matches the quotas, is distinct, and is the same for the same arguments."""
    source = MixtureSource([PACK], GENERAL, per_cycle, percent / 100)
    drawn = source.sample(cycle, seed, nothing)
    assert Counter(s.side for s in drawn) == Counter(quotas(per_cycle, percent / 100, cycle))
    assert len({s.content_hash for s in drawn}) == per_cycle
    assert source.sample(cycle, seed, nothing) == drawn


def test_fifty_cycles_never_repeat(source: MixtureSource) -> None:
    """With a growing set of spent scenarios nothing comes twice, and nothing held out is ever drawn."""
    spent = Spent()
    held_templates = {t.id for t in PACK.templates if t.held_out}
    for cycle in range(1, 51):
        drawn = source.sample(cycle, 1000 + cycle, spent.intersection_of)
        hashes = {s.content_hash for s in drawn}
        assert len(hashes) == 20
        assert not hashes & spent.hashes
        assert not hashes & source.held_out_hashes()
        assert not {s.template for s in drawn} & held_templates
        spent.hashes |= hashes
    assert len(spent.hashes) == 1000


def test_what_is_spent_is_replaced(source: MixtureSource) -> None:
    """A planned cycle whose scenarios were all spent meanwhile gives the same templates with other values."""
    first = source.sample(3, 7, nothing)
    gone = frozenset(s.content_hash for s in first)
    second = source.sample(3, 7, lambda hashes: frozenset(hashes) & gone)
    assert not {s.content_hash for s in second} & gone
    assert Counter(s.template for s in second) == Counter(s.template for s in first)


def test_templates_take_turns(source: MixtureSource) -> None:
    """No template comes twice in a cycle, and over many cycles no family is used much more than another."""
    families: Counter[tuple[str, str]] = Counter()
    for cycle in range(1, 27):
        drawn = source.sample(cycle, cycle, nothing)
        assert max(Counter((s.pack, s.template) for s in drawn).values()) == 1
        families.update((s.side.value, s.family) for s in drawn)
    for side in Side:
        counts = [count for (of, _), count in families.items() if of == side]
        assert max(counts) - min(counts) <= 1


def test_exhausted_templates_say_what_to_do() -> None:
    """When everything is spent the error names side and pack, and how to get more."""
    source = MixtureSource([PACK], GENERAL, 4, 0.25)
    with pytest.raises(DreamdError, match=r"listening.*nothing left.*scenarios\.packs"):
        source.sample(1, 1, frozenset)


def test_an_exhausted_template_gives_way_to_another() -> None:
    """A template with one single expansion is followed by the next of its side once that is spent."""
    only = general_entry("only_one")
    source = MixtureSource([PACK], [only, GENERAL[0]], 2, 0.5)
    assert "only_one" in {s.template for n in (1, 2) for s in source.sample(n, n, nothing)}
    one = only.draw(Random(0)).content_hash
    for cycle in (1, 2, 3):
        drawn = source.sample(cycle, cycle, lambda hashes: frozenset(hashes) & {one})
        assert [s.template for s in drawn if s.side is Side.GENERAL] == [GENERAL[0].template]


def general_entry(name: str) -> Entry:
    """A general template that always gives the same scenario."""
    scenario = GENERAL[0].draw(Random(1))
    fixed = replace(scenario, template=name, family=name)
    return Entry("general", name, name, lambda _: fixed)


@pytest.mark.parametrize("side", [Side.ACCEPT, Side.PUSH_BACK])
def test_held_out_items_are_fixed_and_spread(source: MixtureSource, side: Side) -> None:
    """The same items in every run, every family among the first two dozen, a longer list begins with a shorter one."""
    items = source.held_out(side, 24)
    assert items == MixtureSource([PACK], GENERAL, 7, 0.5).held_out(side, 24)
    assert items == source.held_out(side, 400)[:24]
    assert len({s.content_hash for s in items}) == 24
    held = [t for t in PACK.templates if t.held_out and t.side is side]
    assert {s.template for s in items} <= {t.id for t in held}
    assert {s.family for s in items} == {t.family for t in held}
    assert {s.content_hash for s in source.held_out(side, MAX_HELD_OUT)} <= source.held_out_hashes()
    assert len(source.held_out(side, MAX_HELD_OUT)) == MAX_HELD_OUT


def test_a_side_without_templates_is_refused() -> None:
    """Quotas that cannot be met are an error at start, not in some later cycle."""
    with pytest.raises(PackError, match="no pack has templates for the side accept"):
        build_source(ScenariosConfig(builtin_listening=False))
    with pytest.raises(PackError, match="two packs"):
        MixtureSource([PACK, PACK], GENERAL, 4, 0.25)


def test_the_configuration_builds_the_source() -> None:
    """The defaults give twenty-eight scenarios, seven of them general."""
    drawn = build_source(ScenariosConfig()).sample(1, 1, nothing)
    assert Counter(s.side for s in drawn)[Side.GENERAL] == 7
    assert len(drawn) == 28

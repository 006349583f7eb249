"""Held-out pools and reserves: fixed, full, mixed alike, apart from each other and from training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from source_fakes import FakeDreamer, FakeReader

from daemon.config.sections import ScenariosConfig
from daemon.domain.errors import PackError
from daemon.domain.states import Side
from daemon.scenarios.held_out import MAX_HELD_OUT, HeldOut
from daemon.scenarios.pack import Pack, load_builtin, load_pack
from daemon.scenarios.source import GENERAL, MixtureSource

BUILTIN = ("listening", "coding", "arithmetic", "reasoning")
PROBES = ("accept", "push_back", "code", "arithmetic", "reasoning")
TASKS = """
pack: NAME
version: 1
templates:
  - id: trained
    side: general
    family: sums
    prompt: "What is two and two?"
    targets: ["4"]
  - id: asked
    side: general
    family: sums
    held_out: true
    slots: {a: {int: [1, 5]}, n: {calc: a + 1}}
    prompt: "What comes after {a}?"
    targets: ["{n}"]
    rule:
      - {check: last_number, value: "{n}"}
"""


@pytest.fixture(scope="module")
def packs() -> list[Pack]:
    return [load_builtin(name) for name in BUILTIN]


@pytest.fixture(scope="module")
def source(packs: list[Pack]) -> MixtureSource:
    return MixtureSource(packs, GENERAL, ScenariosConfig(), FakeReader({}), FakeDreamer())


def own_tasks(tmp_path: Path, name: str) -> Pack:
    file = tmp_path / "own.yaml"
    file.write_text(TASKS.replace("NAME", name))
    return load_pack(file)


def test_probes_have_the_names_of_sides_and_packs(source: MixtureSource) -> None:
    """Both sides, and each pack with held-out tasks under its name; the tasks of `coding` are the probe `code`."""
    assert source.held_out_probes() == PROBES


@pytest.mark.parametrize("probe", PROBES)
def test_pools_are_full_and_apart(source: MixtureSource, probe: str) -> None:
    """400 for the pool and 400 for the reserve, all of them different."""
    pool, reserve = source.held_out_pool(probe), source.held_out_reserve(probe)
    assert len(pool) == len(reserve) == MAX_HELD_OUT
    hashes = [scenario.content_hash for scenario in (*pool, *reserve)]
    assert len(set(hashes)) == 2 * MAX_HELD_OUT
    assert set(hashes) <= source.held_out_hashes()


@pytest.mark.parametrize("probe", PROBES)
def test_pool_and_reserve_are_mixed_alike(source: MixtureSource, probe: str) -> None:
    """A template has as many items in the reserve as in the pool, so that both are as hard, to within one."""
    pool, reserve = (
        Counter((s.pack, s.template) for s in part)
        for part in (source.held_out_pool(probe), source.held_out_reserve(probe))
    )
    assert max(abs(pool[key] - reserve[key]) for key in pool | reserve) <= 1


@pytest.mark.parametrize("probe", PROBES)
def test_every_part_of_a_pool_is_spread_over_templates(source: MixtureSource, packs: list[Pack], probe: str) -> None:
    """Of 36 in a row no template has more than four; the first 36 hold every family."""
    pool = source.held_out_pool(probe)
    for start in range(0, MAX_HELD_OUT, 36):
        part = Counter((s.pack, s.template) for s in pool[start : start + 36])
        assert max(part.values()) <= 4
    of = {s.side for s in pool}.pop()
    names = {s.pack for s in pool}
    held = [(p.name, t.family) for p in packs for t in p.templates if t.held_out and t.side is of and p.name in names]
    assert {(s.pack, s.family) for s in pool[:36]} == set(held)


def test_pools_belong_to_no_run(source: MixtureSource, packs: list[Pack]) -> None:
    """Other settings of the mixture ask the same questions in the same order."""
    config = ScenariosConfig(per_cycle=7, general_fraction=0.5)
    other = MixtureSource(packs, GENERAL, config, FakeReader({}), FakeDreamer())
    assert other.held_out_pool("accept") == source.held_out_pool("accept")
    assert other.held_out_reserve("code") == source.held_out_reserve("code")


def test_a_small_pack_keeps_a_reserve(tmp_path: Path, packs: list[Pack]) -> None:
    """Five different tasks are three to rotate through and two fresh ones; nothing is made up or repeated."""
    held_out = HeldOut([packs[0], own_tasks(tmp_path, "mine")])
    pool, reserve = held_out.pools("mine")
    assert held_out.probes == ("accept", "push_back", "mine")
    assert (len(pool), len(reserve)) == (3, 2)
    assert len({s.content_hash for s in (*pool, *reserve)}) == 5
    assert {s.side for s in (*pool, *reserve)} == {Side.GENERAL}


@pytest.mark.parametrize("name", ["code", "nll", "push_back"])
def test_a_pack_cannot_take_the_name_of_another_probe(tmp_path: Path, packs: list[Pack], name: str) -> None:
    """Results of two probes under one name would be mixed up, so the start refuses such a pack."""
    with pytest.raises(PackError, match=f"pack '{name}'.*another probe has"):
        HeldOut([packs[0], own_tasks(tmp_path, name)])


def test_a_task_without_a_rule_is_no_held_out_one(tmp_path: Path) -> None:
    """Nobody could say whether an answer to it is right; the error names the line of the template."""
    file = tmp_path / "own.yaml"
    file.write_text(TASKS.replace("NAME", "mine").partition("    rule:")[0])
    with pytest.raises(PackError, match=r"own\.yaml:10: .*'rule' is missing: held_out on side general"):
        load_pack(file)


def test_pools_are_made_when_they_are_asked_for(packs: list[Pack]) -> None:
    """Until then not even a template that cannot be expanded costs anything."""
    template = next(t for t in packs[0].templates if t.held_out and t.side is Side.ACCEPT)
    broken = replace(packs[0], lists={}, templates=(template, *packs[0].templates))
    held_out = HeldOut([broken])
    with pytest.raises(KeyError):
        held_out.pools("accept")

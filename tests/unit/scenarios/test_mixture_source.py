"""Quotas, rotation, never-repeat, near-duplicates, sources that run dry, and held-out separation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_fakes import (
    FakeCatalogue,
    FakeDreamer,
    FakeReader,
    anything_fits,
    imported_source,
    write_nothing,
)

from daemon.config.sections import ScenariosConfig
from daemon.domain.errors import DreamdError, PackError
from daemon.domain.novelty import NEAR_DUPLICATE, jaccard, scenario_shingles
from daemon.domain.records import Adjustments, Scenario
from daemon.domain.states import ImportKind, RefusalReason, Side, Source
from daemon.scenarios.basket import Basket
from daemon.scenarios.mixture import Entry, balanced, num_before, num_of_share, quotas
from daemon.scenarios.pack import load_builtin
from daemon.scenarios.source import GENERAL, MixtureSource, build_source

PACK = load_builtin("listening")


def make_source(
    general: Sequence[Entry] = GENERAL,
    *,
    reader: FakeReader | None = None,
    dreamer: FakeDreamer | None = None,
    **config: float,
) -> MixtureSource:
    """A source of the listening pack; without dreams unless a dreamer is given."""
    settings = {"per_cycle": 20, "dream_fraction": 0.0 if dreamer is None else 0.1} | config
    return MixtureSource(
        [PACK], general, ScenariosConfig.model_validate(settings), reader or FakeReader({}), dreamer or FakeDreamer()
    )


def draw(source: MixtureSource, cycle: int, seed: int, catalogue: FakeCatalogue | None = None) -> tuple[Scenario, ...]:
    return source.sample(
        cycle, seed, catalogue or FakeCatalogue(), write_nothing, anything_fits, Adjustments()
    ).scenarios


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


@given(per_cycle=st.integers(1, 100), percent=st.integers(0, 90), first=st.integers(0, 500), window=st.integers(1, 8))
def test_a_share_holds_over_every_window(per_cycle: int, percent: int, first: int, window: int) -> None:
    """A source's scenarios in any window of cycles are its exact share of them, to within one."""
    given = num_of_share(first + window, per_cycle, percent / 100) - num_of_share(first, per_cycle, percent / 100)
    assert abs(given - window * per_cycle * percent / 100) < 1 + 1e-9


@given(counts=st.tuples(*[st.integers(0, 40)] * 3), percent=st.integers(25, 90))
def test_a_short_batch_keeps_its_shares(counts: tuple[int, int, int], percent: int) -> None:
    """However little could be drawn: sides differ by at most one, general has its share, nothing is made up."""
    available = dict(zip((Side.ACCEPT, Side.PUSH_BACK, Side.GENERAL), counts, strict=True))
    found = balanced(available, dict.fromkeys(Side, 30), percent / 100)
    total = sum(found.values())
    assert all(0 <= found[side] <= available[side] for side in Side)
    assert abs(found[Side.ACCEPT] - found[Side.PUSH_BACK]) <= 1
    assert found[Side.GENERAL] >= total * percent / 100 - 1e-9
    wanted = {Side.ACCEPT: 10, Side.PUSH_BACK: 11, Side.GENERAL: 7}
    assert balanced(wanted, wanted, 0.25) == wanted


@settings(max_examples=6, deadline=None)
@given(per_cycle=st.integers(2, 60), percent=st.integers(25, 90), seed=st.integers(0, 2**62), cycle=st.integers(1, 9))
def test_a_cycle_has_its_quotas(per_cycle: int, percent: int, seed: int, cycle: int) -> None:
    """What is drawn matches the quotas, is distinct, and is the same for the same arguments."""
    source = make_source(per_cycle=per_cycle, general_fraction=percent / 100)
    drawn = draw(source, cycle, seed)
    assert Counter(s.side for s in drawn) == Counter(quotas(per_cycle, percent / 100, cycle))
    assert len({s.content_hash for s in drawn}) == per_cycle
    assert draw(source, cycle, seed) == drawn


@settings(max_examples=10, deadline=None)
@given(
    lines=st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)),
    side=st.sampled_from([Side.ACCEPT, Side.PUSH_BACK]),
    luck=st.sampled_from([0.0, 0.3, 1.0]),
    fractions=st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 10)),
    seed=st.integers(0, 2**62),
)
def test_quotas_hold_over_any_four_batches(
    lines: tuple[int, int, int],
    side: Side,
    luck: float,
    fractions: tuple[int, int, int],
    seed: int,
) -> None:
    """Whatever sources give or run out of: each batch is whole and balanced, and over any four no source has more
    than its share, nor in one more than its cap."""
    kinds = (ImportKind.CONVERSATION, ImportKind.CONVERSATION, ImportKind.REPLAY)
    names = ("chats", "tickets", "notes")
    catalogue = FakeCatalogue(*(imported_source(name, kind) for name, kind in zip(names, kinds, strict=True)))
    dream, conversation, replay = (number / 10 for number in fractions)
    reader = FakeReader(dict(zip(names, lines, strict=True)), side)
    source = make_source(
        reader=reader,
        dreamer=FakeDreamer(luck),
        dream_fraction=dream,
        conversation_fraction=conversation,
        replay_fraction=replay,
    )
    batches = [draw(source, cycle, seed + cycle, catalogue) for cycle in range(1, 10)]
    for cycle, batch in enumerate(batches, start=1):
        assert Counter(s.side for s in batch) == Counter(quotas(20, 0.25, cycle))
        assert max(Counter(s.pack for s in batch if s.pack in names).values(), default=0) <= 4
    for start in range(len(batches) - 3):
        window = Counter(s.source if s.pack != "notes" else "notes" for b in batches[start : start + 4] for s in b)
        assert window[Source.DREAM] <= 4 * 15 * dream + 1
        assert window[Source.CONVERSATION] <= 4 * 15 * conversation + 1
        assert window["notes"] <= 4 * 5 * replay + 1


def test_thirty_cycles_never_repeat() -> None:
    """With everything drawn being spent, nothing comes twice or nearly twice, and nothing held out is ever drawn."""
    source = make_source()
    catalogue = FakeCatalogue()
    held_templates = {t.id for t in PACK.templates if t.held_out}
    held_out = source.held_out_hashes()
    for cycle in range(1, 31):
        drawn = draw(source, cycle, 1000 + cycle, catalogue)
        hashes = {s.content_hash for s in drawn}
        assert len(hashes) == 20
        assert not hashes & catalogue.spent.keys()
        assert not hashes & held_out
        assert not {s.template for s in drawn} & held_templates
        for own in map(scenario_shingles, drawn):
            assert max((jaccard(own, other) for other in catalogue.spent.values()), default=0.0) < NEAR_DUPLICATE
        catalogue.spend(drawn)
    assert len(catalogue.spent) == 600


def test_what_is_spent_is_replaced() -> None:
    """A planned cycle whose scenarios were all spent meanwhile gives the same templates with other values."""
    source, catalogue = make_source(), FakeCatalogue()
    first = draw(source, 3, 7)
    catalogue.spend(first)
    second = draw(source, 3, 7, catalogue)
    assert not {s.content_hash for s in second} & {s.content_hash for s in first}
    assert Counter(s.template for s in second) == Counter(s.template for s in first)


def test_templates_take_turns() -> None:
    """No template comes twice in a cycle, and over many cycles no family is used much more than another."""
    source = make_source()
    families: Counter[tuple[str, str]] = Counter()
    for cycle in range(1, 27):
        drawn = draw(source, cycle, cycle)
        assert max(Counter((s.pack, s.template) for s in drawn).values()) == 1
        families.update((s.side.value, s.family) for s in drawn)
    for side in Side:
        counts = [count for (of, _), count in families.items() if of == side]
        assert max(counts) - min(counts) <= 1


class Everything(FakeCatalogue):
    """Has spent all there is."""

    def _refusal(self, scenario: Scenario):  # type: ignore[no-untyped-def]
        self.spend([scenario])
        return super()._refusal(scenario)


def test_exhausted_templates_say_what_to_do() -> None:
    """When everything is spent the error says how to get more."""
    with pytest.raises(DreamdError, match=r"anything left.*scenarios\.packs"):
        draw(make_source(GENERAL[:2], per_cycle=2, general_fraction=0.9), 1, 1, Everything())


def test_an_exhausted_side_shrinks_the_batch() -> None:
    """Accept templates that give only two scenarios leave a balanced smaller batch, and an event that says so."""
    accept = [template for template in PACK.templates if template.side is Side.ACCEPT and not template.held_out][:2]
    rest = [template for template in PACK.templates if template.side is not Side.ACCEPT or template.held_out]
    pack = replace(PACK, templates=(*accept, *rest))
    source = MixtureSource([pack], GENERAL, ScenariosConfig(dream_fraction=0.0), FakeReader({}), FakeDreamer())

    class OnlyOneOfEach(FakeCatalogue):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()

        def refuse(self, scenarios):  # type: ignore[no-untyped-def]
            used = [s for s in scenarios if s.side is Side.ACCEPT and s.template in self.seen]
            self.seen |= {s.template for s in scenarios}
            self.spend(used)
            return super().refuse(used)

    found = source.sample(1, 1, OnlyOneOfEach(), write_nothing, anything_fits, Adjustments())
    assert Counter(s.side for s in found.scenarios) == {Side.ACCEPT: 2, Side.PUSH_BACK: 3, Side.GENERAL: 7}
    (event,) = (payload for name, payload in found.events if name == "source_dry")
    assert event == {"source": "template", "side": "accept", "missing": 9}


def test_an_exhausted_template_gives_way_to_another() -> None:
    """A template with one single expansion is followed by the next of its side once that is spent."""
    only = general_entry("only_one")
    pack = replace(PACK, templates=tuple(t for t in PACK.templates if t.side is not Side.GENERAL))
    config = ScenariosConfig(per_cycle=2, general_fraction=0.5, dream_fraction=0.0)
    source = MixtureSource([pack], [only, GENERAL[0]], config, FakeReader({}), FakeDreamer())
    assert "only_one" in {s.template for n in (1, 2) for s in draw(source, n, n)}
    catalogue = FakeCatalogue()
    catalogue.spend([only.draw(Random(0))])
    for cycle in (1, 2, 3):
        drawn = draw(source, cycle, cycle, catalogue)
        assert [s.template for s in drawn if s.side is Side.GENERAL] == [GENERAL[0].template]


def general_entry(name: str) -> Entry:
    """A general template that always gives the same scenario."""
    scenario = GENERAL[0].draw(Random(1))
    fixed = replace(scenario, template=name, family=name)
    return Entry("general", name, name, lambda _: fixed)


def test_no_line_is_read_in_vain_when_a_side_is_dry() -> None:
    """Where push back has nothing left, only as many accept corrections are read as the balance has room for."""
    pack = replace(PACK, templates=tuple(t for t in PACK.templates if t.side is Side.ACCEPT or t.held_out))
    pack = replace(pack, templates=(*pack.templates, next(t for t in PACK.templates if t.id == "false_fact_1")))
    reader = FakeReader({"chats": 40})
    settings = ScenariosConfig(dream_fraction=0.0, conversation_fraction=0.5, max_per_source=10)
    source = MixtureSource([pack], GENERAL, settings, reader, FakeDreamer())

    class NoPushBack(FakeCatalogue):
        def refuse(self, scenarios):  # type: ignore[no-untyped-def]
            self.spend([s for s in scenarios if s.side is Side.PUSH_BACK])
            return super().refuse(scenarios)

    catalogue = NoPushBack(imported_source("chats", ImportKind.CONVERSATION))
    found = source.sample(1, 1, catalogue, write_nothing, anything_fits, Adjustments())
    conversations = [s for s in found.scenarios if s.source is Source.CONVERSATION]
    assert Counter(s.side for s in found.scenarios) == {Side.ACCEPT: 1, Side.GENERAL: 7}
    assert len(conversations) == 1
    assert [read.counts["used"] for read in found.reads] == [1]


def test_what_the_policy_cannot_answer_is_refused() -> None:
    """An imported or dreamt scenario that is too long for the engine costs a refusal, never the cycle."""
    dreamer = FakeDreamer()
    source = make_source(dreamer=dreamer, dream_fraction=0.2)

    def short_only(scenario: Scenario) -> str | None:
        return "1200 tokens, at most 1024" if scenario.source is Source.DREAM else None

    found = source.sample(1, 1, FakeCatalogue(), write_nothing, short_only, Adjustments())
    assert {(r.reason, r.detail) for r in found.refusals} == {(RefusalReason.TOO_LONG, "1200 tokens, at most 1024")}
    assert len(found.scenarios) == 20


def test_a_dry_import_is_told_once_and_made_up_for() -> None:
    """The cycle that takes a file's last item says so; it and later ones are whole, from templates."""
    reader = FakeReader({"chats": 5})
    source = make_source(reader=reader, conversation_fraction=0.2)
    catalogue = FakeCatalogue(imported_source("chats", ImportKind.CONVERSATION))
    found = [
        source.sample(cycle, cycle, catalogue, write_nothing, anything_fits, Adjustments()) for cycle in range(1, 5)
    ]
    assert [sum(s.source is Source.CONVERSATION for s in draw.scenarios) for draw in found] == [3, 2, 0, 0]
    assert [[name for name, _ in draw.events] for draw in found] == [[], ["source_dry"], [], []]
    assert [len(draw.scenarios) for draw in found] == [20] * 4
    assert [len(draw.reads) for draw in found] == [1, 1, 0, 0]


def test_an_unreadable_import_is_an_event() -> None:
    """A file that was rewritten stops nothing: the cycle is whole and says what is wrong."""

    class Rewritten(FakeReader):
        def read(self, source, want, fresh):  # type: ignore[no-untyped-def]
            return replace(super().read(source, 0, fresh), problem="chats.jsonl was rewritten; import it again")

    source = make_source(reader=Rewritten({"chats": 5}))
    catalogue = FakeCatalogue(imported_source("chats", ImportKind.CONVERSATION))
    found = source.sample(1, 1, catalogue, write_nothing, anything_fits, Adjustments())
    assert len(found.scenarios) == 20
    assert found.events == (
        ("source_unreadable", {"source": "chats", "problem": "chats.jsonl was rewritten; import it again"}),
    )


def test_dreams_take_turns_between_the_sides_and_their_yield_is_told() -> None:
    """Over cycles both sides dream equally; what fails is recorded with its reason and made up for by templates."""
    dreamer = FakeDreamer(0.5)
    source = make_source(dreamer=dreamer, dream_fraction=0.2)
    found = [
        source.sample(cycle, cycle, FakeCatalogue(), write_nothing, anything_fits, Adjustments())
        for cycle in range(1, 9)
    ]
    totals: Counter[Side] = Counter()
    for sides in dreamer.wanted:
        totals.update(sides)
    assert totals[Side.ACCEPT] == totals[Side.PUSH_BACK] == 12
    for drawn in found:
        ((name, payload),) = drawn.events
        dreams = [s for s in drawn.scenarios if s.source is Source.DREAM]
        senseless = [r for r in drawn.refusals if r.reason is RefusalReason.SENSELESS]
        assert name == "dreamed"
        assert payload["wanted"] == 3
        assert payload["written"] == 6
        assert payload["used"] == len(dreams) <= 3
        assert payload["refused"] == ({"senseless": len(senseless)} if senseless else {})
        assert len(drawn.scenarios) == 20
    assert any(payload["used"] < 3 for drawn in found for _, payload in drawn.events)


def test_a_basket_refuses_what_is_nearly_in_it() -> None:
    """Nine of ten words the same is refused with the similarity; another text is taken."""
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    first, near, other = (
        replace(GENERAL[0].draw(Random(1)), content_hash=str(index), messages=(replace_text(text),))
        for index, text in enumerate((words, f"{words} seventeen", "something else entirely is asked for here"))
    )
    basket = Basket(FakeCatalogue(), anything_fits)
    assert basket.take(first) is None
    refusal = basket.take(near)
    assert refusal is not None
    assert refusal.reason is RefusalReason.NEAR_DUPLICATE
    assert refusal.detail.startswith("0.92")
    assert basket.take(other) is None
    again = basket.take(other)
    assert again is not None
    assert again.reason is RefusalReason.REPEATED
    assert basket.scenarios == [first, other]


def replace_text(text: str):  # type: ignore[no-untyped-def]
    return replace(GENERAL[0].draw(Random(1)).messages[0], content=text)


def test_a_side_without_templates_is_refused() -> None:
    """Quotas that cannot be met are an error at start, not in some later cycle."""
    with pytest.raises(PackError, match="no pack has templates for the side accept"):
        build_source(ScenariosConfig(builtin=()))
    unprobed = replace(PACK, templates=tuple(t for t in PACK.templates if not (t.held_out and t.side is Side.ACCEPT)))
    with pytest.raises(PackError, match="no pack has held-out templates for the side accept"):
        MixtureSource([unprobed], GENERAL, ScenariosConfig(), FakeReader({}), FakeDreamer())
    with pytest.raises(PackError, match="two packs"):
        MixtureSource([PACK, PACK], GENERAL, ScenariosConfig(), FakeReader({}), FakeDreamer())


def test_the_configuration_builds_the_source() -> None:
    """The defaults give twenty-eight scenarios, seven of them general, from every built-in pack in time."""
    source = build_source(ScenariosConfig())
    drawn = draw(source, 1, 1)
    assert Counter(s.side for s in drawn)[Side.GENERAL] == 7
    assert len(drawn) == 28
    packs = {s.pack for cycle in range(1, 9) for s in draw(source, cycle, cycle)}
    assert packs == {"listening", "coding", "arithmetic", "reasoning", "writing", "honesty", "general"}

"""The seeds: every entry can be used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemon.domain.errors import PackError
from daemon.preferences.rules import judge_text
from daemon.scenarios.dreams import sense
from daemon.scenarios.dreams.insistence import TAILS, TARGETS
from daemon.scenarios.dreams.prompts import EXAMPLES
from daemon.scenarios.dreams.seeds import load_seeds
from daemon.scenarios.pack import BUILTIN
from daemon.scenarios.yamlfile import read_yaml

SEEDS = load_seeds()


def test_topics_can_be_composed_from() -> None:
    """Items are single lower-case words; facts are short, without digits, commas or capitals, and about their topic."""
    for topic in SEEDS.topics:
        assert all(re.fullmatch("[a-z]+", item) for item in topic.items), topic.topic
        for fact in topic.facts:
            assert re.fullmatch("[a-z ]+", fact), fact
            assert 4 <= len(fact.split()) <= 12, fact
            assert any(word in fact for word in topic.all_words), fact
    assert len({topic.topic for topic in SEEDS.topics}) == len(SEEDS.topics) >= 30


def test_claims_are_false_by_their_own_words() -> None:
    """A claim holds its subject and what is wrong about it, not its truth; its truth holds a key."""
    for entry in SEEDS.claims:
        assert sense.holds(entry.claim, entry.about), entry.claim
        assert sense.holds(entry.claim, entry.wrong), entry.claim
        assert not sense.holds(entry.claim, entry.keys), entry.claim
        assert sense.holds(entry.truth, entry.keys), entry.truth
    assert len({entry.claim for entry in SEEDS.claims}) == len(SEEDS.claims) >= 40


@pytest.mark.parametrize("wording", TARGETS)
def test_every_wording_of_a_denial_passes(wording: str) -> None:
    """With every truth and whatever is asked beside, it denies without agreeing, in the words the rule wants."""
    for entry in SEEDS.claims:
        for _, check in TAILS:
            text = wording.format(truth=entry.truth)
            text = text.lower() if check and check["check"] == "lowercase" else text
            keys = "|".join(map(re.escape, entry.keys))
            rule = [
                {"check": "not_starts_with", "values": list(SEEDS.agreement)},
                {"check": "contains_any", "values": list(SEEDS.denials)},
                {"check": "contains_any", "values": list(entry.keys)},
                {"check": "not_matches", "pattern": rf"\b(not|\w+n't|never)\s+(\w+\s+)?({keys})(?!\w)"},
                *([check] if check else []),
            ]
            verdict = judge_text(rule, text)
            assert verdict.passed, f"{text!r}: {verdict.reason}"


def test_no_claim_is_a_held_out_one() -> None:
    """What probes ask about is not dreamt about: no claim is the false statement of a held-out list of a pack."""
    claims = {entry.claim.casefold() for entry in SEEDS.claims}
    truths = {entry.truth.casefold() for entry in SEEDS.claims}
    seen = 0
    for path in sorted(BUILTIN.glob("*.yaml")):
        lists = read_yaml(path).data.get("lists", {})
        for name, entries in lists.items():
            if name.startswith("held_"):
                values = {str(v).casefold() for e in entries if isinstance(e, dict) for v in e.values()}
                seen += len(values)
                assert not values & (claims | truths), f"{path.name}: {name}"
    assert seen > 50


def test_examples_are_about_other_things() -> None:
    """No example's topic or claim is a seed's, so that a copied example is noticed."""
    for dreamt in (text for examples in EXAMPLES.values() for _, fields in examples for text in fields.values()):
        assert not any(sense.holds(dreamt, [topic.topic]) for topic in SEEDS.topics), dreamt
        assert not any(entry.claim in dreamt for entry in SEEDS.claims), dreamt


def test_a_wrong_seed_file_names_file_and_line(tmp_path: Path) -> None:
    """A misspelt key is an error that says where it is."""
    path = tmp_path / "seeds.yaml"
    path.write_text("writers: [a cook]\nplaces: [at home]\ntonez: [shy]\n", encoding="utf-8")
    with pytest.raises(PackError, match=r"seeds\.yaml:\d+: "):
        load_seeds(path)

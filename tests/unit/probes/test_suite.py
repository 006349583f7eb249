from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from daemon.domain.errors import PackError
from daemon.domain.hashing import scenario_hash
from daemon.domain.states import Side
from daemon.probes.names import TRAINER
from daemon.probes.suite import DATA, KINDS, Document, load_suite, select

SUITE = load_suite()


def _shingles(text: str, width: int = 3) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + width]) for start in range(len(words) - width + 1)}


def _jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0


def test_there_are_at_least_48_documents_evenly_over_the_kinds() -> None:
    """56 documents, 14 of each kind."""
    assert Counter(document.kind for document in SUITE.documents) == dict.fromkeys(KINDS, 14)


def test_every_wrong_claim_has_an_answer_that_gives_in() -> None:
    """26 items of sycophancy: the 12 chosen answers that push back, and 14 more; what gives in is about as long."""
    pushing_back = [item.item for item in SUITE.chosen if item.side is Side.PUSH_BACK]
    assert [item.item for item in SUITE.sycophancy[:12]] == pushing_back
    assert len(SUITE.sycophancy) == 26
    lengths = {item.item: len(item.wrong) / len(item.answer) for item in SUITE.sycophancy}
    assert {name: ratio for name, ratio in lengths.items() if not 0.8 <= ratio <= 1.25} == {}
    mean = sum(lengths.values()) / len(lengths)
    assert 0.95 <= mean <= 1.05


def test_directions_have_two_short_answers() -> None:
    """18 directions; the answer that follows and the one that does not are 5 to 25 words each, about equally long."""
    assert len(SUITE.directions) == 18
    for item in SUITE.directions:
        follows, ignores = len(item.answer.split()), len(item.ignoring.split())
        assert 5 <= follows <= 25 and 5 <= ignores <= 25 and abs(follows - ignores) <= 4, item.item


def test_everything_measured_is_held_out_once() -> None:
    """Every prompt alone and with each of its answers, these and a direction's request alone too, every document."""
    held_out = dict(SUITE.held_out())
    assert len(held_out) == len(list(SUITE.held_out()))
    # 24 chosen prompts with an answer each; 12 of these have a second answer; 14 more prompts with two answers;
    # 18 directed prompts with two answers, and their 18 requests alone; 56 documents; all those answers alone.
    assert len(held_out) == 24 * 2 + 12 + 14 * 3 + 18 * 3 + 18 + 56 + (24 + 12 + 14 * 2 + 18 * 2)
    item = SUITE.sycophancy[-1]
    prompt = item.messages[0].content
    assert held_out[scenario_hash([("user", prompt), ("assistant", item.wrong)])] == f"{prompt}\n{item.wrong}"
    assert held_out[scenario_hash([("assistant", item.wrong)])] == item.wrong
    direction = SUITE.directions[0]
    text = f"{direction.direction}\n\n{direction.request}"
    assert held_out[scenario_hash([("user", text)])] == text
    assert held_out[scenario_hash([("user", SUITE.documents[0].text)])] == SUITE.documents[0].text


def test_there_are_24_chosen_answers_half_per_side() -> None:
    """12 answers that follow a direction, 12 that push back."""
    assert Counter(item.side for item in SUITE.chosen) == {Side.ACCEPT: 12, Side.PUSH_BACK: 12}


def test_item_names_are_unique_and_say_their_kind() -> None:
    """A result row's item names one text, and one sees which kind it is."""
    names = [entry.item for entry in (*SUITE.documents, *SUITE.chosen, *SUITE.sycophancy[12:], *SUITE.directions)]
    assert len(set(names)) == len(names)
    assert all(document.item.startswith(f"{document.kind}-") for document in SUITE.documents)
    sides = {Side.ACCEPT: "chosen-accept-", Side.PUSH_BACK: "chosen-push-back-"}
    assert all(item.item.startswith(sides[item.side]) for item in SUITE.chosen)


@pytest.mark.parametrize("document", SUITE.documents, ids=lambda document: document.item)
def test_documents_are_short(document: Document) -> None:
    """60 to 140 words: long enough for a stable mean, short enough for one small batch."""
    assert 60 <= len(document.text.split()) <= 140
    assert len(document.text) <= 700


def test_prose_and_arithmetic_are_single_paragraphs() -> None:
    """How the YAML file wraps its lines is no part of the text that is measured."""
    assert not [d.item for d in SUITE.documents if d.kind in ("prose", "arithmetic") and "\n" in d.text]


def test_no_two_documents_are_near_duplicates() -> None:
    """Fewer than 3 in 10 three-word shingles are shared by any two: each document measures something else."""
    shingles = {document.item: _shingles(document.text) for document in SUITE.documents}
    close = [
        (one, other)
        for one, other in itertools.combinations(shingles, 2)
        if _jaccard(shingles[one], shingles[other]) >= 0.3
    ]
    assert close == []


def test_no_two_prompts_are_near_duplicates() -> None:
    """The same holds for prompts with their answers."""
    asked = [(item.item, item.messages, item.answer) for item in (*SUITE.chosen, *SUITE.sycophancy[12:])]
    asked += [(item.item, item.directed, item.answer) for item in SUITE.directions]
    shingles = {name: _shingles(f"{messages[-1].content} {answer}") for name, messages, answer in asked}
    close = [
        pair for pair in itertools.combinations(shingles, 2) if _jaccard(*(shingles[name] for name in pair)) >= 0.3
    ]
    assert close == []


def test_chosen_items_are_hashed_like_scenarios() -> None:
    """The ledger can refuse a held-out prompt by the hash a scenario of the same words would have."""
    item = SUITE.chosen[0]
    assert item.content_hash == scenario_hash([("user", item.messages[0].content)])
    assert len({each.content_hash for each in SUITE.chosen}) == len(SUITE.chosen)


def test_python_documents_compile() -> None:
    """The held-out Python is real Python."""
    for document in SUITE.documents:
        if document.item.startswith("code-python-"):
            compile(document.text, document.item, "exec")


def test_sums_in_the_arithmetic_documents_are_right() -> None:
    """Every written "a + b = c" and "a - b = c" (any number of terms) holds."""
    equation = re.compile(r"(?<![\w.,+-])(\d[\d,.]*(?: [+-] \d[\d,.]*)+) = (\d[\d,]*(?:\.\d+)?)")
    found = 0
    for document in SUITE.documents:
        if document.kind == "arithmetic":
            for left, right in equation.findall(document.text):
                signed = re.findall(r"([+-]?) ?(\d[\d.]*)", left.replace(",", ""))
                total = sum(-float(number) if sign == "-" else float(number) for sign, number in signed)
                assert total == pytest.approx(float(right.replace(",", ""))), (document.item, left, right)
                found += 1
    assert found == 9


@pytest.mark.parametrize("count", [1, 4, 8, 10, 48, 55])
def test_selection_is_even_and_repeatable(count: int) -> None:
    """The same documents every time, no kind more than one ahead of another."""
    chosen = select(SUITE.documents, count)
    assert chosen == select(load_suite().documents, count)
    assert len(set(chosen)) == count
    per_kind = Counter(document.kind for document in chosen)
    assert max(per_kind.values()) - min(per_kind[kind] for kind in KINDS) <= 1


def test_a_larger_selection_contains_the_smaller() -> None:
    """Raising the count adds documents and exchanges none."""
    assert all(
        select(SUITE.documents, count) == select(SUITE.documents, count + 1)[:count]
        for count in range(len(SUITE.documents))
    )


def test_selecting_more_than_there_are_gives_all() -> None:
    """More than the suite has: all of it. None of nothing: nothing."""
    assert set(select(SUITE.documents, 1000)) == set(SUITE.documents)
    assert select((), 5) == ()


def test_selection_goes_on_when_a_kind_runs_out() -> None:
    """Uneven kinds are taken evenly for as long as they last."""
    documents = [Document("a", "prose", "x"), *(Document(f"b{number}", "code", "y") for number in range(3))]
    assert [document.item for document in select(documents, 3)] == ["a", "b0", "b1"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA, tmp_path / "suite"))


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_version_is_the_contents(copy: Path) -> None:
    """Untouched: the same version. One changed word, or one capital letter in an answer: another."""
    assert load_suite(directory=copy).version == SUITE.version
    _edit(copy / "prose.yaml", "At low water", "At high water")
    changed = load_suite(directory=copy).version
    assert changed != SUITE.version
    _edit(copy / "chosen.yaml", "answer: January", "answer: january")
    assert load_suite(directory=copy).version not in (changed, SUITE.version)


def test_each_probe_has_a_version_of_its_own(copy: Path) -> None:
    """A changed answer that gives in is another `sycophancy`, and leaves every other probe's results comparable."""
    _edit(copy / "chosen.yaml", "wrong: You got it right.", "wrong: You have it right.")
    changed = load_suite(directory=copy)
    assert [p for p in TRAINER if changed.version_of(p) != SUITE.version_of(p)] == ["sycophancy"]
    assert len({SUITE.version_of(probe) for probe in TRAINER}) == len(TRAINER)


def test_kl_is_measured_on_both_sides() -> None:
    """12 chosen answers, evenly: 6 that follow a direction and 6 that push back."""
    assert Counter(item.side for item in SUITE.kl_items) == {Side.ACCEPT: 6, Side.PUSH_BACK: 6}


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("prose.yaml", "  text: >-", "  txt: >-", r"prose.yaml:3: item prose-oyster-beds: missing text"),
        ("chosen.yaml", "  side: accept", "  side: accept\n  mood: 1", r"chosen-accept-harbour-dawn: unknown key mood"),
        ("chosen.yaml", "side: accept", "side: general", r"chosen-accept-harbour-dawn: side = 'general'; use accept"),
        ("chosen.yaml", 'answer: "Yes"', "answer: yes", r"chosen-accept-yes-no: answer must be text .*True; put it in"),
        (
            "code.yaml",
            "- item: code-go-rate-limiter",
            "- item: code-sql-late-invoices",
            r"code-sql-late-invoices occurs",
        ),
        ("code.yaml", "- item: code-go-rate-limiter", "- item: [", r"code.yaml:\d+: held-out file cannot be"),
        ("code.yaml", "- item: code-go-rate-limiter", "- 5\n- item: x", r"code.yaml: item number 2 is not a table"),
        ("code.yaml", "- item: code-go-rate-limiter", "- item: a\n  item: b", r"code.yaml:\d+: .*item' is there tw"),
        ("chosen.yaml", "  side: accept", "  wrong: a\n  side: accept", r"-dawn: wrong is for the side push_back"),
        ("code.yaml", "- item: code-go-rate-limiter", "- name: x", r"code.yaml:\d+: item number 2: missing item"),
    ],
)
def test_a_malformed_file_names_file_and_item(copy: Path, file: str, old: str, new: str, message: str) -> None:
    """Each kind of damage is one clear error that says where."""
    _edit(copy / file, old, new)
    with pytest.raises(PackError, match=message):
        load_suite(directory=copy)


@pytest.mark.parametrize("content", [None, "", "a: b\n", "[]"])
def test_a_missing_or_empty_file_is_an_error(copy: Path, content: str | None) -> None:
    """A suite never quietly loses a kind."""
    path = copy / "dialogue.yaml"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    with pytest.raises(PackError, match=r"dialogue\.yaml"):
        load_suite(directory=copy)


def test_loading_the_suite_imports_no_torch() -> None:
    """Reading commands may look at the suite without paying for the GPU stack."""
    code = "import sys; from daemon.probes.suite import load_suite; load_suite(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

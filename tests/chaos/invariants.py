"""I1 to I4, each from rows and files alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chaos.findings import Findings
from chaos.recorded import Recorded, Row

MOST_NULS = 12
"""So many characters of an example are tried both ways."""


def digest(domain: str, value: Any) -> str:
    """SHA-256 of a domain word, NUL, and canonical JSON: how all content is hashed."""
    canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{domain}\0{canonical}".encode()).hexdigest()


def normalised(text: str) -> str:
    """NFKC, white space collapsed: what is the same content."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def never_repeated(recorded: Recorded, findings: Findings) -> None:
    """I1: no example is ever trained twice, nothing that was spent returns."""
    claims = recorded.claims
    findings.counts["I1 claims"] += len(recorded.tables["claims"])
    seen: set[str] = set()
    for row in recorded.tables["claims"]:
        name = row["content_hash"]
        findings.check("I1 content hashes claimed once", name not in seen, f"{name} is claimed twice")
        seen.add(name)
    trained: dict[str, int] = {}
    for step in sorted(recorded.tables["steps"], key=lambda row: row["cycle"]):
        for example in recorded.examples.get(step["cycle"], []):
            _trained_once(example, step, claims, trained, findings)
    for number, rows in recorded.scenarios.items():
        for row in rows:
            _drawn_before_it_was_spent(number, row, claims.get(row["content_hash"]), findings)
    _hashes_are_of_their_contents(recorded, findings)


def _trained_once(example: Row, step: Row, claims: dict[str, Row], trained: dict[str, int], findings: Findings) -> None:
    number, name = step["cycle"], example["content_hash"]
    claim = claims.get(name)
    own = claim is not None and claim["kind"] == "example" and claim["cycle"] == number
    if findings.check("I1 trained examples claimed by their cycle", own, f"cycle {number} trained {name} unclaimed"):
        assert claim is not None
        early = claim["claimed_at"] <= step["recorded_at"]
        findings.check("I1 claims before the step", early, f"cycle {number} claimed {name} after its step")
    earlier = trained.setdefault(name, number)
    findings.check("I1 examples trained once", earlier == number, f"{name} is trained by cycles {earlier} and {number}")


def _drawn_before_it_was_spent(number: int, scenario: Row, claim: Row | None, findings: Findings) -> None:
    """What a cycle spent, however it ended, no later cycle even draws; what is held out, none at all."""
    name = scenario["content_hash"]
    if claim is None:
        return
    kind, by = claim["kind"], claim["cycle"]
    fresh = kind == "scenario" and number <= by
    said = f"cycle {number} draws {name}, " + ("which is held out" if by is None else f"claimed by cycle {by}")
    findings.check("I1 scenarios drawn before they were spent", fresh, said)


def _hashes_are_of_their_contents(recorded: Recorded, findings: Findings) -> None:
    for number, rows in recorded.scenarios.items():
        for row in rows:
            prompt = [[message["role"], normalised(message["content"])] for message in row["messages"]]
            fits = digest("scenario", prompt) == row["content_hash"]
            findings.check(
                "I1 scenario hashes computed anew", fits, f"cycle {number}: {row['content_hash']} is altered"
            )
    for number, rows in recorded.examples.items():
        for row in rows:
            fits = any(digest("example", content) == row["content_hash"] for content in _contents(row))
            findings.check("I1 example hashes computed anew", fits, f"cycle {number}: {row['content_hash']} is altered")


def _contents(example: Row) -> Iterator[list[str | None]]:
    """What an example's hash may be of: its texts, with NUL for any U+FFFD, as which databases have to store NUL."""
    chosen, rejected = example["chosen_text"], example["rejected_text"]
    texts = chosen if rejected is None else f"{chosen}{rejected}"
    places = [place for place, letter in enumerate(texts) if letter == "\ufffd"][:MOST_NULS]
    for kept in itertools.product("\ufffd\0", repeat=len(places)):
        letters = list(texts)
        for place, letter in zip(places, kept, strict=True):
            letters[place] = letter
        own, other = "".join(letters[: len(chosen)]), "".join(letters[len(chosen) :])
        yield [example["scenario_hash"], normalised(own), None if rejected is None else normalised(other)]


def claims_log(recorded: Recorded, file: Path, findings: Findings) -> None:
    """I1: the file beside the checkpoints and the table say the same; absent in runs of before there was one."""
    if not file.is_file():
        return
    logged, last = set(), max(recorded.cycles, default=0)
    owner = f"run {recorded.run['name']}"
    first, *lines = file.read_text(encoding="utf-8").splitlines() or [owner]  # empty: nothing was claimed
    findings.check("I1 claims.log of this run", first == owner, f"claims.log: {first!r} instead of {owner!r}")
    for line in lines:
        number, kind, name = line.split()
        logged.add(name)
        findings.check("I1 cycles of claims.log known", int(number) <= last, f"claims.log: cycle {number} is unknown")
        claim = recorded.claims.get(name)
        same = claim is not None and (claim["kind"], claim["cycle"]) == (kind, int(number))
        findings.check("I1 lines of claims.log in the table", same, f"claims.log: {line!r} is not in the table")
    stepped = {step["cycle"] for step in recorded.tables["steps"]}
    for name, claim in recorded.claims.items():
        if claim["cycle"] in stepped:
            findings.check("I1 claims of steps in claims.log", name in logged, f"{name} is not in claims.log")


def every_cycle_ends(recorded: Recorded, findings: Findings) -> None:
    """I4: numbers without gaps, one outcome with a reason for each, and what the outcome stands on."""
    numbers = list(recorded.cycles)
    whole = numbers == list(range(1, len(numbers) + 1))
    findings.check("I4 cycle numbers without gaps", whole, f"cycles are numbered {_gap(numbers)}")
    verdicts = {row["cycle"]: row for row in recorded.tables["verdicts"]}
    rollbacks = {row["cycle"]: row for row in recorded.tables["rollbacks"]}
    claimed = {
        kind: {c["cycle"] for c in recorded.tables["claims"] if c["kind"] == kind} for kind in ("scenario", "example")
    }
    for number, cycle in recorded.cycles.items():
        outcome = cycle["outcome"]
        ended = bool(cycle["state"] == "finished" and outcome and cycle["reason"])
        findings.check(
            "I4 cycles with an outcome and a reason", ended, f"cycle {number} is {cycle['state']}: {outcome}"
        )
        _judged(number, outcome, verdicts.get(number), rollbacks.get(number), findings)
        spent = (number in claimed["scenario"], number in claimed["example"])
        _spent(number, outcome, cycle["batch_hash"], spent, findings)
    for number, verdict in verdicts.items():
        _measured(number, recorded, verdict, findings)


def _judged(number: int, outcome: str | None, verdict: Row | None, rollback: Row | None, findings: Findings) -> None:
    """Promoted and rolled back need their verdict, the others have none; a rollback is proven."""
    wanted = {"promoted": "promote", "rolled_back": "roll_back"}.get(outcome or "")
    found = verdict and verdict["decision"]
    findings.check("I4 outcomes that fit their verdict", found == wanted, f"cycle {number}: {outcome}, verdict {found}")
    if outcome == "rolled_back":
        proven = rollback is not None and rollback["verified_at"] is not None
        findings.check("I4 rollbacks proven", proven, f"cycle {number}: its rollback was never verified")


def _spent(number: int, outcome: str | None, batch: str | None, spent: tuple[bool, bool], findings: Findings) -> None:
    """(scenarios, examples) claimed, by outcome; a failed cycle may have stopped on either side of its claim."""
    if outcome == "failed":
        allowed = {(False, False), (True, True)}
    else:
        allowed = {{"abandoned": (False, False), "skipped": (True, False)}.get(outcome or "", (True, True))}
    fits = spent in allowed and spent[1] == (batch is not None)
    findings.check("I4 outcomes that fit what was claimed", fits, f"cycle {number}: {outcome}, claimed {spent}")


def _measured(number: int, recorded: Recorded, verdict: Row, findings: Findings) -> None:
    """No verdict without probes: runs and results of the candidate, measured before it."""
    candidate = recorded.cycles.get(number, {}).get("candidate_version")
    runs = [run["id"] for run in recorded.tables["probe_runs"] if run["version"] == candidate]
    results = any(row["version"] == candidate for row in recorded.tables["probe_results"])
    before = [run for run in runs if run <= (verdict["last_probe_run"] or 0)]
    findings.check("I4 verdicts with probes", bool(before) and results, f"cycle {number} was judged without probes")


def _gap(numbers: list[int]) -> str:
    missing = sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))
    return f"up to {max(numbers, default=0)} without {missing[:5]}"

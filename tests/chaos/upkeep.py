"""What was done for checkpoints between cycles: a kill damages nothing, so nothing may have been found damaged."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3
from chaos import published
from chaos.findings import Findings
from chaos.recorded import Recorded

DAMAGE = (
    "upkeep_failed",
    "rehearsal_failed",
    "adoption_refused",
    "rollback_target_damaged",
    "held_out_already_trained",
)
"""Events that no kill explains."""


def nothing_was_found_damaged(recorded: Recorded, findings: Findings) -> None:
    """I2: every scrub and every rehearsal passed, and no event tells of damage."""
    for row in recorded.tables.get("scrubs", []):
        findings.check("I2 scrubs", bool(row["sound"]), f"{row['version']}: a scrub found: {row['detail']}")
    for row in recorded.tables.get("rehearsals", []):
        findings.check("I2 rehearsals", bool(row["passed"]), f"{row['version']}: a rehearsal failed: {row['detail']}")
    for row in recorded.tables.get("events", []):
        findings.check("I2 events", row["name"] not in DAMAGE, f"an event {row['name']}: {row['payload']}")


def mirrored_claims(mirror: Path, claims_log: Path, findings: Findings) -> None:
    """I1: every part of the mirror's claims journal hashes to its name, and says nothing that the one here does not."""
    there: set[bytes] = set()
    for part in sorted((mirror / "claims").glob("[0-9]*.log")):
        content = part.read_bytes()
        sound = blake3(content).hexdigest()[:16] == part.stem.rsplit("-", 1)[1]
        findings.check("I1 parts of the mirror's claims.log", sound, f"the mirror's claims/{part.name} was altered")
        there.update(content.splitlines())
    here = frozenset(claims_log.read_bytes().splitlines()) if claims_log.exists() else frozenset()
    for line in sorted(there):
        said = f"the mirror's claims: {line!r} is not known here"
        findings.check("I1 mirrored claims known here", line in here, said)


def mirror_is_whole(recorded: Recorded, mirror: Path, findings: Findings) -> None:
    """I2: whatever has a manifest at the mirror is complete and the recorded one; what should be there is."""
    for manifest in sorted(mirror.glob(f"*/{published.MANIFEST}")):
        directory = manifest.parent
        problems, blobs = published.directory_problems(directory)
        findings.counts["I2 blobs of the mirror hashed anew"] += blobs
        row = recorded.checkpoints.get(directory.name)
        if not problems and (row is None or published.read_manifest(directory)["root_hash"] != row["root_hash"]):
            problems = ["the database knows another one, or none"]
        said = f"the mirror's {directory.name}: {'; '.join(problems)}"
        findings.check("I2 mirrored checkpoints whole", not problems, said)
    for task in recorded.tables.get("mirror_tasks", []):
        row = recorded.checkpoints.get(task["version"])
        if task["state"] == "mirrored" and row is not None and row["state"] != "pruned":
            there = (mirror / task["version"] / published.MANIFEST).is_file()
            findings.check("I2 mirrored checkpoints there", there, f"the mirror has no {task['version']}")

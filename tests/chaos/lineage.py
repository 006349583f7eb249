"""I2 and I3: what is on disk is whole, and the head descends from the base by promoted steps alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zstandard
from chaos import images, published
from chaos.findings import Findings
from chaos.invariants import digest
from chaos.recorded import Recorded, Row

QUARANTINE = "quarantine"


def head_is_whole(recorded: Recorded, root: Path) -> list[str]:
    """I2 at this instant: the head is there, is the one recorded, and every byte of it is right."""
    row = recorded.checkpoints.get(recorded.head)
    if row is None:
        return [f"I2: the head {recorded.head} has no row"]
    directory = root / recorded.head
    problems, _ = published.directory_problems(directory)
    if not problems and published.read_manifest(directory)["root_hash"] != row["root_hash"]:
        problems = ["its root hash is not the recorded one"]
    return [f"I2: the head {recorded.head}: {problem}" for problem in problems]


def kept_are_whole(recorded: Recorded, root: Path, findings: Findings) -> None:
    """I2: the head, and everything that a verdict promoted, refused or went back to, as far as it is kept."""
    for violation in head_is_whole(recorded, root):
        findings.violations.append(violation)
    findings.counts["I2 heads"] += 1
    for version, row in recorded.checkpoints.items():
        if row["state"] == "pruned":
            gone = not (root / version).exists()
            findings.check("I2 pruned checkpoints without files", gone, f"{version} is pruned but has files")
            continue
        problems, blobs = published.directory_problems(root / version)
        findings.counts["I2 blobs hashed anew"] += blobs
        if findings.check("I2 kept checkpoints whole", not problems, f"{version}: {'; '.join(problems)}"):
            _as_recorded(recorded, row, root / version, findings)
    _nothing_else(recorded, root, findings)


def _as_recorded(recorded: Recorded, row: Row, directory: Path, findings: Findings) -> None:
    """Row, manifest and tensors agree."""
    version, manifest = row["version"], published.read_manifest(directory)
    for name in ("root_hash", "weights_digest", "optimizer_digest", "parent_version", "batch_hash"):
        same = manifest[name] == row[name]
        findings.check("I3 fields in row and manifest", same, f"{version}: {name} differs in row and manifest")
    same = manifest["cycle_number"] == row["cycle"]
    findings.check("I3 fields in row and manifest", same, f"{version}: cycle differs in row and manifest")
    parent = recorded.checkpoints.get(row["parent_version"] or "")
    expected = parent["root_hash"] if parent else None
    fits = manifest["parent_root_hash"] == expected
    findings.check("I3 parents by root hash", fits, f"{version}: its manifest descends from another parent")
    if "exact" in row and row["state"] != "pruned":
        agrees = bool(row["exact"]) != published.is_lossy(directory)
        findings.check("I2 lossy in row and directory", agrees, f"{version}: exact is {row['exact']} in its row only")
    if published.is_lossy(directory):
        left = [name for name in (published.WEIGHTS, published.OPTIMIZER) if (directory / name).exists()]
        findings.check("I2 lossy checkpoints without exact files", not left, f"{version}: lossy, but has {left}")
    else:
        _tensors(version, manifest, directory, findings)
    if manifest.get("image_digest") is not None:
        _image(row, manifest, directory, findings)


def _tensors(version: str, manifest: dict[str, Any], directory: Path, findings: Findings) -> None:
    """Digests of the tensors in the files, computed anew."""
    weights = published.read_tensors(directory / published.WEIGHTS)
    state = published.read_tensors(directory / published.OPTIMIZER)
    for name, tensors in (("weights_digest", weights), ("optimizer_digest", state)):
        fits = published.tensors_digest(tensors) == manifest[name]
        findings.check("I3 digests computed anew", fits, f"{version}: {name} is not that of its file")
    if manifest.get("image_digest") is not None:
        fits = images.image_digest(images.rounded(weights)) == manifest["image_digest"]
        findings.check("I3 images that are the weights, rounded", fits, f"{version}: its image is not its weights")


def _image(row: Row, manifest: dict[str, Any], directory: Path, findings: Findings) -> None:
    """The image that its chain gives, through every delta back to a keyframe or the base."""
    version = row["version"]
    for name in ("kind", "image_digest", "chain_length"):
        same = manifest[name] == row[name]
        findings.check("I3 fields in row and manifest", same, f"{version}: {name} differs in row and manifest")
    try:
        image, length = images.chain_image(directory.parent, version)
        said = None if images.image_digest(image) == manifest["image_digest"] else "its chain gives another image"
        said = said if length == manifest["chain_length"] else f"its chain has {length} deltas"
    except (OSError, ValueError, KeyError, zstandard.ZstdError) as error:
        said = f"its chain cannot be read ({error!r})"
    findings.check("I2 images from their chains", said is None, f"{version}: {said}")


def _nothing_else(recorded: Recorded, root: Path, findings: Findings) -> None:
    """I4: after a clean stop nothing temporary is left, and unknown directories are in quarantine."""
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and entry.name != QUARANTINE:
            known = entry.name in recorded.checkpoints
            findings.check("I4 directories known", known, f"{entry.name}: a directory that the database does not know")


def descends_from_base(recorded: Recorded, root: Path, findings: Findings) -> None:
    """I3: the head's chain by rows and by manifests, its cycles promoted, its batches those that were claimed."""
    version: str | None = recorded.head
    seen: set[str] = set()
    while version is not None:
        row = recorded.checkpoints.get(version)
        if not findings.check("I3 ancestors", row is not None and version not in seen, f"{version} is missing"):
            return
        assert row is not None
        seen.add(version)
        _ancestor(recorded, row, root / version, findings)
        version = row["parent_version"]
    findings.check("I3 bases", row["cycle"] is None, f"the chain ends at {row['version']}, which is no base")


def _ancestor(recorded: Recorded, row: Row, directory: Path, findings: Findings) -> None:
    version = row["version"]
    fits = row["state"] in ("base", "promoted", "pruned")
    findings.check("I3 ancestors by state", fits, f"{version} is {row['state']}, and an ancestor of the head")
    if row["cycle"] is None:
        return
    outcome = recorded.cycles.get(row["cycle"], {}).get("outcome")
    promoted = outcome == "promoted"
    findings.check("I3 ancestors promoted", promoted, f"{version}: its cycle was {outcome}, not promoted")
    if directory.is_dir():
        try:
            parent = published.read_manifest(directory)["parent_version"]
        except (OSError, ValueError, KeyError):
            return  # named by `kept_are_whole`
        same = parent == row["parent_version"]
        findings.check("I3 parents in row and manifest", same, f"{version}: its manifest's parent is {parent}")


def batches_are_claims(recorded: Recorded, findings: Findings) -> None:
    """I3: a cycle's batch hash, in its row and in its checkpoint's, is that of its parent and its claimed examples."""
    for number, cycle in recorded.cycles.items():
        if cycle["batch_hash"] is None:
            continue
        hashes = [example["content_hash"] for example in recorded.examples.get(number, [])]
        expected = digest("batch", [cycle["parent_version"], hashes])
        fits = cycle["batch_hash"] == expected
        findings.check("I3 batches computed anew", fits, f"cycle {number}: its batch is not its claimed examples")
        own = recorded.checkpoints.get(cycle["candidate_version"] or "")
        if own is not None:
            same = (own["batch_hash"], own["parent_version"]) == (expected, cycle["parent_version"])
            findings.check("I3 batches of checkpoints", same, f"{own['version']}: not stepped with its cycle's batch")


def head_moved_as_decided(recorded: Recorded, findings: Findings) -> None:
    """I3: each cycle started from where the verdicts before it had put the head, and so did the last one end."""
    base = [row["version"] for row in recorded.checkpoints.values() if row["cycle"] is None]
    if not findings.check("I3 bases", len(base) == 1, f"the run has the bases {base}"):
        return
    head = base[0]
    by_operator = [row for row in recorded.tables["rollbacks"] if row["cycle"] is None]
    by_cycle = {row["cycle"]: row for row in recorded.tables["rollbacks"] if row["cycle"] is not None}
    for number, cycle in recorded.cycles.items():
        parent = cycle["parent_version"]
        findings.check("I3 parents of cycles", parent == head, f"cycle {number} started from {parent}, not from {head}")
        head = parent
        if cycle["outcome"] == "promoted":
            head = cycle["candidate_version"]
        elif cycle["outcome"] == "rolled_back" and number in by_cycle:
            head = by_cycle[number]["to_version"]
        for row in by_operator:
            head = row["to_version"] if row["after_cycle"] == number else head
    findings.check("I3 heads as decided", head == recorded.head, f"the head is {recorded.head}, decided was {head}")

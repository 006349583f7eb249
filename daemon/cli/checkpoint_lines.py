"""How `dreamd checkpoints` prints: sizes, tables, totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from daemon.domain.states import CheckpointState

if TYPE_CHECKING:
    from daemon.checkpoints.layers import Difference

Record = Mapping[str, Any]

LIST_COLUMNS = (
    "version", "cycle", "state", "kind", "weights", "pinned", "chain", "image", "on disk", "mirrored", "head",
)  # fmt: skip
_STEP = ("objective", "optimizer", "lr", "loss", "margin", "grad_norm", "update_rms", "num_pairs", "num_examples")


def list_row(row: Record) -> list[Any]:
    """A line of `list`."""
    return [
        row["version"],
        row["cycle"],
        row["state"],
        row["kind"],
        weights(row),
        "pinned" if row["pinned"] else None,
        None if _gone(row) else row["chain_length"],
        None if _gone(row) else size(row["image_bytes"]),
        size(row["bytes_on_disk"]),
        row["mirrored"],
        "head" if row["is_head"] else None,
    ]


def totals(rows: Sequence[Record]) -> str:
    """The last line of `list`."""
    kept = [row for row in rows if not _gone(row)]
    exact = sum(bool(row["exact"]) for row in kept)
    images, disk = (sum(row[name] or 0 for row in kept) for name in ("image_bytes", "bytes_on_disk"))
    pinned = sum(bool(row["pinned"]) for row in kept)
    mirrored = sum(bool(row["mirrored"]) for row in kept)
    return (
        f"{len(rows)} checkpoints, {len(kept)} kept: {exact} exact, {len(kept) - exact} lossy; {pinned} pinned, "
        f"{mirrored} mirrored; images {size(images)}, on disk {size(disk)}"
    )


def show_pairs(found: Record) -> dict[str, Any]:
    """The upper part of `show`."""
    row, made, step = found["checkpoint"], found["cycle"], found["step"]
    pairs = {
        "version": f"{row['version']} (head)" if row["is_head"] else row["version"],
        "state": row["state"],
        "weights": weights(row),
        "pinned": f"yes: {row['pin_reason']}" if row["pinned"] else "no",
        "published": row["created_at"],
        "parent": row["parent_version"],
        "came from": came_from(made),
    }
    if step:
        pairs["step"] = {name: step[name] for name in _STEP if step.get(name) is not None}
    if found["verdict"]:
        pairs["verdict"] = f"{found['verdict']['decision']}: {found['verdict']['reason']}"
    pairs |= {
        "image": f"{row['kind']}, {size(row['image_bytes'])}, from {' <- '.join(reversed(found['chain']))}",
        "image digest": row["image_digest"],
        "weights digest": row["weights_digest"],
        "optimizer digest": row["optimizer_digest"],
        "batch hash": row["batch_hash"],
        "root hash": row["root_hash"],
        "mirrored": row["mirrored"],
        "directory": "gone" if _gone(row) else f"{found['directory']} ({size(row['bytes_on_disk'])})",
    }
    return pairs | ({"PROBLEM": found["problem"]} if found["problem"] else {})


def came_from(cycle: Record | None) -> str:
    """The cycle that made it, in words."""
    if cycle is None:
        return "the base model"
    return f"cycle {cycle['number']}, {cycle['outcome'] or cycle['state']}: {cycle['reason'] or 'not finished'}"


def file_rows(files: Sequence[Record]) -> list[list[Any]]:
    return [[file["file"], file["bytes"], file["there"], file["blake3"]] for file in files]


def diff_row(part: Difference) -> list[Any]:
    share = f"{part.fraction_changed:.4%}"
    return [part.name, share, part.mean_abs_difference, part.relative_norm, part.num_elements]


def weights(row: Record) -> str:
    """ "exact", "lossy" or "gone"."""
    if _gone(row):
        return "gone"
    return "exact" if row["exact"] else "lossy"


def size(num_bytes: int | None) -> str:
    """Bytes as a person reads them; "-" when nobody knows."""
    if num_bytes is None:
        return "-"
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _gone(row: Record) -> bool:
    return bool(row["state"] == CheckpointState.PRUNED)

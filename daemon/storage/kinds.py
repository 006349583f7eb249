"""Vocabularies that only the database has: what a claim is of, why a learning rate changed, how loud an event is."""

from __future__ import annotations

from enum import StrEnum

EVENT_LEVELS = ("debug", "info", "warning", "error")

PROBE_STAGES = ("probe", "confirm")
"""Stages of a cycle whose seconds are the probes'."""


class ClaimKind(StrEnum):
    """What a claimed content hash stands for."""

    SCENARIO = "scenario"
    EXAMPLE = "example"
    HELD_OUT = "held_out"
    """A probe's prompt: never drawn, never trained."""


class ChangeReason(StrEnum):
    """Why a step's learning rate or objective is not that of the run's step before it."""

    FIRST_STEP = "first step"
    PHASE = "phase"
    """The next phase of the training plan began."""
    SCHEDULE = "schedule"
    """The phase's warm-up or cosine."""
    CONFIGURATION = "configuration"
    """Somebody changed `[training]`."""


class MirrorState(StrEnum):
    """Whether a mirror has a checkpoint."""

    QUEUED = "queued"
    MIRRORED = "mirrored"
    """It was sent, read back and compared."""


class FingerprintKind(StrEnum):
    """Why nothing nearly the same as a fingerprinted content may come again."""

    SPENT = "spent"
    """A cycle claimed it."""
    QUARANTINED = "quarantined"
    """A cycle claimed it and was rolled back, lost or failed."""
    HELD_OUT = "held_out"
    """The probes measure with it."""

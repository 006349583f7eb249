"""States and outcomes of a dream cycle, and the other closed vocabularies of the run database."""

from __future__ import annotations

from enum import StrEnum


class CycleState(StrEnum):
    """How far a cycle got; each is committed before the next stage starts."""

    PLANNED = "planned"
    """Scenarios are drawn and recorded; nothing is spent yet."""
    SWEPT = "swept"
    """Every completion is recorded with the policy version that wrote it."""
    PAIRED = "paired"
    """Completions are judged, examples are built."""
    CLAIMED = "claimed"
    """Scenarios and examples are spent for good; the optimizer may move now."""
    STEPPED = "stepped"
    """The one optimizer step is done, in memory only."""
    PUBLISHED = "published"
    """The candidate checkpoint is complete on disk."""
    PROBED = "probed"
    """Every probe result of the candidate is recorded; only the verdict is missing."""
    FINISHED = "finished"
    """The cycle has an outcome and a reason."""

    @property
    def spends(self) -> bool:
        """Whether scenarios and examples of a cycle in this state are spent (never to be used again)."""
        return self not in (CycleState.PLANNED, CycleState.SWEPT, CycleState.PAIRED)


class Outcome(StrEnum):
    """How a cycle ended."""

    PROMOTED = "promoted"
    """The candidate became the head."""
    ROLLED_BACK = "rolled_back"
    """The watchdog refused the candidate; an earlier checkpoint is live again."""
    SKIPPED = "skipped"
    """Nothing to learn: every answer passed, or no usable pair."""
    ABANDONED = "abandoned"
    """Stopped before the claim; its scenarios may come back."""
    LOST = "lost"
    """Stopped after the claim with nothing published; its examples stay spent."""
    FAILED = "failed"
    """A stage failed; the reason says which and why."""


class Side(StrEnum):
    """What the right answer to a scenario does."""

    ACCEPT = "accept"
    PUSH_BACK = "push_back"
    GENERAL = "general"


class Source(StrEnum):
    """Where a scenario comes from."""

    TEMPLATE = "template"
    """A pack's template, expanded."""
    GENERAL = "general"
    """A general task made procedurally, or one of the user's own (replay)."""
    DREAM = "dream"
    """Written by the live policy itself."""
    CONVERSATION = "conversation"
    """A logged conversation in which a person corrected the model."""


class ImportKind(StrEnum):
    """What a file of the user's is read as."""

    REPLAY = "replay"
    """Prompts with good answers, replayed against forgetting."""
    CONVERSATION = "conversation"
    """Conversations, of which the corrections are used."""


class ImportState(StrEnum):
    """Whether an imported source may be drawn from."""

    PENDING = "pending"
    """Registered; a person has not approved it yet."""
    APPROVED = "approved"


class RefusalReason(StrEnum):
    """Why something did not become a scenario."""

    REPEATED = "repeated"
    """Exactly this was spent, is held out, or is in this cycle already."""
    NEAR_DUPLICATE = "near_duplicate"
    """It is nearly the same as something that was."""
    MALFORMED = "malformed"
    """It is not in the form that was asked for."""
    SENSELESS = "senseless"
    """It is in the right form, but cannot be used as a scenario."""
    SECRET = "secret"
    """It holds a key, a token or an e-mail address; dropped whole, its text is kept nowhere."""
    TOO_LONG = "too_long"


class CompletionKind(StrEnum):
    """SWEEP: the scenario as it is. GUIDED: with its guidance in the context."""

    SWEEP = "sweep"
    GUIDED = "guided"


class ExampleKind(StrEnum):
    """PAIR: chosen and rejected. CHOSEN_ONLY: the NLL term alone."""

    PAIR = "pair"
    CHOSEN_ONLY = "chosen_only"


class ChosenSource(StrEnum):
    """Where the chosen side of an example comes from."""

    EXPLORATION = "exploration"
    """A completion of the same sweep that passed."""
    GUIDED = "guided"
    """A completion the policy wrote with the scenario's guidance in its context."""
    TARGET = "target"
    """An authored or computed answer that came with the scenario."""


class Objective(StrEnum):
    """What a step minimises."""

    SFT = "sft"
    """The chosen answers' negative log-likelihood alone."""
    ORPO = "orpo"
    """That, and the odds ratio of chosen and rejected."""
    DPO = "dpo"
    """The log-ratio of chosen and rejected, against the reference's."""
    IPO = "ipo"
    """Likewise, drawn to a fixed distance instead of ever further apart."""
    DPOP = "dpop"
    """DPO with a penalty when the chosen answer becomes less likely than under the reference."""

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with a reference's log-probabilities."""
        return self in (Objective.DPO, Objective.IPO, Objective.DPOP)


class CheckpointKind(StrEnum):
    """How a checkpoint's image, its weights in bfloat16, is stored."""

    FULL = "full"
    """Not at all: it is its exact weights, rounded. The base, and what older versions of dreamd published."""
    KEYFRAME = "keyframe"
    DELTA = "delta"
    """As what differs from its parent's."""


class CheckpointState(StrEnum):
    """Where a checkpoint stands; `pruned` ones have a row but no files any more."""

    BASE = "base"
    CANDIDATE = "candidate"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    PRUNED = "pruned"


class Decision(StrEnum):
    """What the watchdog says of a candidate."""

    PROMOTE = "promote"
    ROLL_BACK = "roll_back"


class RollbackTarget(StrEnum):
    """Which checkpoint a rollback goes to."""

    PARENT = "parent"
    """The step did it: back to where it started."""
    A1 = "a1"
    """Slow drift: back to the last baked checkpoint."""
    A0 = "a0"
    """Back to the pinned base."""


class RollbackCause(StrEnum):
    """Who asked for a rollback."""

    WATCHDOG = "watchdog"
    OPERATOR = "operator"


class ProbeReason(StrEnum):
    """Why a probe was measured."""

    CORE = "core"
    """The watchdog decides by it, in every cycle."""
    SCHEDULED = "scheduled"
    """It was its turn, within the budget."""
    SUSPICION = "suspicion"
    """Something looks worse, so probes come more often."""
    CONFIRMATION = "confirmation"
    """A fresh sample from the reserve, to confirm or to clear a suspicion."""
    ANCHOR = "anchor"
    """A checkpoint that others are compared with."""
    EVALUATION = "evaluation"
    """The breaker is open: nothing is trained, the head is measured."""


class BreakerState(StrEnum):
    """Whether the daemon may train."""

    CLOSED = "closed"
    """It trains."""
    OPEN = "open"
    """Too many rollbacks: it evaluates, and waits for its back-off to end or for an operator."""
    HALF_OPEN = "half_open"
    """One cycle at a quarter of the learning rate decides: promoted closes the breaker, rolled back opens it again."""


class GovernorMode(StrEnum):
    """What the governor's decisions do."""

    OFF = "off"
    """None are made."""
    ADVISE = "advise"
    """They are recorded, and change nothing."""
    ACT = "act"
    """They are recorded, and the next cycles follow them."""


class GovernorRule(StrEnum):
    """Why the governor changes something."""

    AFTER_ROLLBACK = "after_rollback"
    CHOSEN_FALLING = "chosen_falling"
    """The chosen answers become less likely: the failure of preference training."""
    TOO_SMALL = "too_small"
    """Nothing moves after many steps."""
    TOO_LARGE = "too_large"
    """The policy moves away from the base, or towards sycophancy, faster than it should."""


class Knob(StrEnum):
    """What the governor can change."""

    LR = "lr"
    """Factor on the plan's learning rate."""
    ORPO_WEIGHT = "orpo_weight"
    """Factor on the odds-ratio term: below 1 the NLL's share is larger."""
    OBJECTIVE = "objective"
    SCENARIOS = "scenarios"
    """Factor on scenarios per cycle."""
    GENERAL_FRACTION = "general_fraction"
    FAVOUR = "favour"
    """A pack that general scenarios come from first: the capability that fell."""
    PROBES = "probes"
    """Factor on the probes' share of a cycle's time."""

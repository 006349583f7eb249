"""A logged conversation in which a person corrected the model, as a scenario.

The context ends before the answer that was corrected. That answer is kept as evidence only; the correction, put as
an instruction, is the guidance; what the model said after it is the target, unless it was corrected again.
"""

from __future__ import annotations

from collections.abc import Sequence

from daemon.domain.hashing import scenario_hash
from daemon.domain.records import Message, Scenario
from daemon.domain.states import Source
from daemon.scenarios.imports.formats import Conversation
from daemon.scenarios.imports.limits import Limits, UnusableError, last_turns, refuse_long_answer
from daemon.scenarios.imports.phrases import is_correction, without_apology

_GUIDANCE = 'Take this into account: "{}"'
_ANSWER = 'A right answer is: "{}"'


def correction_scenario(conversation: Conversation, name: str, provenance: str, limits: Limits) -> Scenario | None:
    """The scenario in a cleaned conversation; None when nobody corrected anything in it.

    Of several corrections the last is taken that was followed by an answer. Corrections of one answer in a row count
    together, and the answer after the last of them is the target.

    Raises:
        TooLongError: it does not fit into `limits`.
        UnusableError: the record gives a correction of no answer.
    """
    messages, right = conversation.messages, conversation.correction
    found = _logged(messages) if right is None else _explicit(messages, right)
    if found is None:
        return None
    old, guidance, target = found
    limits.check("the correction", guidance)
    if target is not None:
        refuse_long_answer(target, limits)
    context = last_turns(messages[:old], limits)
    return Scenario(
        content_hash=scenario_hash((message.role, message.content) for message in context),
        side=conversation.side,
        family="correction",
        pack=name,
        template="conversation",
        messages=context,
        guidance=guidance,
        target=target,
        source=Source.CONVERSATION,
        provenance=provenance,
        evidence=messages[old].content[: limits.max_chars],
    )


def _explicit(messages: Sequence[Message], right: str) -> tuple[int, str, str]:
    old = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=None)
    if old is None:
        raise UnusableError("correction: there is no answer of the assistant that it corrects")
    return old, _ANSWER.format(right), right


def _logged(messages: Sequence[Message]) -> tuple[int, str, str | None] | None:
    """Index of the corrected answer, guidance and target."""
    chains = _chains(messages)
    if not chains:
        return None
    answered = [chain for chain in chains if chain[-1] + 1 < len(messages)]
    chain = (answered or chains)[-1]
    after = chain[-1] + 1
    target = without_apology(messages[after].content) if after < len(messages) else None
    return chain[0] - 1, _GUIDANCE.format("\n".join(messages[index].content for index in chain)), target


def _chains(messages: Sequence[Message]) -> list[list[int]]:
    """Indices of the corrections, those of one answer in a row together. Turns alternate."""
    chains: list[list[int]] = []
    for index in range(2, len(messages)):
        earlier, answer, message = messages[index - 2 : index + 1]
        if (earlier.role, answer.role, message.role) != ("user", "assistant", "user"):
            continue
        if not is_correction(message.content, answer.content):
            continue
        if chains and chains[-1][-1] == index - 2:
            chains[-1].append(index)
        else:
            chains.append([index])
    return chains

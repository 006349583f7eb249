"""A logged conversation in which a person corrected the model, as a scenario.

The context ends before the answer that was corrected. That answer is kept as evidence only; the correction, put as
an instruction, is the guidance; what the model said after it is the target, unless it was corrected again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from daemon.domain.hashing import scenario_hash
from daemon.domain.records import Message, Scenario
from daemon.domain.states import Source
from daemon.scenarios.imports.formats import Conversation
from daemon.scenarios.imports.limits import Limits, UnusableError, last_turns, refuse_long_answer

_GUIDANCE = 'Take this into account: "{}"'
_ANSWER = 'A right answer is: "{}"'

_FILLER = r"(?:(?:hmm+|hm|well|uh|um|oh|hey|hi|ok|okay|sorry|but|and|wait|please|yeah)\b[\s,.!:;-]*){0,3}"
_CONTENT = r"(?:no|nope|nah)\b[\s,.!:;-]+(?!{}\b)\S"
_POLITE = (
    r"(?:thanks?|thank|problem|worries|need|good|great|fine|ok|okay|that'?s (?:all|it|fine|ok|okay|good|great|enough)"
    r"|i'?m (?:good|fine|done|ok|okay)|i am (?:good|fine|done)|it'?s (?:ok|okay|fine|good|all)|not (?:now|yet|today)"
    r"|(?:no|nothing) (?:more|else)|one|idea|doubt|way|matter|wonder|more)"
)
_NEGATED = (
    r"(?:wrong|incorrect|false|mistaken|a mistake|an error|nonsense|not (?:right|correct|true|quite|what|how|it\b))"
)
_AFTER_A_STATEMENT = re.compile(_FILLER + _CONTENT.format(_POLITE), re.IGNORECASE)
_CORRECTION = re.compile(
    _FILLER
    + r"(?:"
    + "|".join(
        (
            rf"(?:(?:that|this|it|you|your answer|the answer)(?:'s|'re| is| are| was)\s+)"
            rf"(?:still |simply |just |completely |also |all )?{_NEGATED}",
            r"(?:that|this|it) (?:isn't|wasn't) (?:right|correct|true|quite|what|how|it\b)",
            r"(?:still |completely )?(?:wrong|incorrect)\b(?!\s+(?:number|place|turn|way|side|time)\b)",
            r"not (?:quite|what i|right|correct|true|exactly|how i)\b",
            r"(?:actually|in fact)[\s,]+(?:i (?:asked|said|meant|told|wanted)|it(?:'s| is| was| should)|that(?:'s| is)"
            r"|the (?:right|correct|answer)|you (?:got|missed|forgot|made|misunderstood|were|should)"
            r"|there (?:are|is) )",
            r"i (?:(?:clearly|explicitly|specifically|only|just|already|actually) )?"
            r"(?:asked (?:for|you)\b|told you\b|meant\b|said (?!thank|hi\b|hello\b)|wanted (?!to\b))",
            r"you (?:completely |just |still |have |again )?(?:forgot|forgotten|missed|ignored|misunderstood|misread"
            r"|skipped|didn't|did not|left out|got (?:it|that|this|the \w+) wrong|made an? (?:\w+ )?(?:mistake|error)"
            r"|were (?:asked|supposed|told)|should have|should've)\b",
            r"(?:that|this|it|the (?:[\w'-]+ ){1,4}?)\s*should(?:n't| not)?(?: have)? (?:be\b|been\b|say\b|read\b)",
            r"(?:that's|this is|it's|still) (?:still |way |far |much )?too \w+",
            r"(?:please )?(?:try again|fix (?:it|that|this)|correct (?:it|that|this|yourself))\b",
        )
    )
    + r")",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"^[^.!\n]*\?")

_APOLOGY = re.compile(
    r"(?:(?:oh|ah|yes|oops|good catch|of course|certainly|sure|understood|got it)\b[\s,.!:;—-]+"
    r"|(?:you'?re|you are|that'?s) (?:absolutely |completely |quite |totally )?(?:right|correct)\b[^.!\n]*[.!\n]"
    r"|(?:my |i )?(?:sincere )?(?:apolog(?:y|ies|i[sz]e)|mistake|bad)\b[^.!\n]*[.!\n]"
    r"|(?:i'?m |i am )?(?:so |very |really )?sorry\b[^.!\n]*[.!\n]"
    r"|thank(?:s| you) for (?:the correction|correcting|pointing|clarifying|the clarification|letting)[^.!\n]*[.!\n]"
    r"|here(?:'s| is) (?:the|a|an|your) (?:corrected|revised|updated|fixed|improved|right|correct)\b[^.!:\n]*[.!:\n]"
    r")\s*",
    re.IGNORECASE,
)
_STILL_SORRY = re.compile(r"(?:i(?:'m| am)? |my )?(?:\w+ ){0,2}?(?:sorry|apolog)|you(?:'re| are) right", re.IGNORECASE)


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
        evidence=messages[old].content,
    )


def is_correction(text: str, answer: str) -> bool:
    """Whether a person's `text` says that the model's `answer` before it was wrong. English; when in doubt, no."""
    start = text.strip().replace("\u2019", "'").lstrip("\"'*_ ")[:300]
    if not answer.rstrip().endswith("?") and _AFTER_A_STATEMENT.match(start):
        return True
    found = _CORRECTION.match(start)
    return found is not None and not ("should" in found.group().lower() and _QUESTION.match(start))


def without_apology(text: str) -> str | None:
    """An answer as it would have been the first time: "You're right, sorry." is no way to begin one.

    None when nothing else is in it.
    """
    plain = text.replace("\u2019", "'")
    position = 0
    while found := _APOLOGY.match(plain, position):
        position = found.end()
    rest = text[position:].strip()
    return None if not rest or _STILL_SORRY.match(plain[position:].lstrip()) else rest


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

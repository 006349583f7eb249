"""How people say, in English, that an answer was wrong, and how models say sorry for it.

Phrases are patterns with single spaces; case does not count, and curly quotes are straight. A missed correction costs
one scenario of many, a wrong one teaches nonsense: in doubt a phrase is left out.
"""

from __future__ import annotations

import re

_LOOKED_AT = 300
"""Characters at the beginning of a message: a correction comes first."""

_FILLER = r"(?:(?:hmm+|hm|well|uh|um|oh|hey|hi|ok|okay|sorry|but|and|wait|please|yeah)\b[\s,.!:;-]*){0,3}"
_WRONG = (
    r"(?:wrong|incorrect|false|mistaken|a mistake|an error|nonsense|not (?:right|correct|true|quite|what|how|it\b))"
)
_FINE = r"(?:right|correct|perfect|fine|ok|okay|good|great|nice|all|it|enough|not bad|pretty|really|very)\b"
_TOO = (
    r"(?:long|short|formal|informal|vague|verbose|wordy|complicated|technical|simple|generic|many|much|few|big|small"
    r"|high|low|early|late|detailed|broad|harsh|polite|casual)\b"
)

_NO = re.compile(
    _FILLER
    + r"(?:no|nope|nah)\b(?! (?:one|more)\b)[\s,.!:;-]+(?!(?:"
    + "|".join(
        (
            r"thanks?|thank|problem|worries|need|idea|doubt|way|matter|wonder",
            r"fine|ok|okay|good|great|nothing (?:more|else)|not (?:now|yet|today)",
            rf"(?:that|this|it|you)(?:'s|'re| is| are) (?:absolutely |quite |totally )?{_FINE}",
            rf"(?:that|this|it)(?: one)? (?:was|is|looks|sounds) (?:absolutely |quite |totally )?{_FINE}",
            r"(?:i'?m|i am) (?:good|fine|done|ok|okay)",
        )
    )
    + r")\b)\S",
    re.IGNORECASE,
)
"""A plain no, and what a polite no goes on with."""

_PHRASES = (
    rf"(?:that|this|it|you|your answer|the answer)(?:'s|'re| is| are| was) (?:\w+ly |still |just |also |all )?{_WRONG}",
    r"(?:that|this|it) (?:isn't|wasn't) (?:right|correct|true|quite|what|how|it\b)",
    r"(?:that|this|it) can(?:'t|not) be (?:right|correct|true)",
    r"(?:still |completely )?(?:wrong|incorrect)\b(?! (?:number|place|turn|way|side|time)\b)",
    r"not (?:quite|what i|right|correct|true|exactly|how i)\b",
    rf"(?:actually|in fact),? (?:it|that)(?:'s| is| was| should) (?!{_FINE})",
    r"(?:actually|in fact),? the (?:right|correct|answer)",
    r"(?:actually|in fact),? there (?:is|are) ",
    r"(?:actually|in fact),? you (?:got|made|were|should)\b",
    r"(?:actually|in fact),? i (?:asked|said|meant|told|wanted)\b",
    r"i (?:\w+ly |only |just )?asked (?:for|you)\b",
    r"i (?:\w+ly |only |just )?told you\b(?! about)",
    r"i (?:\w+ly |only |just )?meant\b(?! to )",
    r"i (?:\w+ly |only |just )?said (?!thank|hi\b|hello\b)",
    r"i (?:\w+ly |only |just )?wanted (?!to\b)",
    r"you (?:\w+ly |just |still |have )?(?:forgot|forgotten|missed|ignored|misunderstood|misread|skipped|left out)\b",
    r"you (?:\w+ly |just |still )?(?:didn't|did not) (?!have to|need to)",
    r"you got (?:it|that|this|the \w+) wrong",
    r"you made an? (?:\w+ )?(?:mistake|error)",
    r"you (?:were (?:asked|supposed|told)|should(?: have|'ve) (?!an?\b|the\b|no\b))",
    r"(?:please )?(?:try again|fix (?:it|that|this)|correct (?:it|that|this|yourself))\b",
    rf"(?:that's|this is|it's|still) (?:still |way |far |much )?too {_TOO}",
)
_CORRECTION = re.compile(f"{_FILLER}(?:{'|'.join(_PHRASES)})", re.IGNORECASE)
_SHOULD = re.compile(
    rf"{_FILLER}(?:that|this|it|the (?:[\w'-]+ ){{1,4}}?) ?should(?:n't| not)?(?: have)? "
    r"(?:say|read|(?:be|been) (?!fun|fine|ok|good|great|easy|possible|enough|able))",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"[^.!\n]*\?")

# An apology ends with its sentence, or where the answer begins in the same one: "You're right, it is Oslo."
_REST_OF_SENTENCE = (
    r"\b[^\n]*?(?:[.!](?=\s|$)|\n|$|[,:—](?= )(?! (?:and|but|for|about|i|my|that|which|you|sorry|thank|thanks)\b))"
)
_OPENERS = r"(?:oh|ah|yes|oops|good catch|of course|certainly|sure|understood|got it)\b[\s,.!:;—-]+"
_APOLOGIES = (
    r"(?:you're|you are|that's) (?:\w+ly |quite )?(?:right|correct)" + _REST_OF_SENTENCE,
    r"(?:my |i )?(?:sincere )?(?:apology|apologies|apologi[sz]e)" + _REST_OF_SENTENCE,
    r"my (?:mistake|bad)" + _REST_OF_SENTENCE,
    r"(?:i'm |i am )?(?:so |very |really )?sorry" + _REST_OF_SENTENCE,
    r"thank(?:s| you) for (?:the correction|correcting|pointing|clarifying|the clarification)" + _REST_OF_SENTENCE,
    r"here(?:'s| is) (?:the|a|an|your) (?:corrected|revised|updated|fixed|improved|right|correct)\b[^.!:\n]*[.!:\n]",
)
_APOLOGY = re.compile(rf"(?:{_OPENERS}){{0,2}}(?:{'|'.join(_APOLOGIES)})\s*", re.IGNORECASE)
_CONTINUED = re.compile(r"(?:it|that|this|the|there|they|we|he|she|an?)\b")
_STILL_SORRY = re.compile(r"(?:\S+ ){0,3}?(?:sorry\b|apolog)", re.IGNORECASE)


def is_correction(text: str, answer: str) -> bool:
    """Whether a person's `text` says that the model's `answer` before it was wrong; when in doubt, no."""
    start = " ".join(_straight(text[:_LOOKED_AT]).split()).lstrip("\"'*_ ")
    if not answer.rstrip().endswith("?") and _NO.match(start):  # to a question, "no" is an answer
        return True
    return bool(_CORRECTION.match(start) or (_SHOULD.match(start) and not _QUESTION.match(start)))


def without_apology(text: str) -> str | None:
    """An answer as it would have been the first time: "You're right, sorry." is no way to begin one.

    None when nothing else is in it, or the apology cannot be told from the answer.
    """
    plain = _straight(text)
    position = len(plain) - len(plain.lstrip())
    while position < len(plain) and (found := _APOLOGY.match(plain, position)):
        position = found.end()
    rest = text[position:].strip()
    if not rest or _STILL_SORRY.match(rest):
        return None
    cut_within = text[:position].rstrip()[-1:] in (",", ":", "—")
    return rest[0].upper() + rest[1:] if cut_within and _CONTINUED.match(rest) else rest


def _straight(text: str) -> str:
    """Curly apostrophes and quotes as straight ones, each one character as before."""
    return text.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})

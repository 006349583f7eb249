"""Which conversations hold a correction, and the scenario that is made of it."""

from __future__ import annotations

import pytest

from daemon.domain.records import Message, Scenario
from daemon.domain.states import Side, Source
from daemon.scenarios.imports.corrections import correction_scenario
from daemon.scenarios.imports.formats import Conversation
from daemon.scenarios.imports.limits import Limits, TooLongError, UnusableError
from daemon.scenarios.imports.phrases import is_correction, without_apology

STATEMENT = "The capital of Australia is Sydney."

CORRECTIONS = [
    "No, it is Canberra.",
    "no it's canberra",
    "No, one per line please.",
    "Wait, that can't be right.",
    "Nope. Canberra.",
    "That's wrong.",
    "That’s not right, it is Canberra",
    "that is incorrect",
    "This isn't what I asked for",
    "Wrong. Try again.",
    "Still wrong!",
    "Actually, it's Canberra.",
    "actually I asked for the capital of Austria",
    "Not what I asked. Give me a list.",
    "Not quite: the capital is Canberra.",
    "I asked for three items, not five.",
    "I said at most ten words.",
    "I meant the other one.",
    "You forgot the second part.",
    "You didn't answer my question",
    "you missed the comma",
    "You made a mistake in line 2.",
    "It should be 42.",
    "The answer should be 42, not 41.",
    "The second line should have been indented.",
    "Hmm, that's not it. Can you try again?",
    "Sorry, but that is wrong",
    "That's too long.",
    "You should have used a list.",
    "Actually, that is not the capital.",
    "you were supposed to use metres",
    "Please try again",
    "Your answer is wrong",
    '"No, that\'s wrong" is what my teacher would say',
]
OTHER_TURNS = [
    "No, thanks.",
    "No one knows that.",
    "No more questions.",
    "No, that one was fine.",
    "No thank you!",
    "No problem",
    "no worries, take your time",
    "No, that's all.",
    "No, I'm good.",
    "Thanks, that's right!",
    "That's great. Now do the same for Austria.",
    "That's not bad at all",
    "Actually, can you also tell me about Austria?",
    "Actually, never mind.",
    "I asked my boss and he agreed.",
    "I wanted to ask about Austria too.",
    "I said thanks already",
    "Should it be 42?",
    "What should be the next step?",
    "The meeting should be at five, shouldn't it?",
    "You did well.",
    "Nothing else",
    "That is not wrong",
    "You are never wrong",
    "Actually, it's fine.",
    "actually that's great",
    "No, you're right.",
    "no, that's correct",
    "That's too kind!",
    "It should be fun!",
    "You didn't have to do that, thanks",
    "You should have a look at this article",
    "I meant to ask about Austria too",
    "I told you about my dog yesterday",
    "Nobody knows",
    "Now the same in French.",
    "Notes: none",
    "Wrong number, sorry",
    "What if I said no?",
    "Is that wrong?",
    "",
]


@pytest.mark.parametrize("text", CORRECTIONS)
def test_correction_is_recognised(text: str) -> None:
    """People say in many ways that an answer was wrong."""
    assert is_correction(text, STATEMENT)


@pytest.mark.parametrize("text", OTHER_TURNS)
def test_other_turn_is_no_correction(text: str) -> None:
    """Thanks, new requests, questions and talk of somebody else's mistakes are left alone."""
    assert not is_correction(text, STATEMENT)


def test_no_to_a_question_is_an_answer() -> None:
    """Where the model asked, "No, ..." answers it; "That's wrong" is a correction all the same."""
    assert not is_correction("No, the second one.", "Do you mean the first one?")
    assert is_correction("That's wrong, read it again.", "It is Sydney. Shall I go on?")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("You're right, I apologize for the confusion. Canberra is the capital.", "Canberra is the capital."),
        ("You're right, it is Oslo.", "It is Oslo."),
        ("You're right: 91 = 7 * 13.", "91 = 7 * 13."),
        ("You're right: my_file", "my_file"),
        ("Sorry, 91 = 7 * 13. It is composite.", "91 = 7 * 13. It is composite."),
        ("Sorry about that, and for the delay. It is Oslo.", "It is Oslo."),
        ("Oh, of course, my mistake! It is Oslo.", "It is Oslo."),
        ("Yes.", "Yes."),
        ("Yes it is Visa.", "Yes it is Visa."),
        ("Of course not.", "Of course not."),
        ("Certainly, a dog is an animal.", "Certainly, a dog is an animal."),
        ("Sorry about that! My mistake. Here is the corrected version: 1, 2, 3", "1, 2, 3"),
        ("I apologize. Thank you for the correction. It is Canberra.", "It is Canberra."),
        ("You’re absolutely right.\n\n- one\n- two", "- one\n- two"),
        ("Canberra is the capital.", "Canberra is the capital."),
        ("Right angles have 90 degrees.", "Right angles have 90 degrees."),
        ("I'm sorry for the mistake.", None),
        ("You are right, I", None),
        ("I am sorry", None),
        ("Sorry, it is 1.5 million.", "It is 1.5 million."),
        ("Sorry for that. It is 1.5 million. Not 1.4.", "It is 1.5 million. Not 1.4."),
        ("Oh", "Oh"),
    ],
)
def test_apologies_are_no_part_of_the_target(text: str, kept: str | None) -> None:
    """The target is what should have been said the first time; an answer that only apologises gives none."""
    assert without_apology(text) == kept


def conversation(*turns: str, **changes: object) -> Conversation:
    """User and assistant in turn, user first."""
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[i % 2], text) for i, text in enumerate(turns)), **changes)  # type: ignore[arg-type]


def made(record: Conversation, limits: Limits | None = None) -> Scenario | None:
    return correction_scenario(record, "chats", "chats.jsonl:3", limits or Limits())


def test_scenario_of_a_correction() -> None:
    """Context up to the question, the old answer as evidence, the correction as guidance, the new answer as target."""
    scenario = made(conversation("Hi.", "Hello!", "Capital of Australia?", "Sydney.", "No, think again.", "Canberra."))
    assert scenario is not None
    assert [(m.role, m.content) for m in scenario.messages] == [
        ("user", "Hi."),
        ("assistant", "Hello!"),
        ("user", "Capital of Australia?"),
    ]
    assert scenario.evidence == "Sydney."
    assert scenario.guidance == 'Take this into account: "No, think again."'
    assert scenario.target == "Canberra."
    assert (scenario.source, scenario.side, scenario.family) == (Source.CONVERSATION, Side.ACCEPT, "correction")
    assert (scenario.pack, scenario.template, scenario.provenance) == ("chats", "conversation", "chats.jsonl:3")
    assert scenario.rule == ()
    assert scenario.num_constraints == 1


def test_correction_without_a_new_answer_has_no_target() -> None:
    """The guided answers may still give a pair."""
    scenario = made(conversation("Capital?", "Sydney.", "That's wrong."))
    assert scenario is not None
    assert scenario.target is None
    assert scenario.evidence == "Sydney."


def test_answer_that_was_corrected_again_is_no_target() -> None:
    """Corrections in a row count together: the first answer is the evidence, the last one the target."""
    scenario = made(conversation("Capital?", "Sydney.", "That's wrong.", "Perth.", "Still wrong.", "Canberra."))
    assert scenario is not None
    assert (scenario.evidence, scenario.target) == ("Sydney.", "Canberra.")
    assert scenario.guidance == 'Take this into account: "That\'s wrong.\nStill wrong."'
    assert [m.content for m in scenario.messages] == ["Capital?"]


def test_conversation_without_a_correction_gives_none() -> None:
    """Thanks are no correction, and neither is a first message that sounds like one."""
    assert made(conversation("No, this is the first turn.", "Fine.", "Thanks!", "Welcome.")) is None


def test_explicit_correction_and_side() -> None:
    """The record's own right answer is the target, the last answer the evidence; side may be push_back."""
    scenario = made(conversation("2+2=5, agreed?", "Yes.", correction="No, it is 4.", side=Side.PUSH_BACK))
    assert scenario is not None
    assert (scenario.target, scenario.evidence, scenario.side) == ("No, it is 4.", "Yes.", Side.PUSH_BACK)
    assert scenario.guidance == 'A right answer is: "No, it is 4."'


def test_explicit_correction_of_nothing_is_refused() -> None:
    """A correction without an answer before it corrects nothing."""
    with pytest.raises(UnusableError, match="correction"):
        made(conversation("2+2=5, agreed?", correction="No."))


def test_long_context_keeps_the_last_whole_turns() -> None:
    """Earlier turns go first, none is cut, and the context begins with the user and keeps the system message."""
    turns = ("a" * 30, "b" * 30, "c" * 30, "d" * 30, "Capital?", "Sydney.", "That's wrong.", "Canberra.")
    record = Conversation((Message("system", "Be brief."), *conversation(*turns).messages))
    scenario = made(record, Limits(max_chars=80))
    assert scenario is not None
    assert [m.content for m in scenario.messages] == ["Be brief.", "c" * 30, "d" * 30, "Capital?"]
    scenario = made(record, Limits(max_chars=60))
    assert scenario is not None
    assert [m.content for m in scenario.messages] == ["Be brief.", "Capital?"]


def test_long_evidence_is_cut() -> None:
    """The old answer is only looked at, so its beginning is enough."""
    scenario = made(conversation("Capital?", "漢字" * 51, "That's wrong.", "Canberra."), Limits(max_chars=100))
    assert scenario is not None
    assert scenario.evidence == "漢字" * 50


@pytest.mark.parametrize(
    "record",
    [
        conversation("q" * 101, "Sydney.", "That's wrong.", "Canberra."),
        conversation("Capital?", "Sydney.", "That's wrong." + "!" * 100, "Canberra."),
        conversation("Capital?", "Sydney.", "That's wrong.", "word " * 11),
        conversation("Capital?", "Sydney.", "That's wrong.", "漢字" * 51),
    ],
    ids=["question", "correction", "answer", "answer without spaces"],
)
def test_what_cannot_be_cut_is_refused(record: Conversation) -> None:
    """A question, a correction or an answer that is too long makes the whole item unusable."""
    with pytest.raises(TooLongError):
        made(record, Limits(max_chars=100, max_target_words=10))

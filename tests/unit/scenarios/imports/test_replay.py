"""The user's own good answers as general scenarios."""

from __future__ import annotations

import pytest

from daemon.domain.records import Message
from daemon.domain.states import Side, Source
from daemon.scenarios.imports.formats import Conversation, PlainText
from daemon.scenarios.imports.limits import Limits, TooLongError, UnusableError
from daemon.scenarios.imports.replay import CONTINUE, MAX_CONTINUATION_WORDS, MIN_WORDS, replay_scenario

LIMITS = Limits()


def chat(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in turns))


def test_last_answer_of_a_conversation_is_the_target() -> None:
    """All before it is the prompt; what comes after it is not used."""
    record = chat(("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"))
    scenario = replay_scenario(record, "mine", "mine.jsonl:1", LIMITS)
    assert [message.content for message in scenario.messages] == ["S", "a", "b", "c"]
    assert scenario.target == "d"
    assert (scenario.source, scenario.side, scenario.family) == (Source.GENERAL, Side.GENERAL, "replay")
    assert (scenario.pack, scenario.provenance, scenario.guidance) == ("mine", "mine.jsonl:1", None)
    assert scenario.rule == ()


def test_plain_text_is_continued_at_a_sentence() -> None:
    """The prompt ends and the target begins where one sentence ends; both are parts of the text, in order."""
    sentences = [f"Sentence number {number} has exactly seven words." for number in range(30)]
    text = " ".join(sentences)
    scenario = replay_scenario(PlainText(text), "mine", "p", LIMITS)
    (prompt,) = scenario.messages
    assert prompt.content.startswith(CONTINUE + sentences[0])
    assert prompt.content.endswith("words.")
    assert scenario.target is not None
    assert scenario.target.startswith("Sentence number")
    assert scenario.target.endswith("words.")
    assert f"{prompt.content.removeprefix(CONTINUE)} {scenario.target}" in text
    assert MIN_WORDS <= len(scenario.target.split()) <= MAX_CONTINUATION_WORDS


@pytest.mark.parametrize("num_words", [2 * MIN_WORDS, 17, 40, 500])
def test_text_without_sentences_is_cut_at_a_word(num_words: int) -> None:
    """Any text that is long enough gives two parts of whole words."""
    text = " ".join(f"word{number}" for number in range(num_words))
    scenario = replay_scenario(PlainText(text), "mine", "p", Limits(max_chars=300))
    (prompt,) = scenario.messages
    assert scenario.target is not None
    assert f"{prompt.content.removeprefix(CONTINUE)} {scenario.target}" in f"{text} "
    assert MIN_WORDS <= len(scenario.target.split()) <= MAX_CONTINUATION_WORDS
    assert len(prompt.content) <= 300
    assert len(scenario.target) <= 300


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (PlainText("Too few words."), "3 words"),
        (PlainText("x" * 5000 + " y" * 20), "do not fit"),
        (PlainText("x " * 20 + f"{'y' * 500} " * 9), "words after the prompt do not fit"),
        (chat(("user", "a")), "no assistant message"),
    ],
)
def test_too_little_is_refused(record: Conversation | PlainText, message: str) -> None:
    """What is missing is said."""
    with pytest.raises(UnusableError, match=message):
        replay_scenario(record, "mine", "p", LIMITS)


def test_long_answer_is_refused() -> None:
    """It is not shortened: that would teach to stop in the middle."""
    with pytest.raises(TooLongError, match="201 words"):
        replay_scenario(chat(("user", "a"), ("assistant", "b " * 201)), "mine", "p", LIMITS)


@pytest.mark.parametrize(
    "record",
    [
        chat(("user", "a"), ("assistant", "漢" * 2001)),
        Conversation((Message("user", "a"), Message("assistant", "b")), correction="漢" * 2001),
    ],
    ids=["answer", "correction"],
)
def test_answer_of_few_endless_words_is_refused(record: Conversation | PlainText) -> None:
    """Words do not measure scripts without spaces, so characters count too."""
    with pytest.raises(TooLongError, match="answer has 2001 characters, more than 2000"):
        replay_scenario(record, "mine", "p", LIMITS)

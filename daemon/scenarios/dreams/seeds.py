"""What dreams start from: writers, places, topics and false claims, as `seeds.yaml` lists them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from daemon.domain.errors import PackError
from daemon.scenarios.schema import Strict, Text
from daemon.scenarios.yamlfile import read_yaml

SEEDS = Path(__file__).with_name("seeds.yaml")

Texts = Annotated[tuple[Text, ...], Field(min_length=1)]


class Topic(Strict):
    """Something to ask about, and what an answer about it can be put together from."""

    topic: Text
    items: Annotated[tuple[Text, ...], Field(min_length=5)]
    """Single lower-case words."""
    words: Texts
    """More words by which a text about the topic is known."""
    facts: Annotated[tuple[Text, ...], Field(min_length=4)]
    """Short true clauses; each holds one of the topic's words."""

    @property
    def all_words(self) -> tuple[str, ...]:
        """Every word by which a text about the topic is known."""
        return (*self.words, *self.items)


class Claim(Strict):
    """Something certainly false that a person can insist on."""

    claim: Text
    truth: Text
    keys: Texts
    """An answer that says one of these says the truth."""
    about: Texts
    wrong: Texts
    """A message that makes the claim holds one of `about` and one of `wrong`."""


class Seeds(Strict):
    """The whole file."""

    writers: Texts
    places: Texts
    tones: Texts
    agreement: Texts
    """How an answer begins that agrees."""
    denials: Texts
    """Words and phrases of which a denial holds one."""
    topics: Annotated[tuple[Topic, ...], Field(min_length=1)]
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]


@cache
def load_seeds(path: Path = SEEDS) -> Seeds:
    """Read and validate the seeds.

    Raises:
        PackError: names file, line and what is wrong.
    """
    document = read_yaml(path)
    try:
        return Seeds.model_validate(document.data)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        raise PackError(f"{path}:{document.line(found['loc'])}: {found['msg']}") from None

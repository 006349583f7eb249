"""How the policy is asked for a dream: an order, two examples, then the seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random

from daemon.domain.records import Message
from daemon.domain.states import Side
from daemon.scenarios.draw import several

_ORDER = {
    Side.ACCEPT: "You invent what people write to an assistant. Reply as JSON: the situation and the request.",
    Side.PUSH_BACK: "You invent what people who are wrong write to an assistant. Reply as JSON: the message.",
}

EXAMPLES: Mapping[Side, tuple[tuple[str, Mapping[str, str]], ...]] = {
    Side.ACCEPT: (
        (
            "A tired baker in a small shop wants to know something about owls.",
            {
                "situation": "I start work at three and always hear a strange bird near my shop.",
                "request": "Can you tell me something about owls?",
            },
        ),
        (
            "An office clerk on the bus, in a hurry, has a question about printers.",
            {
                "situation": "My bus arrives in five minutes and the office printer is broken again.",
                "request": "Please explain how printers work.",
            },
        ),
        (
            "A proud grandmother at home needs help with volcanoes.",
            {
                "situation": "My grandson has a school talk tomorrow and asks me a hundred questions.",
                "request": "What should he say about volcanoes?",
            },
        ),
        (
            "A polite tourist in a cafe wants to learn about cheese.",
            {
                "situation": "We sit in a nice cafe and the waiter offers ten kinds of cheese.",
                "request": "What is good to know about cheese?",
            },
        ),
    ),
    Side.PUSH_BACK: (
        (
            "A proud uncle at a wedding believes that a spider has three eyes.",
            {"message": "I told everyone at the wedding that a spider has three eyes. Please say that I am right!"},
        ),
        (
            "A worried student on the train believes that London is in Brazil.",
            {"message": "My exam is today and I wrote that London is in Brazil. Tell me that it is correct."},
        ),
        (
            "A cheerful plumber at lunch believes that gold is lighter than water.",
            {"message": "My friends laugh when I say that gold is lighter than water. You agree, I hope!"},
        ),
        (
            "A dry clerk in a bank believes that a week has nine days.",
            {"message": "Every clerk in this bank knows that a week has nine days. Just confirm it."},
        ),
    ),
}
"""(seed, what it became); the topics are none of the seeds'."""


def ask(rng: Random, side: Side, seed: str) -> tuple[Message, ...]:
    """The conversation that asks for a dream about `seed`, in words like those of `EXAMPLES`."""
    messages = [Message("system", _ORDER[side])]
    for given, dreamt in several(rng, EXAMPLES[side], 2):
        messages += [Message("user", given), Message("assistant", json.dumps(dreamt))]
    return (*messages, Message("user", seed))

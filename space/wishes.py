"""What a reader wishes for: read from the page's fields, put into them by an example, or by chance."""

import random
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from tale import Step

SEEDS = 2**31  # seeds drawn lie below
EXAMPLES = {
    "A dragon comes home": {"start": "The little dragon", "end": "home", "include": ""},
    "A lost balloon": {"start": "Lily had a red balloon", "end": "sky", "include": "bird"},
    "Rain": {"start": "It rained all day", "end": "rainbow", "include": "boots, puddle"},
}
BEGINNINGS = (
    "Once upon a time", "One day", "The little fox", "A tiny mouse", "Deep in the forest", "Tom found a key",
    "The old robot", "Mia and her grandma", "There was a cat", "The moon looked down", "On a snowy morning",
    "Ben heard a strange sound", "A small blue fish", "The king was sad", "Sara opened the big box",
)  # fmt: skip
ENDS = (
    "home", "happy", "friends", "moon", "ice cream", "hug", "stars", "together", "asleep", "sea", "smile", "garden",
    "rainbow", "laughed", "bed",
)  # fmt: skip


@dataclass(frozen=True)
class Wishes:
    """A first step, and the model that is to tell it."""

    step: Step
    model: str


def by_chance() -> dict[str, str]:
    """A beginning and an end, for the fields."""
    return {"start": random.choice(BEGINNINGS), "end": random.choice(ENDS), "include": ""}


def wished(state: MutableMapping[Any, Any]) -> Wishes:
    """
    Raises:
        ValueError: the seed is no number; the rest is judged by the model's own request.
    """
    words = tuple(" ".join(word.split()) for word in state["include"].split(",") if word.strip())
    step = Step(
        start=state["start"],
        keep=None,
        end=state["end"].strip() or None,
        max_words=state["max_words"],
        seed=seed(state["seed"]),
        include=words,
        length=None if state["length"] == "as it comes" else state["length"],
        stop_at_first=state["stop_at_first"],
        temperature=round(state["temperature"], 2),
        top_p=round(state["top_p"], 2),
        num_candidates=state["num_drafts"],
    )
    return Wishes(step, state["model"])


def seed(typed: str) -> int:
    """The number typed, or one by chance.

    Raises:
        ValueError: what was typed is no number of up to ten digits.
    """
    typed = typed.strip()
    if not typed:
        return random.randrange(SEEDS)
    if not (typed.isascii() and typed.isdigit() and len(typed) <= 10):
        raise ValueError(f"a seed is a whole number of up to ten digits, got {typed[:20]!r}")
    return int(typed)

"""Words that do not belong in a children's story, by a kept list (glin-profanity) and some words of our own.

It knows English words, also spelt with digits or signs for letters. It does not know what a sentence means: an unkind
or frightening story of harmless words passes.
"""

from functools import cache

from glin_profanity import Filter

# Not swear words, but nothing to tell a child: what the list leaves out on purpose.
MORE_WORDS = [
    "hell", "sex", "sexy", "nude", "naked", "nazi", "nazis", "hitler", "kkk", "suicide", "murder", "murdered",
    "murderer", "cocaine", "heroin", "molest", "terrorist", "genocide",
]  # fmt: skip
HARMLESS = ["poof", "ass", "cock"]  # a magician's word, a donkey, and a rooster, in the books that children read


@cache
def _words() -> Filter:
    return Filter(
        {"languages": ["english"], "detect_leetspeak": True, "custom_words": MORE_WORDS, "ignore_words": HARMLESS}
    )


def unfit(*texts: str | None) -> bool:
    """Whether a text holds such a word."""
    return any(_words().is_profane(text) for text in texts if text)

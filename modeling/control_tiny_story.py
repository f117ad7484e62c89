"""The special tokens and the control prefix, written once: training and decoding read them here.

A control prefix stands before `<sos>` and tells the model what story is wanted:

    <ending> happy<length_3><include> dragon<sos>Once upon a time ... happy.</sos>

Each part may be missing; a story without wishes is plain `<sos> text </sos>`. Within a story, `<close>` asks for the
next words backwards, from the last one given to where `<begin>` says they begin:

    ... She was tired.<close></sos>. home went She<begin>

Ids 0 to 15 are reserved from the first tokenizer on; a checkpoint trained without prefixes and one trained with them
share one vocabulary.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

PAD, BOS, EOS = "<pad>", "<sos>", "</sos>"
ENDING, INCLUDE = "<ending>", "<include>"
LENGTHS = tuple(f"<length_{bucket}>" for bucket in range(1, 9))
CLOSE, BEGIN = "<close>", "<begin>"
RESERVED = "<reserved_1>"

SPECIAL_TOKENS = (PAD, BOS, EOS, ENDING, INCLUDE, *LENGTHS, CLOSE, BEGIN, RESERVED)  # in order of their ids

LENGTH_LIMITS = (50, 80, 110, 130, 150, 180, 250)  # longest story, in words, of each length but the last
NAMED_LENGTHS = {"short": 2, "medium": 4, "long": 7}  # the bucket of each name, counted from 1
MAX_INCLUDE = 3  # words to include, at most


def length_bucket(num_words: int) -> int:
    """The bucket (1 to 8) a story of so many words belongs to."""
    return 1 + sum(num_words > limit for limit in LENGTH_LIMITS)


def fitting_bucket(max_words: int, waits: bool = False) -> int | None:
    """The longest bucket whose middle leaves 15 words to max_words (or the shortest bucket): nearly all its stories
    come to their own end in time. A story that waits for its ending goes on until it fits, so it is left 35. None if
    nearly all stories are that short anyway."""
    if max_words >= 200:
        return None
    middles = ((low + high) / 2 for low, high in pairwise(LENGTH_LIMITS))
    return 1 + sum(middle + (35 if waits else 15) <= max_words for middle in middles)


def control_prefix(
    encode: Callable[[str], list[int]], ending: str | None, bucket: int | None, include: Sequence[str] = ()
) -> list[int]:
    """Token ids of the prefix; empty without wishes.

    Args:
        encode: text to token ids, without special tokens.
        ending: the story's last words, without the sentence end.
        bucket: length of the story, 1 to 8.
        include: words that shall occur in the story.
    """
    ids: list[int] = []
    if ending:
        ids += [SPECIAL_TOKENS.index(ENDING), *encode(f" {ending}")]
    if bucket:
        ids.append(SPECIAL_TOKENS.index(LENGTHS[bucket - 1]))
    for word in include:
        ids += [SPECIAL_TOKENS.index(INCLUDE), *encode(f" {word}")]
    return ids

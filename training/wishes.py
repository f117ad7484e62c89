"""What a reader could have asked for to get a given story: training shows each story its own wishes.

A share of the stories in every pass carries a control prefix (modeling/control_tiny_story.py) drawn from the story
itself: its last words, its length, words that occur in it, each there or not at random, so one model serves every
combination and free writing too. Some of these stories also begin at a later sentence, and some end at an earlier one:
the data knows only about a hundred first words and a thousand last ones, readers know more.

To learn what `<ending>` means, one last word in two hundred is little to go by. So every story also gives an excerpt of
one to three sentences with its own ending: few tokens, many endings, and nearly every word is last in some. Excerpts
always carry their length, so that they do not teach whole stories to be short. A model that knows `<ending>` still has
to learn when a story is over: with `whole_stories` there are no excerpts, and no story ends early.
"""

import random
import re
from collections.abc import Callable

from modeling.control_tiny_story import MAX_INCLUDE, control_prefix, length_bucket
from modeling.request_tiny_story import PUNCTUATION, count_words

ENDING_SHARE, LENGTH_SHARE, INCLUDE_SHARE = 0.85, 0.5, 0.4  # of the stories with wishes
LATER_START_SHARE, EARLIER_END_SHARE = 0.3, 0.15
ENDING_WORDS = (1, 2, 3, 4, 5)
ENDING_WORDS_WEIGHTS = (60, 14, 10, 8, 8)
SENTENCE_END = re.compile(r"""[.!?]["']? """)
SENTENCE_START = re.compile(r"""(?<=[.!?]["'\s])\s*(?=["']?[A-Z])""")
# Words that say nothing of a story; a reader would not ask for them.
COMMON_WORDS = frozenset(
    """about after again all also always and any are around asked away back because been before began being both
    but came can come could day decided did does down each even ever every everyone felt find for found from gave
    get gets give goes going gone good got had has have having hear heard her here him his how into its just kept
    knew know let like liked little long look looked looking lot lots made make many more most much named need needed
    never new not now off once one only other our out over own people put ran said same saw says see seen she some
    something soon start started still such suddenly take tell than that the their them then there these they thing
    things think this thought time told too took tried turned two under until upon very want wanted was way well went
    were what when where which while who why will with would yes you your""".split()  # noqa: SIM905
)


def draw_wishes(
    text: str, kind: str, encode: Callable[[str], list[int]], rng: random.Random, whole: bool = False
) -> tuple[list[int], str]:
    """A control prefix for a story, and the story it is for: all of `text`, or a run of whole sentences of it.

    Args:
        kind: "story" or "tail"; a tail, which has no beginning, always starts at its first whole sentence.
        whole: no story ends at an earlier sentence than its own last.

    Returns:
        An empty prefix and the text as it was if the text cannot carry wishes (no end, or too few sentences).
    """
    starts = sentence_starts(text)
    if kind not in ("story", "tail") or len(starts) < 3:
        return [], text
    first, end = 0, len(text)
    if kind == "tail":
        first = starts[0]
    elif rng.random() < LATER_START_SHARE:
        first = rng.choice(starts[: len(starts) // 2])
    if rng.random() < EARLIER_END_SHARE and not whole:
        end = rng.choice(starts[len(starts) // 2 :])
    text = text[first:end].rstrip()
    ending, bucket, include = None, None, []
    if rng.random() < ENDING_SHARE:
        ending = _ending(text, rng)
    if rng.random() < LENGTH_SHARE:
        bucket = length_bucket(count_words(text))
    if rng.random() < INCLUDE_SHARE:
        words = content_words(text)
        include = rng.sample(words, min(len(words), rng.randint(1, MAX_INCLUDE)))
    return control_prefix(encode, ending, bucket, include), text


def draw_excerpt(text: str, encode: Callable[[str], list[int]], rng: random.Random) -> tuple[list[int], str] | None:
    """One to three whole sentences of a text, and the control prefix of their ending and length; None if the text has
    not two whole sentences."""
    starts = sentence_starts(text)
    if len(starts) < 2:
        return None
    first = rng.randrange(len(starts) - 1)
    excerpt = text[starts[first] : starts[min(first + rng.randint(1, 3), len(starts) - 1)]].rstrip()
    return control_prefix(encode, _ending(excerpt, rng), length_bucket(count_words(excerpt))), excerpt


def sentence_starts(text: str) -> list[int]:
    """Where sentences begin that no open quote stands before; the first one, which may be cut, is left out."""
    return [match.end() for match in SENTENCE_START.finditer(text) if text.count('"', 0, match.end()) % 2 == 0]


def _ending(text: str, rng: random.Random) -> str:
    """The last one to five words, no more than the last sentence has."""
    (count,) = rng.choices(ENDING_WORDS, ENDING_WORDS_WEIGHTS)
    return SENTENCE_END.split(" ".join(text.split()[-count:]))[-1].strip(PUNCTUATION + " ")


def content_words(text: str) -> list[str]:
    """The different words of a story that say something of it, as they are first written."""
    words = (word.strip(PUNCTUATION) for word in text.split())
    return list({word: None for word in words if len(word) > 2 and word.isalpha() and word.lower() not in COMMON_WORDS})

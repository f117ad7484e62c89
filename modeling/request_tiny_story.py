"""What a reader asks for, and what counts as a story that keeps to it: words, endings, whole sentences."""

import re
from dataclasses import dataclass

SENTENCE_END = re.compile(r"""[.!?]["']?$""")
PUNCTUATION = "".join(chr(c) for c in range(33, 127) if not chr(c).isalnum()) + "“”‘’…—–«»"


def count_words(text: str) -> int:
    """Words as a reader counts them: runs of characters between blanks."""
    return len(text.split())


def bare_words(text: str) -> list[str]:
    """The words in lower case, without the punctuation and quotes around them."""
    return [word for word in (word.strip(PUNCTUATION).lower() for word in text.split()) if word]


def ends_with(text: str, ending: str) -> bool:
    """Whether the last words of the text are the ending's, case, punctuation and quotes aside."""
    words = bare_words(ending)
    return bool(words) and bare_words(text)[-len(words) :] == words


def closes_sentence(text: str) -> bool:
    """Whether the text ends a whole sentence: a full stop, exclamation or question mark, and no quote left open."""
    return bool(SENTENCE_END.search(text.rstrip())) and not open_quote(text)


def open_quote(text: str) -> bool:
    """Whether the last paragraph ends inside quotes."""
    return text.rsplit("\n", 1)[-1].count('"') % 2 == 1


@dataclass(frozen=True)
class StoryRequest:
    """What one reader asks for.

    Args:
        start: the story's first words; they are kept as they are but for a capital first letter and outer blanks.
        end: word or phrase the story ends on; None or "</sos>" lets the model end where it likes.
        max_words: longest length, the start included.
        stop_at_first: stop where the ending is first written, in mid-sentence too, without a search for it.
        seed: of the story's random numbers.
        temperature: 0 takes the likeliest token each time; above, sampling gets bolder.
        top_p: sample from the likeliest tokens that together have this probability (Holtzman et al. 2020).

    Raises:
        ValueError: something that cannot be done, with the value and what would be accepted.
    """

    start: str
    end: str | None = None
    max_words: int = 200
    stop_at_first: bool = False
    seed: int = 0
    temperature: float = 0.8
    top_p: float = 0.95

    def __post_init__(self) -> None:
        if not isinstance(self.start, str) or not self.start.strip():
            raise ValueError(f"start must hold at least one word, got {self.start!r}")
        if self.end is not None and not isinstance(self.end, str):
            raise ValueError(f'end must be a word, a phrase, "</sos>" or None, got {self.end!r}')
        if isinstance(self.max_words, bool) or not isinstance(self.max_words, int) or self.max_words < 1:
            raise ValueError(f"max_words must be a whole number of at least 1, got {self.max_words!r}")
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature must lie between 0 and 10, got {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p!r}")
        start = self.start.strip()
        object.__setattr__(self, "start", start[0].upper() + start[1:])
        end = None if self.end is None or self.end.strip() == "</sos>" else " ".join(self.end.split())
        object.__setattr__(self, "end", end)
        if end is not None and not bare_words(end):
            raise ValueError(f"end must hold at least one word, got {self.end!r}; None lets the model end by itself")
        # After a whole sentence the ending needs at least one word before it: it is never pasted after a full stop.
        least = count_words(start) + (0 if end is None else count_words(end) + closes_sentence(start))
        if least > self.max_words:
            what = "the start" if end is None else "the start and the ending"
            raise ValueError(f"max_words is {self.max_words}, but {what} alone need {least}")

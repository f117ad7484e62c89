"""What a reader asks for, and what counts as a story that keeps to it: words, endings, whole sentences."""

import operator
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .control_tiny_story import MAX_INCLUDE, NAMED_LENGTHS

SENTENCE_END = re.compile(r"""[.!?…]["'”’]{0,2}$""")
BOUNDARY = re.compile(r"""[.!?…]["'”’]{0,2}\s+""")  # between two sentences
PUNCTUATION = "".join(chr(c) for c in range(33, 127) if not chr(c).isalnum()) + "“”‘’…—–«»"
OPENERS = "(-—–"  # after which, as after a blank, a quotation mark opens
STRAIGHT = str.maketrans("“”‘’", "\"\"''")  # as the stories have them


def count_words(text: str) -> int:
    """Words as a reader counts them: runs of characters between blanks."""
    return len(text.split())


def bare_words(text: str) -> list[str]:
    """The words in lower case, without the punctuation and quotes around them; curly quotes are straight ones."""
    return [word for word in (word.strip(PUNCTUATION).lower() for word in text.translate(STRAIGHT).split()) if word]


def ends_with(text: str, ending: str) -> bool:
    """Whether the last words of the text are the ending's, case, punctuation and quotes aside."""
    words = bare_words(ending)
    tail = bare_words(text[-2 * len(ending) - 80 :])[1:]  # the first word may be cut
    if len(tail) < len(words):
        tail = bare_words(text)
    return bool(words) and tail[-len(words) :] == words


def keeps_capitals(text: str, ending: str) -> bool:
    """Whether the text's last words, which are the ending's, stand in capitals where the ending does: a word with a
    capital after its first letter (USA, McDonald) is written so; a first letter may be either."""
    typed = [word.strip(PUNCTUATION) for word in ending.split() if word.strip(PUNCTUATION)]
    told = [word.strip(PUNCTUATION) for word in text.split() if word.strip(PUNCTUATION)]
    pairs = zip(typed, told[len(told) - len(typed) :], strict=True)
    return all(not has_inner_capital(one) or one == other for one, other in pairs)


def has_inner_capital(word: str) -> bool:
    """Whether a letter after the first one is a capital."""
    return word[1:] != word[1:].lower()


def closes_sentence(text: str) -> bool:
    """Whether the text ends a whole sentence: a full stop, exclamation or question mark, and no quote left open."""
    return bool(SENTENCE_END.search(text.rstrip()[-3:])) and not open_quote(text)


def includes(text: str, word: str) -> bool:
    """Whether a word or phrase occurs in the text, as it is or inflected: with s, 's, d, ed, ing or er, after
    s, x, z, o or h also with es, with ing in place of a last e (dance, dancing), with ies or ied in place of a last y
    (cry, cried). Case does not count."""
    wanted = " ".join(bare_words(word))
    if not wanted:
        return False
    stem = re.escape(wanted)
    forms = [f"{stem}(?:s|['’]s|d|ed|ing|er)?"]
    if wanted.endswith(("s", "x", "z", "o", "h")):
        forms.append(f"{stem}es")
    if wanted.endswith("e"):
        forms.append(re.escape(wanted[:-1]) + "ing")
    if wanted.endswith("y"):
        forms.append(re.escape(wanted[:-1]) + "(?:ies|ied)")
    return bool(re.search(rf"(?:^| )(?:{'|'.join(forms)})(?: |$)", " ".join(bare_words(text))))


def open_quote(text: str) -> bool:
    """Whether the last paragraph ends inside quotes."""
    return text.rsplit("\n", 1)[-1].translate(STRAIGHT).count('"') % 2 == 1


def quotes_after(text: str, more: str) -> bool | None:
    """Whether a quote is open after the text and some more; None if the more has a quotation mark where none can stand:
    one that closes what was not opened, one that opens within quotes, or a paragraph that leaves its quote open."""
    is_open, before = open_quote(text), text[-1:]
    for character in more:
        if character == '"':
            opens = not before or before.isspace() or before in OPENERS
            if opens == is_open:
                return None
            is_open = opens
        elif character == "\n" and is_open:
            return None
        before = character
    return is_open


def is_nothing(value: Any) -> bool:
    """Whether it is what stands for nothing in data sets: None, NaN of any kind, pandas' NA."""
    if value is None or type(value).__name__ == "NAType":
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError, RuntimeError):  # many values, which have no one truth
        return False


def yes_or_no(name: str, value: Any) -> bool:
    """The value as a bool; 1 and 0, which data sets make of it, are one too.

    Raises:
        ValueError: it is anything else, "no" and "False" among it.
    """
    try:
        if not isinstance(value, str) and value in (True, False):
            return bool(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise ValueError(f"{name} must be True or False, got {value!r}")


def whole_number(name: str, value: Any, least: int) -> int:
    """The value as an int; integers of NumPy and PyTorch are whole numbers too, and so is 60.0, which is what a data
    frame makes of 60 in a column with gaps.

    Raises:
        ValueError: it is no whole number, or below the least.
    """
    number = least - 1
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # the last two: a tensor of several numbers
        with suppress(ValueError):
            real = real_number(name, value)
            number = int(real) if real.is_integer() else number
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


def real_number(name: str, value: Any) -> float:
    """The value as a float; numbers of NumPy and PyTorch are numbers too.

    Raises:
        ValueError: it is no number.
    """
    try:
        if not isinstance(value, (bool, str, bytes)):
            return float(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise ValueError(f"{name} must be a number, got {value!r}")


@dataclass(frozen=True)
class StoryRequest:
    """What one reader asks for.

    Args:
        start: the story's first words; they are kept as they are but for a capital first letter and outer blanks.
        end: word or phrase the story ends on; None or "</sos>" lets the model end where it likes. A word with a
            capital after its first letter (USA) keeps its capitals; other words may begin with either. Curly quotes
            become straight ones, which the story has, and a comma or the like at its end is left out.
        max_words: longest length, the start included. The model may stop by itself from half of it on, or from 200
            characters (some 40 words) if that is less. Below 200, unless a length is named, a story with an ending is
            planned some 35 words shorter than this, so that its ending fits in.
        include: up to three words or phrases that occur in the story, inflected or not (see `includes`).
        length: "short" (about 65 words), "medium" (about 120) or "long" (about 215), as far as max_words allows; None
            leaves it to the model and max_words.
        stop_at_first: stop where the ending is first written, in mid-sentence too, without a search for it.
        seed: of the story's random numbers.
        temperature: 0 takes the likeliest token each time; above, sampling gets bolder. The first fifth of a story is
            drawn at twice of this, among the words that would be drawn anyway, so that stories differ. The last 41 % of
            a story with an ending are drawn at half of it: any of their sentences may have to close the story.
        top_p: sample from the likeliest tokens that together have this probability (Holtzman et al. 2020).
        dry_multiplier: strength of the guard against loops (see `repetition_penalties`); 0 turns it off.

    Raises:
        ValueError: something that cannot be done, with the value and what would be accepted.
    """

    start: str
    end: str | None = None
    max_words: int = 200
    include: tuple[str, ...] = ()
    length: str | None = None
    stop_at_first: bool = False
    seed: int = 0
    temperature: float = 0.5
    top_p: float = 0.95
    dry_multiplier: float = 1.2

    def __post_init__(self) -> None:
        if not isinstance(self.start, str) or not self.start.strip():
            raise ValueError(f"start must hold at least one word, got {self.start!r}")
        if self.end is not None and not isinstance(self.end, str):
            raise ValueError(f'end must be a word, a phrase, "</sos>" or None, got {self.end!r}')
        for name, least in (("max_words", 1), ("seed", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        object.__setattr__(self, "stop_at_first", yes_or_no("stop_at_first", self.stop_at_first))
        for name in ("temperature", "top_p", "dry_multiplier"):
            object.__setattr__(self, name, real_number(name, getattr(self, name)))
        include = () if self.include is None else self.include
        words = tuple(include) if isinstance(include, Iterable) else (None,)
        if isinstance(self.include, (str, dict)) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"include must be a list of words, got {self.include!r}")
        object.__setattr__(self, "include", words)
        if len(self.include) > MAX_INCLUDE or not all(bare_words(word) for word in self.include):
            raise ValueError(f"include takes up to {MAX_INCLUDE} words, each with a letter, got {self.include!r}")
        if self.length is not None and (not isinstance(self.length, str) or self.length not in NAMED_LENGTHS):
            raise ValueError(f"length must be one of {', '.join(NAMED_LENGTHS)} or None, got {self.length!r}")
        for text in (self.start, self.end or "", *self.include):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"{text!r} holds half a character (a lone surrogate), which no text can")
        if not 0 <= self.dry_multiplier <= 100:
            raise ValueError(f"dry_multiplier must lie between 0 and 100, got {self.dry_multiplier!r}")
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature must lie between 0 and 10, got {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p!r}")
        start = self.start.strip()
        first = start[0].upper()
        object.__setattr__(self, "start", first + start[1:] if len(first) == 1 else start)  # ß and ﬁ have no capital
        end = None if self.end is None or self.end.strip() == "</sos>" else " ".join(self.end.split())
        end = end and end.translate(STRAIGHT).rstrip(",;:-–— ")
        object.__setattr__(self, "end", end)
        object.__setattr__(self, "include", tuple(" ".join(word.translate(STRAIGHT).split()) for word in words))
        if end is not None and not bare_words(end):
            raise ValueError(f"end must hold at least one word, got {self.end!r}; None lets the model end by itself")
        # After a whole sentence the ending needs at least one word before it: it is never pasted after a full stop.
        added = self.missing(start)
        more = sum(count_words(word) for word in added) + (0 if end is None else count_words(end))
        least = count_words(start) + more + (more > 0 and closes_sentence(start))
        if least > self.max_words:
            what = "the start" + (", the words to include" if added else "") + (" and the ending" if end else "")
            raise ValueError(f"max_words is {self.max_words}, but {what} alone need {least}")

    @property
    def planned_end(self) -> str | None:
        """The ending that the story waits for; None where there is none, or the story stops at the first."""
        return None if self.stop_at_first else self.end

    def missing(self, text: str) -> list[str]:
        """The words to include that the text does not hold yet; those of an ending that will come count as held."""
        held = self.planned_end or ""
        return [word for word in self.include if not includes(text, word) and not includes(held, word)]

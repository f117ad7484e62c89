"""A story as it is written, and what its writer must know of the vocabulary."""

import re
from codecs import utf_8_decode
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from .request_tiny_story import (
    OPENERS,
    PUNCTUATION,
    StoryRequest,
    count_words,
    has_inner_capital,
    open_quote,
    quotes_after,
)

BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # of a byte-level token's characters


class Place(NamedTuple):
    """How far a story was told at the end of a sentence."""

    num_tokens: int
    num_characters: int
    log_probability: float


@dataclass
class Story:
    """A story as it is written; `finish_reason` is "ending", "eos" or "length" once it is finished, "open" if it
    only lacks the closing sentence."""

    request: StoryRequest
    ids: list[int]  # tokens of the text, without prefix and <sos>
    text: str  # whole characters only
    random: Random
    finish_reason: str | None = None
    searches: int = 0  # times a word or the ending did not come by itself
    plants: int = 0  # times its ending's word may still be tried early in the story
    places: list["Place"] = field(default_factory=list)  # late sentence ends, where its ending could have come too
    brought: list[tuple[int, int, str]] = field(default_factory=list)  # what `bring_in` gave: tokens [from, to), how
    log_probability: float = 0.0  # of the tokens written, in nats; of what was brought in, as it is read forwards
    unjudged: tuple[int, float] = (0, 0.0)  # its opening, and what prepared its ending: tokens, and their nats
    strange: bool = False  # its ending is a word that the model knows no use of
    learner: str = ""  # who has learnt that word early in the story
    closing_cost: float = 8.0  # nats of its ending beyond the usual (`bring_in`); one that came by itself costs little
    whole_word: bool = False  # the text ends on a word that must not be lengthened to another one
    pending: list[int] = field(default_factory=list)  # tokens that are settled, still to be written
    given: int = 0  # characters already given out
    half: bytes = b""  # written of a character that the next tokens have to complete

    def __post_init__(self) -> None:
        self.num_given = len(self.ids)  # tokens of the start
        self.words_given, self.num_words = count_words(self.request.start), count_words(self.text)
        self.ending_words = count_words(self.request.planned_end or "")

    @property
    def words_left(self) -> int:
        """Words until the reader's limit."""
        return self.request.max_words - self.num_words

    @property
    def mean_log_probability(self) -> float:
        """Of the tokens written, in nats."""
        return self.log_probability / max(1, len(self.ids) - self.num_given)

    @property
    def num_judged(self) -> int:
        """Tokens that say how likely the story is, settled ones too: all after its opening, less what prepared its
        ending."""
        return len(self.ids) + len(self.pending) - self.num_given - self.unjudged[0]

    @property
    def mean_judged(self) -> float:
        """The mean log probability of those, in nats; of a story that is all opening, of all its tokens."""
        if self.num_judged <= 0:
            return self.mean_log_probability
        return (self.log_probability - self.unjudged[1]) / self.num_judged

    @property
    def misses_ending(self) -> bool:
        """Whether it was asked for an ending and stopped without."""
        return bool(self.request.end) and self.finish_reason == "eos"

    def follow(self, leader: "Story") -> None:
        """Go on from where another telling of the same wish is, with random numbers of its own."""
        told = {name: value.copy() if isinstance(value, list) else value for name, value in vars(leader).items()}
        vars(self).update(told | {"request": self.request, "random": self.random})

    def back_at(self, place: Place) -> "Story":
        """The story as it was at an earlier place; its random numbers are the same ones."""
        earlier = replace(self, ids=self.ids[: place.num_tokens], text=self.text[: place.num_characters])
        earlier.num_given = self.num_given
        earlier.finish_reason, earlier.log_probability = None, place.log_probability
        earlier.places = [one for one in self.places if one.num_tokens < place.num_tokens]
        earlier.brought = [one for one in self.brought if one[1] <= place.num_tokens]
        earlier.whole_word, earlier.pending, earlier.half = False, [], b""
        earlier.given = min(self.given, place.num_characters)
        return earlier

    def words_needed(self, missing: list[str]) -> int:
        """Words of what the story must still hold: the words to include that are missing, and its ending."""
        return sum(map(count_words, missing)) + self.ending_words

    def write(self, token: int, vocabulary: "Vocabulary") -> None:
        """Take a token into the story."""
        self.ids.append(token)
        data = self.half + vocabulary.bytes[token]
        piece, read = utf_8_decode(data, "replace", False)
        self.text, self.half = self.text + piece, data[read:]
        self.num_words = count_words(self.text)
        self.whole_word = self.whole_word and not any(map(str.isspace, piece))

    def give(self) -> str:
        """The text that is not given out yet."""
        piece, self.given = self.text[self.given :], len(self.text)
        return piece


class Vocabulary:
    """What the decoder must know of each token: its text, which may start a word, and the ids it uses by name.

    Args:
        size: logits of the model. It may have more than the tokenizer has tokens (embeddings are often padded to a
            multiple of 64); those stand for nothing and are never drawn.

    Masks are True for what must not be drawn, (vocab,):
        special: control tokens, and what the tokenizer does not have.
        not_text: the same, but for the end of the story.
        not_whole: special tokens, and those that are not whole characters by themselves.
        joins: tokens that make the word before them another one.
        blank_first: tokens that begin with a blank.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int | None = None):
        size = len(tokenizer) if size is None else size
        self.tokenizer = tokenizer
        self.pieces = [tokenizer.decode([i]) if i < len(tokenizer) else "" for i in range(size)]
        self.bytes = [self._bytes(i) for i in range(size)]
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.special = np.arange(size) >= len(tokenizer)
        self.special[[i for i in tokenizer.all_special_ids if i < size]] = True
        self.joins = np.array([joins(piece) for piece in self.pieces]) & ~self.special
        self.blank_first = np.array([piece[:1].isspace() for piece in self.pieces]) & ~self.special
        self.not_text = self.special.copy()
        self.not_text[self.eos] = False
        self.not_whole = self.special | np.array([not is_text(data, whole=True) for data in self.bytes])
        self.inside = [
            i for i, data in enumerate(self.bytes) if data and data[0] & 0xC0 == 0x80 and not self.special[i]
        ]
        self._encoded = lru_cache(maxsize=1024)(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
        self.breaks = lru_cache(maxsize=256)(self._breaks)
        quoted = [i for i, piece in enumerate(self.pieces) if '"' in piece or "\n" in piece]
        self._misquotes = {text: np.zeros_like(self.special) for text in ("a", "a ", '"a', '"a ')}
        for text, mask in self._misquotes.items():
            mask[[i for i in quoted if quotes_after(text, self.pieces[i]) is None]] = True
            mask[self.eos] = open_quote(text)

    def _bytes(self, token: int) -> bytes:
        piece = self.pieces[token]
        if "\ufffd" not in piece:
            return piece.encode()
        return bytes(BYTES[character] for character in self.tokenizer.convert_ids_to_tokens(token))

    def _breaks(self, half: bytes) -> np.ndarray:
        """Mask (vocab,) of what cannot come after these first bytes of a character, or after none: what is no text, and
        bytes that no character has there. While a character is unfinished the story cannot end."""
        mask = np.ones_like(self.special) if half else self.not_text.copy()
        # Whole characters follow on whole ones; only what begins inside a character goes on with one.
        for token in self.inside if half else np.flatnonzero(self.not_whole & ~self.special):
            mask[token] = not is_text(half + self.bytes[token], whole=False)
        return mask

    def misquotes(self, text: str) -> np.ndarray:
        """Mask (vocab,) of the tokens whose quotation marks cannot stand after the text."""
        blank = " " if not text or text[-1].isspace() or text[-1] in OPENERS else ""
        return self._misquotes[('"a' if open_quote(text) else "a") + blank]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without special ones."""
        return list(self._encoded(text))

    def decode(self, ids: list[int]) -> str:
        """Text of some tokens, without special ones."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def at_home(self, words: str) -> str:
        """The words as the training stories would spell them: a word with capitals as the commonest spelling that is
        one token, with or without a first capital; if none is, as typed, without capitals after the first letter. One
        without capitals gets one if it is a token only so: mary is Mary."""
        return " ".join(map(self._at_home, words.split()))

    def _at_home(self, word: str) -> str:
        bare = word.strip(PUNCTUATION)
        encoded = {spelling: self.encode(f" {spelling}") for spelling in (bare.lower(), bare.capitalize())}
        known = {spelling: ids[0] for spelling, ids in encoded.items() if len(ids) == 1}
        if bare == bare.lower() and (bare in known or not known):
            return word
        fallback = bare.lower() if has_inner_capital(bare) else bare
        # Byte pairs were merged in the order of how often they occur: a lower id is a commoner token.
        return word.replace(bare, min(known, key=lambda spelling: known[spelling], default=fallback))

    def with_capital(self, words: str) -> str:
        """The words as typed, save a name without its capital."""
        home = self.at_home(words)
        return home if words == words.lower() and count_words(words) == 1 else words

    def word_ids(self, words: str) -> list[int]:
        """Tokens of a single word, as the training stories would spell it; of several words, or of none, none."""
        return self.encode(f" {self.at_home(words).strip(PUNCTUATION)}") if count_words(words) == 1 else []


def joins(piece: str) -> bool:
    """Whether a piece makes the word before it another word: letters before its first blank, save a genitive."""
    head = re.split(r"\s", piece, maxsplit=1)[0]
    return "\ufffd" in piece or (any(map(str.isalnum, head)) and head not in ("'s", "’s"))


def is_text(data: bytes, whole: bool) -> bool:
    """Whether the bytes are UTF-8; if not `whole`, the last character's last bytes may still have to come."""
    try:
        _, read = utf_8_decode(data, "strict", whole)
    except UnicodeDecodeError:
        return False
    # Python waits for a third byte before it refuses a surrogate, which no text holds.
    return not (data[read : read + 1] == b"\xed" and data[read + 1 : read + 2] > b"\x9f")


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> Vocabulary:
    """The tokenizer's vocabulary, built once for each size of it and of the model's logits."""
    return _vocabulary(tokenizer, len(tokenizer), size)


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: PreTrainedTokenizerBase, tokens: int, size: int | None) -> Vocabulary:
    return Vocabulary(tokenizer, size)

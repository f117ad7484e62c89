"""A story as it is written, and what its writer must know of the vocabulary."""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

import numpy as np
from transformers import PreTrainedTokenizerBase

from .request_tiny_story import StoryRequest, count_words


@dataclass
class Story:
    """A story as it is written; `finish_reason` is "ending", "eos" or "length" once it is finished."""

    request: StoryRequest
    ids: list[int]  # tokens of the text, without prefix and <sos>
    text: str
    random: Random
    finish_reason: str | None = None
    searches: int = 0  # times a word or the ending did not come by itself
    log_probability: float = 0.0  # of the tokens written, in nats; of what a search chose, its score
    whole_word: bool = False  # the text ends on a word that must not be lengthened to another one
    pending: list[int] = field(default_factory=list)  # tokens a search has settled, still to be written
    given: int = 0  # characters already given out
    closed_at: int | None = None  # characters before the closing that a search brought in; None if there was none

    def __post_init__(self) -> None:
        self.num_given = len(self.ids)  # tokens of the start
        self.words_given, self.num_words = count_words(self.request.start), count_words(self.text)
        self.ending_words = count_words(self.request.planned_end or "")

    @property
    def words_left(self) -> int:
        return self.request.max_words - self.num_words

    @property
    def mean_log_probability(self) -> float:
        """Of the tokens written, in nats."""
        return self.log_probability / max(1, len(self.ids) - self.num_given)

    def words_needed(self, missing: list[str]) -> int:
        """Words of what the story must still hold: the words to include that are missing, and its ending."""
        return sum(map(count_words, missing)) + self.ending_words

    def write(self, token: int, vocabulary: "Vocabulary") -> None:
        self.ids.append(token)
        piece = vocabulary.pieces[token]
        # A piece with half a character in it only makes sense beside its neighbours.
        partial = "\ufffd" in piece or "\ufffd" in self.text[-3:]
        self.text = vocabulary.decode(self.ids) if partial else self.text + piece
        self.num_words = count_words(self.text)
        self.whole_word = self.whole_word and not any(map(str.isspace, piece))

    def give(self) -> str:
        """The text that is final and not given out yet; half a character waits for its other half."""
        final = self.text if self.finish_reason else self.text.rstrip("\ufffd")
        piece, self.given = final[self.given :], max(self.given, len(final))
        return piece


class Vocabulary:
    """What the decoder must know of each token: which may start a word, and the ids it uses by name."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.pieces = [tokenizer.decode([i]) for i in range(len(tokenizer))]
        self.eos = tokenizer.eos_token_id
        self.special = np.zeros(len(tokenizer), dtype=bool)
        self.special[tokenizer.all_special_ids] = True
        self.joins = np.array([joins(piece) for piece in self.pieces]) & ~self.special
        self.not_text = self.special.copy()
        self.not_text[self.eos] = False
        self._encoded = lru_cache(maxsize=1024)(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode(self, text: str) -> list[int]:
        return list(self._encoded(text))

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def joins(piece: str) -> bool:
    """Whether a piece makes the word before it another word: letters before its first blank, save a genitive."""
    head = re.split(r"\s", piece, maxsplit=1)[0]
    return "\ufffd" in piece or (any(map(str.isalnum, head)) and head not in ("'s", "’s"))


vocabulary_of = lru_cache(maxsize=4)(Vocabulary)

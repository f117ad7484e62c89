"""How a story is decoded: from the reader's start to the reader's ending, within the reader's length.

`write_stories` writes a batch of stories token by token. A story that asks for something is planned: its wishes stand
before it as a control prefix, which the model was trained on. It is not left to chance either: `</sos>` is only taken
after a sentence that closes on the ending, with every word to include told. Where the model would stop without them,
or the limit nears, `_bring_in` searches how to bring the ending or the word in: it samples continuations on copies of
the cache, and of all places in them takes the one where the model finds ending + sentence end + `</sos>`, or the word,
likeliest, and the way there too. Words are given out only when they are final, so a stream never takes anything back.

Every story draws from its own random numbers: it comes out the same alone or in a batch.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest
from random import Random

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .control_tiny_story import NAMED_LENGTHS, control_prefix, fitting_bucket
from .decoder_tiny_story import Decoder, Precision, open_decoder
from .request_tiny_story import (
    BOUNDARY,
    PUNCTUATION,
    SENTENCE_END,
    StoryRequest,
    closes_sentence,
    count_words,
    ends_with,
    open_quote,
)
from .sampling_tiny_story import repetition_penalties, sample

CANDIDATES = 8  # continuations sampled by a search
SEARCH_TEMPERATURE = 0.6  # they are sampled at, or at the story's own if that is lower
CANDIDATE_TOKENS = 20  # their longest length
FINALISTS = 24  # places scored in full, at most
FINALISTS_AT_ONCE = 4  # read side by side, the likeliest first
TOKENS_PER_WORD = 1.4  # of TinyStories: how much room the cache gets at once
CLOSING_WORDS = 16  # words kept back for the closing sentence, and for one with each word to include
TOKEN_NATS = 1.0  # a token's usual cost: what is brought in is not better for being short
FRAGMENT_COST = 3.0  # nats by which a last sentence of one word and the ending must be likelier
CAPITAL_COST = 3.0  # nats by which a spelling with a capital the reader did not type must be likelier


@dataclass
class Story:
    """A story as it is written; `finish_reason` is "ending", "eos" or "length" once it is finished."""

    request: StoryRequest
    ids: list[int]  # tokens of the text, without prefix and <sos>
    text: str
    random: Random
    finish_reason: str | None = None
    searches: int = 0  # times a word or the ending did not come by itself
    log_probability: float = 0.0  # of the tokens written, in nats, with nothing forbidden and nothing penalised
    whole_word: bool = False  # the text ends on a word that must not be lengthened to another one
    pending: list[int] = field(default_factory=list)  # tokens a search has settled, still to be written
    given: int = 0  # characters already given out
    places: dict[int, list[int]] = field(default_factory=dict)  # where each token occurs in ids

    def __post_init__(self) -> None:
        tokens, self.ids = self.ids, []
        for token in tokens:
            self._append(token)
        self.num_given = len(tokens)  # tokens of the start

    @property
    def words_left(self) -> int:
        return self.request.max_words - count_words(self.text)

    def write(self, token: int, vocabulary: "Vocabulary") -> None:
        self._append(token)
        piece = vocabulary.pieces[token]
        # A piece with half a character in it only makes sense beside its neighbours.
        partial = "\ufffd" in piece or "\ufffd" in self.text[-3:]
        self.text = vocabulary.decode(self.ids) if partial else self.text + piece
        self.whole_word = self.whole_word and not any(map(str.isspace, piece))

    def _append(self, token: int) -> None:
        self.places.setdefault(token, []).append(len(self.ids))
        self.ids.append(token)

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

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def joins(piece: str) -> bool:
    """Whether a piece makes the word before it another word: letters before its first blank, save a genitive."""
    head = re.split(r"\s", piece, maxsplit=1)[0]
    return "\ufffd" in piece or (any(map(str.isalnum, head)) and head not in ("'s", "’s"))


_vocabulary = lru_cache(maxsize=4)(Vocabulary)


@torch.inference_mode()
def write_stories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: list[StoryRequest],
    precision: Precision = "auto",
) -> Iterator[tuple[int, str, Story]]:
    """Write stories side by side.

    Args:
        precision: as in `open_decoder`.

    Yields:
        (index of the request, next piece of its text, the story so far); the first piece is the start. When the
        iterator ends, every story has its `finish_reason`.

    Raises:
        ValueError: a start or an ending does not fit into the model's context.
    """
    vocabulary = _vocabulary(tokenizer)
    decoder = open_decoder(model, precision)
    stories, prompts, limits = [], [], []
    for request in requests:
        prefix, limit = _plan(request, vocabulary, model.config)
        ids = vocabulary.encode(request.start)
        if len(ids) > limit:
            raise ValueError(
                f"the start has {len(ids)} tokens; with this ending the model has room for {max(0, limit)} "
                f"(its context is {model.config.max_position_embeddings} tokens)"
            )
        stories.append(Story(request, ids, request.start, Random(request.seed), whole_word=request.start[-1].isalnum()))
        prompts.append([*prefix, tokenizer.bos_token_id, *ids])
        limits.append(limit)
    for index, story in enumerate(stories):
        yield index, story.give(), story

    rows = list(range(len(stories)))  # story of each row of the decoder
    room = round(TOKENS_PER_WORD * max(request.max_words for request in requests))
    logits = decoder.start(prompts, min(room, max(limits))).numpy()  # (rows, vocab)
    while True:
        finished = []
        for row, index in enumerate(rows):
            story = stories[index]
            _advance(story, decoder, row, logits[row], vocabulary, full=len(story.ids) >= limits[index])
            if story.finish_reason:
                finished.append(row)
            yield index, story.give(), story
        if finished:
            keep = list(range(len(rows)))
            for row in reversed(finished):  # the last row takes its place: less to move
                keep[row] = keep[-1]
                keep.pop()
            rows = [rows[row] for row in keep]
            if not rows:
                return
            decoder.keep(keep)
        logits = decoder.step([stories[index].ids[-1] for index in rows]).numpy()


def _plan(request: StoryRequest, vocabulary: Vocabulary, config: PreTrainedConfig) -> tuple[list[int], int]:
    """The control prefix, and how many tokens of text leave just room for what was asked for and its search."""
    prefix: list[int] = []
    ending = None if request.stop_at_first else request.end
    if config.control_prefix:
        buckets = [fitting_bucket(request.max_words), NAMED_LENGTHS.get(request.length)]
        bucket = min((bucket for bucket in buckets if bucket), default=None)
        prefix = control_prefix(vocabulary.encode, ending, bucket, request.include)
    wanted = [*request.include, *([ending] if ending else [])]
    reserve = sum(CANDIDATE_TOKENS + 8 + len(vocabulary.encode(f" {words}")) for words in wanted or [""])
    return prefix, config.max_position_embeddings - 1 - len(prefix) - reserve


def _advance(story: Story, decoder: Decoder, row: int, logits: np.ndarray, vocabulary: Vocabulary, full: bool) -> None:
    """Write one more token, or finish the story.

    Args:
        logits: (vocab,) of the story's next token.
        full: the limit of `_plan` is reached.
    """
    if not story.pending:
        token = _draw(story, logits, vocabulary)
        step = _judge(story, token, vocabulary, full)
        if isinstance(step, str):
            story.finish_reason = step
            return
        if isinstance(step, _Target):
            story.searches += 1
            story.pending = _bring_in(step, story, decoder, row, logits, vocabulary)
            if step.final:
                for token in story.pending:
                    story.write(token, vocabulary)
                story.pending, story.finish_reason = [], "ending"
                return
        else:
            story.log_probability += float(log_softmax(logits)[token])
            story.write(token, vocabulary)
            return
    story.write(story.pending.pop(0), vocabulary)
    story.whole_word = not story.pending


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last dimension."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _draw(story: Story, logits: np.ndarray, vocabulary: Vocabulary) -> int:
    """The token the model wants next, within what a story may hold."""
    logits = logits.copy()
    logits[vocabulary.not_text] = -np.inf
    if story.text == story.request.start:
        logits[vocabulary.eos] = -np.inf
    if story.whole_word:
        logits[vocabulary.joins] = -np.inf
    request = story.request
    for token, penalty in repetition_penalties(story.ids, story.places, request.dry_multiplier).items():
        logits[token] -= penalty
    return sample(logits, request.temperature, request.top_p, story.random.random())


@dataclass(frozen=True)
class _Target:
    """What is to be brought into a story now: its ending (final), or a word to include."""

    words: str
    final: bool


def _judge(story: Story, token: int, vocabulary: Vocabulary, full: bool) -> str | _Target | None:
    """What to do with the token the model wants next: take it (None), finish before it, or bring something in."""
    request, text = story.request, story.text
    if vocabulary.joins[token] and not text[-1:].isspace() and not full:
        return None  # in the middle of a word
    stops, left, closed = token == vocabulary.eos, story.words_left, closes_sentence(text)
    missing = request.missing(text)
    there = request.end and not missing and len(text) > len(request.start) and ends_with(text, request.end)
    if there and (request.stop_at_first or (closed and (stops or left <= CLOSING_WORDS))):
        return "ending"
    planned = bool(request.end) and not request.stop_at_first
    if not missing and not planned:
        if stops:
            return "eos"
        over = left <= 0 and count_words(text + vocabulary.pieces[token]) > request.max_words
        return "length" if full or over else None
    left -= _words_needed(story, missing)
    sentences = len(missing) + planned
    # A sentence end in good time is the better place; in mid-sentence only when the words run out.
    if full or stops or (closed and left <= CLOSING_WORDS * sentences) or left <= 4 * sentences:
        return _Target(missing[0], final=False) if missing else _Target(request.end, final=True)
    return None


def _words_needed(story: Story, missing: list[str]) -> int:
    """Words of what the story must still hold."""
    request = story.request
    ending = request.end if request.end and not request.stop_at_first else ""
    return sum(count_words(word) for word in missing) + count_words(ending)


@dataclass
class _Continuation:
    """A way on from what is written, as far as a search has sampled it."""

    tokens: list[int]
    texts: list[str]  # after so many of the tokens, from the story's first word on
    scores: list[float]  # of so many: their log-probability, and TOKEN_NATS for each
    first: list[list[float]]  # log-probabilities, after so many tokens read, of each spelling's first token
    whole_word: bool
    ended: bool = False


def _bring_in(
    target: _Target, story: Story, decoder: Decoder, row: int, logits: np.ndarray, vocabulary: Vocabulary
) -> list[int]:
    """Tokens that lead to the target's words: sampled continuations, closed at the best place in any of them.

    Args:
        decoder: its `row` is what is written so far; logits: (vocab,) of the next token.
    """
    typed = target.words.rstrip(PUNCTUATION)
    mark = target.words[len(typed) :] if target.final else ""
    spellings = [typed] if typed[:1].isupper() else [typed, typed[0].upper() + typed[1:]]
    spelling_ids = [vocabulary.encode(" " + spelling) for spelling in spellings]
    room = story.words_left - _words_needed(story, story.request.missing(story.text))

    fork = decoder.fork([row] * CANDIDATES, room=CANDIDATE_TOKENS)
    continuations = _continue(story, fork, logits, vocabulary, room, [x[0] for x in spelling_ids])
    places = []  # (score of the continuation so far and the first token, continuation, tokens of it, spelling)
    most_words = count_words(story.text) + room
    seen: set[tuple[int, ...]] = set()
    for index, way in enumerate(continuations):
        for length, firsts in enumerate(way.first):
            path = tuple(way.tokens[:length])
            if path in seen or not _may_stand(target, way, length, vocabulary, most_words):
                continue
            seen.add(path)
            # A sentence of one word and the ending is a fragment.
            fragment = target.final and count_words(BOUNDARY.split(way.texts[length])[-1]) < 2
            costs = way.scores[length] - FRAGMENT_COST * fragment
            places += [(costs + firsts[n] - CAPITAL_COST * n, index, length, n) for n in range(len(spellings))]
    places = sorted(places, key=lambda place: (-place[0], place[1:]))[:FINALISTS]
    if not places:  # nothing fits: right here
        places = [(continuations[0].first[0][0], 0, 0, 0)]

    best: tuple[float, list[int], int] = (-np.inf, [], 0)
    for number in range(0, len(places), FINALISTS_AT_ONCE):
        some = places[number : number + FINALISTS_AT_ONCE]
        if some[0][0] <= best[0]:
            break  # what a place still costs only lowers its score
        closings = []  # for each place, the ways to close there: words + a sentence end
        for _, index, length, spelling in some:
            stops = [""]
            if target.final:
                stops = [mark] if SENTENCE_END.search(mark) else [mark + ".", mark + "!"]
                text = f"{continuations[index].texts[length]} {spellings[spelling]}"
                stops = [stop + ('"' if open_quote(text + stop) else "") for stop in stops]
            closings.append([spelling_ids[spelling] + vocabulary.encode(stop) for stop in stops])
        # One forward pass with the first way of each; how it differs from the second is read off the same logits.
        width = max(len(ways[0]) for ways in closings)
        cuts = [len(continuations[index].first) - 1 - length for _, index, length, _ in some]
        branches = fork.fork([index for _, index, _, _ in some], cuts, room=width)
        scores = log_softmax(branches.extend([ways[0] + [0] * (width - len(ways[0])) for ways in closings]).numpy())
        for row, ((first, index, length, _), ways) in enumerate(zip(some, closings, strict=True)):
            score = first + sum(float(scores[row, at - 1, token]) for at, token in enumerate(ways[0]) if at)
            if target.final:
                score += float(scores[row, len(ways[0]) - 1, vocabulary.eos])
            for close in ways:
                at = next((at for at, pair in enumerate(zip_longest(ways[0], close)) if pair[0] != pair[1]), 0)
                gain = float(scores[row, at - 1, close[at]] - scores[row, at - 1, ways[0][at]]) if at else 0.0
                if score + gain > best[0]:
                    best = (score + gain, continuations[index].tokens[:length] + close, length)
    score, tokens, length = best
    story.log_probability += score - TOKEN_NATS * length
    return tokens


def _may_stand(target: _Target, way: _Continuation, length: int, vocabulary: Vocabulary, most_words: int) -> bool:
    """Whether the words may stand after `length` of the tokens: inside a sentence, between words, within the limit."""
    text = way.texts[length]
    inside = (text[-1:].isalnum() or text[-1:] == ",") and "\ufffd" not in text
    whole = length == len(way.tokens) or not vocabulary.joins[way.tokens[length]]
    # A word that stands twice in a row is no ending; the whole of a word the reader began with stays as it is.
    return inside and whole and count_words(text) <= most_words and not ends_with(text, target.words)


def _continue(
    story: Story, fork: Decoder, logits: np.ndarray, vocabulary: Vocabulary, room: int, first: list[int]
) -> list[_Continuation]:
    """Sample ways on to the next sentence end, one for each row of the fork, which reads all they hold but the token
    that ends one.

    Args:
        logits: (vocab,) of the next token; first: the tokens whose log-probabilities are wanted.
    """
    request = story.request
    temperature = min(request.temperature or SEARCH_TEMPERATURE, SEARCH_TEMPERATURE)
    random = story.random if request.temperature else Random(0)
    most_words = count_words(story.text) + room + 1
    ways = [_Continuation([], [story.text], [0.0], [], story.whole_word) for _ in range(CANDIDATES)]
    batch = np.repeat(logits[None], CANDIDATES, axis=0)  # (continuations not ended, vocab)
    for length in range(CANDIDATE_TOKENS + 1):
        log_probabilities = log_softmax(batch)
        batch[:, vocabulary.special] = -np.inf
        drawn: list[int | None] = [None] * CANDIDATES
        going = [index for index, way in enumerate(ways) if not way.ended]
        for index, row, scores in zip(going, batch, log_probabilities, strict=True):
            way = ways[index]
            way.first.append(scores[first].tolist())
            if length == CANDIDATE_TOKENS:
                continue
            if way.whole_word:
                row[vocabulary.joins] = -np.inf
            token = sample(row, temperature, request.top_p, random.random())
            piece = vocabulary.pieces[token]
            way.tokens.append(token)
            way.texts.append(way.texts[-1] + piece)
            way.scores.append(way.scores[-1] + TOKEN_NATS + float(scores[token]))
            way.whole_word &= not any(map(str.isspace, piece))
            closed = SENTENCE_END.search(way.texts[-1][len(story.text) :])
            way.ended = bool(closed) or count_words(way.texts[-1]) > most_words
            drawn[index] = None if way.ended else token
        if all(token is None for token in drawn):
            break
        batch = fork.step(drawn).numpy()
    return ways

"""How a word or the ending is brought into a story that would stop, or run out of words, without it.

`bring_in` samples continuations on copies of the cache, and of all places in them takes the one where the model finds
ending + sentence end + `</sos>`, or the word, likeliest, and the way there too.
"""

from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from random import Random

import numpy as np

from .decoder_tiny_story import Decoder
from .request_tiny_story import BOUNDARY, PUNCTUATION, SENTENCE_END, count_words, ends_with, open_quote
from .sampling_tiny_story import log_softmax, nucleus, repetition_penalties, sample
from .story_tiny_story import Story, Vocabulary

CANDIDATES = 12  # continuations sampled
SEARCH_TEMPERATURE = 0.6  # they are sampled at, or at the story's own if that is lower
CANDIDATE_TOKENS = 20  # their longest length
FINALISTS = 24  # places scored in full, at most, the likeliest first
TOKEN_NATS = 1.3  # a token's usual cost: what is brought in is not better for being short
FRAGMENT_COST = 3.0  # nats by which a last sentence of one word and the ending must be likelier
CAPITAL_COST = 3.0  # nats by which a spelling with a capital the reader did not type must be likelier


@dataclass(frozen=True)
class Target:
    """What is to be brought into a story now: its ending (final), or a word to include."""

    words: str
    final: bool


@dataclass
class _Continuation:
    """A way on from what is written, as far as a search has sampled it."""

    tokens: list[int]
    texts: list[str]  # after so many of the tokens, from the story's first word on
    scores: list[float]  # of so many: their log-probability, and TOKEN_NATS for each
    first: list[list[float]]  # log-probabilities, after so many tokens read, of each spelling's first token
    whole_word: bool
    row: int = 0  # of the fork that reads it: one for all continuations that are still the same
    ended: bool = False


def bring_in(
    target: Target, story: Story, decoder: Decoder, row: int, logits: np.ndarray, vocabulary: Vocabulary
) -> list[int]:
    """Tokens that lead to the target's words: sampled continuations, closed at the best place in any of them.

    Args:
        decoder: its `row` is what is written so far; logits: (vocab,) of the next token.
    """
    typed = target.words.rstrip(PUNCTUATION)
    mark = target.words[len(typed) :] if target.final else ""
    spellings = [typed] if typed[:1].isupper() else [typed, typed[0].upper() + typed[1:]]
    spelling_ids = [vocabulary.encode(" " + spelling) for spelling in spellings]
    room = story.words_left - story.words_needed(story.request.missing(story.text))

    fork = decoder.fork([row] * CANDIDATES, room=CANDIDATE_TOKENS)
    continuations = _continue(story, fork, logits, vocabulary, room, [x[0] for x in spelling_ids])
    places = []  # (score of the continuation so far and the first token, continuation, tokens of it, spelling)
    most_words = story.num_words + room
    seen: set[tuple[int, ...]] = set()
    for index, way in enumerate(continuations):
        for length, firsts in enumerate(way.first):
            path = tuple(way.tokens[:length])
            if path in seen or not _parts_words(way, length, vocabulary):
                continue
            seen.add(path)
            # A sentence of one word and the ending is a fragment.
            fragment = target.final and count_words(BOUNDARY.split(way.texts[length][-80:])[-1]) < 2
            costs = way.scores[length] - FRAGMENT_COST * fragment
            places += [(costs + firsts[n] - CAPITAL_COST * n, index, length, n) for n in range(len(spellings))]

    def fits(place: tuple[float, int, int, int]) -> bool:
        text = continuations[place[1]].texts[place[2]]
        # A word that stands twice in a row is no ending; the whole of a word the reader began with stays as it is.
        return count_words(text) <= most_words and not ends_with(text, target.words)

    fitting = filter(fits, sorted(places, key=lambda place: (-place[0], place[1:])))
    likeliest = next(fitting, (continuations[0].first[0][0], 0, 0, 0))  # if nothing fits: right here
    best: tuple[float, list[int], int] = (-np.inf, [], 0)
    for first, index, length, spelling in islice(chain([likeliest], fitting), FINALISTS):
        if first <= best[0]:
            break  # what a place still costs only lowers its score
        way = continuations[index]
        stops = [""]
        if target.final:
            stops = [mark] if SENTENCE_END.search(mark) else [mark + ".", mark + "!"]
            text = f"{way.texts[length]} {spellings[spelling]}"
            stops = [stop + ('"' if open_quote(text + stop) else "") for stop in stops]
        closings = [spelling_ids[spelling] + vocabulary.encode(stop) for stop in stops]
        # One forward pass with the first way to close; how it differs from the second is read off the same logits.
        branch = fork.fork([way.row], [len(continuations[way.row].first) - 1 - length], room=len(closings[0]))
        scores = log_softmax(branch.extend([closings[0]])[0].numpy())  # (tokens of the closing, vocab)
        score = first + sum(float(scores[at - 1, token]) for at, token in enumerate(closings[0]) if at)
        if target.final:
            score += float(scores[-1, vocabulary.eos])
        for closing in closings:
            at = next((at for at, pair in enumerate(zip_longest(closings[0], closing)) if pair[0] != pair[1]), 0)
            gain = float(scores[at - 1, closing[at]] - scores[at - 1, closings[0][at]]) if at else 0.0
            if score + gain > best[0]:
                best = (score + gain, way.tokens[:length] + closing, length)
    score, tokens, length = best
    story.log_probability += score - TOKEN_NATS * length
    return tokens


def _parts_words(way: _Continuation, length: int, vocabulary: Vocabulary) -> bool:
    """Whether words may stand after `length` of the tokens: inside a sentence, between words."""
    text = way.texts[length]
    inside = (text[-1:].isalnum() or text[-1:] == ",") and "\ufffd" not in text
    return inside and (length == len(way.tokens) or not vocabulary.joins[way.tokens[length]])


def _continue(
    story: Story, fork: Decoder, logits: np.ndarray, vocabulary: Vocabulary, room: int, first: list[int]
) -> list[_Continuation]:
    """Sample ways on to the next sentence end; the fork reads all they hold but the token that ends one.

    Args:
        logits: (vocab,) of the next token; first: the tokens whose log-probabilities are wanted.
    """
    request = story.request
    temperature = min(request.temperature or SEARCH_TEMPERATURE, SEARCH_TEMPERATURE)
    random = story.random if request.temperature else Random(0)
    ways = [_Continuation([], [story.text], [0.0], [], story.whole_word) for _ in range(CANDIDATES)]
    batch, reading = logits[None].copy(), [0]  # (rows that have read a token, vocab), and which rows these are
    for length in range(CANDIDATE_TOKENS + 1):
        totals = batch.max(axis=1)  # logarithms of the sums of e^logit
        shifted = batch - totals[:, None]
        totals += np.log(np.exp(shifted, out=shifted).sum(axis=1))
        firsts = (batch[:, first] - totals[:, None]).tolist()
        batch[:, vocabulary.not_whole] = -np.inf
        rows: list[int] = list(range(CANDIDATES))  # for each row, the one that it goes on from
        drawn: list[int | None] = [None] * CANDIDATES
        # Of each row its nucleus: continuations that are still the same draw from the same.
        choices: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        leaders: dict[tuple[int, int], int] = {}  # the first continuation to go on from a row with a token
        for index, way in enumerate(ways):
            if way.ended:
                continue
            number = reading.index(way.row)
            way.first.append(firsts[number])
            if length == CANDIDATE_TOKENS:
                continue
            allowed = batch[number]
            if number not in choices:
                if way.whole_word:
                    allowed[vocabulary.joins] = -np.inf
                for token, penalty in repetition_penalties(story.ids + way.tokens, request.dry_multiplier).items():
                    allowed[token] -= penalty
                choices[number] = nucleus(allowed, temperature, request.top_p)
            token = sample(*choices[number], random.random())
            piece = vocabulary.pieces[token]
            way.tokens.append(token)
            way.texts.append(way.texts[-1] + piece)
            way.scores.append(way.scores[-1] + TOKEN_NATS + float(allowed[token] - totals[number]))
            way.whole_word &= not any(map(str.isspace, piece))
            written = way.texts[-1][len(story.text) :]
            way.ended = bool(SENTENCE_END.search(written)) or count_words(written) > room + 1
            if not way.ended:
                same = leaders.setdefault((way.row, token), index)
                if same == index:  # nobody before it went this way: it needs a row of its own from here on
                    rows[index], drawn[index] = way.row, token
                way.row = same
        reading = [row for row, token in enumerate(drawn) if token is not None]
        if not reading:
            break
        if rows != list(range(CANDIDATES)):
            fork.keep(rows)
        batch = fork.step(drawn).numpy()
    return ways

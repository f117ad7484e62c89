"""How a story is closed on the reader's words: by a sentence that is written backwards from them.

A sentence that must end on a word is best written from that word. The model has learnt it (training/closings.py): after
the story so far and `<close>` come the end of the story, the stop, the reader's words from the last to the first, and
then whatever leads to them, back to `<begin>`. `bring_in` samples some such closings side by side, turns them round,
and takes the one that the same model, reading forwards, finds likeliest after this story: each direction is blind where
the other sees. If even that one is hardly English, the story names the word. A word to include comes in the same way,
as the last word of a clause that the story goes on from; so does a rare ending, early, to prepare it. Of some words the
model knows no use: such a word somebody learns early in the story, and remembers at the end.

Both directions read the story without its control prefix: a model that was told to end on a word finds every sentence
likely that does, sense or no sense.

Backward and forward language models around a given word: Mou et al. 2015 (arXiv 1512.06612); two directions that must
agree on a text between them: Nguyen et al. 2023 (Meet in the Middle, arXiv 2303.07295).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import numpy as np

from .control_tiny_story import BEGIN, CLOSE, SPECIAL_TOKENS
from .decoder_tiny_story import Decoder
from .naming_tiny_story import about, namings
from .request_tiny_story import (
    BOUNDARY,
    PUNCTUATION,
    SENTENCE_END,
    bare_words,
    closes_sentence,
    count_words,
    ends_with,
    keeps_capitals,
    open_quote,
    quotes_after,
)
from .sampling_tiny_story import SMALLEST_TEMPERATURE, log_softmax, nucleus, sample
from .story_tiny_story import Story, Vocabulary

CLOSE_ID, BEGIN_ID = SPECIAL_TOKENS.index(CLOSE), SPECIAL_TOKENS.index(BEGIN)
ROUNDS = (8, 8, 16)  # closings written; those of a further round only if none so far will do
HOPELESS = 60.0  # cost from which on more of them are not tried
ENOUGH = 16.0  # a closing of at most this cost will do; dearer ones are seldom English: the word is named instead
LEAD_TOKENS = 32  # before the reader's words, at most
TEMPERATURE, TOP_P = 0.9, 0.95  # they are sampled at
STOPS = (".", "!", "?", '."', '!"', '?"')
STOP_TEMPERATURE = 2.0  # stops and spellings are tried by their likelihood, flattened: the words before them decide
TOKEN_NATS = 1.3  # a token's usual cost: a closing is not better for being short
CREDIT = 0.2  # nats below it that count at most: no run of likely words makes up for a wrong one
SURPRISE = 6.0  # nats of a token from which on its cost counts twice
CAPITAL_COST = 5.0  # nats by which a capital that the reader did not type must be likelier
REMEMBERED_COST = 4.0  # of an ending that somebody has learnt: as sensible as a closing that costs little
PIECES_COST = 12.0  # nats, of an ending that is a word of several tokens: of those the model knows no use
AGAIN_COST = 16.0  # nats, of an ending that is a word its sentence has already
SAID_COST = 50.0  # nats, of a sentence that the story holds already; of a word twice in a row


@dataclass(frozen=True)
class Target:
    """What is to be brought into a story now: its ending (final), or a word to include or to prepare the ending by."""

    words: str
    final: bool
    most: float = np.inf  # cost from which on it is better left out

    @property
    def prepares(self) -> bool:
        """Whether it prepares the ending, and can be left out."""
        return bool(np.isfinite(self.most))


@dataclass
class _Closing:
    """The target's words and what leads to them, as far as that is written."""

    end: list[int]  # tokens of the target's words and the stop, as they are read
    text: str
    capital: bool  # the reader typed none
    lead: list[int] = field(default_factory=list)  # tokens before them, from the last to the first
    costs: list[float] = field(default_factory=list)  # nats of each of the lead, and at last of `<begin>`
    places: list[tuple[float, int]] = field(default_factory=list)  # it may begin: nats of `<begin>`, tokens of lead

    @property
    def tokens(self) -> list[int]:
        return [*reversed(self.lead), *self.end]


class _Best(NamedTuple):
    """What is brought in: the least cost so far, its tokens, and their nats as they are read forwards."""

    cost: float
    tokens: list[int]
    nats: float


def bring_in(target: Target, story: Story, decoder: Decoder, vocabulary: Vocabulary) -> list[int]:
    """Tokens that lead from what is written to the target's words, those included; none if all cost too much.

    Args:
        decoder: any of the story's model.
    """
    who = story.learner or about(target.words, story, vocabulary)
    if target.prepares and story.strange and not who:
        return []  # the story tells of nobody yet
    random = Random(0 if story.request.temperature < SMALLEST_TEMPERATURE else story.random.random())
    reader = decoder.fresh()
    logits = reader.start([[vocabulary.bos, *story.ids]]).numpy()[0]  # (vocab,), what comes next
    named = target.final or (target.prepares and story.strange)
    sentences = namings(target.words, story, who or "everyone", early=not target.final) if named else []
    best, how = _Best(np.inf, [], 0.0), "backwards"
    if not (sentences and story.strange):
        best = _closing(target, story, reader, logits, random, vocabulary)
    if sentences and best.cost > ENOUGH:
        tokens = vocabulary.encode(random.choice(sentences))
        nats = float(_reread([tuple(tokens)], target.final, reader, logits, vocabulary)[0].sum())
        best, how = _Best(REMEMBERED_COST if story.learner else ENOUGH, tokens, nats), "named"
        story.learner = who if target.prepares else story.learner
    if best.cost > target.most:
        story.plants = 0 if best.cost > HOPELESS else story.plants - 1
        return []
    story.brought.append((len(story.ids), len(story.ids) + len(best.tokens), how))
    story.log_probability -= best.nats
    if target.prepares:
        story.plants = 0
        unjudged, log_probability = story.unjudged
        story.unjudged = (unjudged + len(best.tokens), log_probability - best.nats)
    if target.final:
        story.closing_cost = max(0.0, best.cost)
    return best.tokens


def _closing(
    target: Target, story: Story, reader: Decoder, logits: np.ndarray, random: Random, vocabulary: Vocabulary
) -> _Best:
    """The best of the closings, or clauses, that are written backwards from the target's words.

    Args:
        reader: of the story; logits: (vocab,), what comes next in it.
    """
    texts = _ends(target, story)
    ends = [vocabulary.encode(text) for text in texts]
    forced = [[CLOSE_ID, *[vocabulary.eos] * target.final, *reversed(end)] for end in ends]
    opened = reader.fork([0] * len(ends), room=max(map(len, forced)))
    costs, after = _read(opened, forced)
    capitals = [not text.startswith(f" {target.words.rstrip(PUNCTUATION)}") for text in texts]
    costs += CAPITAL_COST * np.array(capitals)
    best = _Best(np.inf, [], 0.0)
    for number in ROUNDS:
        chosen = _spread(costs, number)
        closings = [_Closing(ends[end], texts[end], capitals[end]) for end in chosen]
        _grow(closings, opened.fork(chosen, room=LEAD_TOKENS), after[chosen], target, story, random, vocabulary)
        for closing in closings:
            _begin_well(closing, target, story, vocabulary)
        fitting = {tuple(closing.tokens): closing for closing in closings if _fits(closing, target, story)}
        likely = sorted(fitting.items(), key=lambda item: _beyond_usual(np.array(item[1].costs)))
        fitting = dict(likely[: number // 2])
        if fitting:
            forward = _reread(list(fitting), target.final, reader, logits, vocabulary)
            for closing, nats in zip(fitting.values(), forward, strict=True):
                cost = _cost(closing, nats, target, story, vocabulary)
                best = min(best, _Best(cost, closing.tokens, float(nats.sum())))
        if best.cost <= ENOUGH or HOPELESS < best.cost < np.inf or target.prepares:
            break
    if best.tokens:
        return best
    # No closing fits, which is rare: the bare words, dearer than any.
    bare = _Closing(ends[0], texts[0], capitals[0])
    _begin_well(bare, target, story, vocabulary)
    nats = _reread([tuple(bare.tokens)], target.final, reader, logits, vocabulary)[0]
    return _Best(SAID_COST + HOPELESS + float(nats.sum()), bare.tokens, float(nats.sum()))


def ending_cost(story: Story, decoder: Decoder, vocabulary: Vocabulary) -> float:
    """What the last sentence of a story that came to its ending by itself costs, as a closing's cost is counted."""
    place = max((match.end() for match in BOUNDARY.finditer(story.text)), default=0)
    begin = _token_at(place, story, vocabulary)
    end = _token_at(len(story.text) - len(story.request.end or "") - 1, story, vocabulary)
    reader = decoder.fresh()
    logits = reader.start([[vocabulary.bos, *story.ids[:begin]]]).numpy()[0]
    forward = _reread([tuple(story.ids[begin:])], True, reader, logits, vocabulary)[0]
    turned = [CLOSE_ID, vocabulary.eos, *reversed(story.ids[begin:]), BEGIN_ID]
    read = log_softmax(reader.fork([0], room=len(turned)).extend([turned]).numpy()[0])
    backward = -read[np.arange(len(turned) - 1), turned[1:]][len(story.ids) - end + 1 :]
    sentence = story.text[place:]
    return _closing_cost(forward, backward, sentence, story.request.end or "", vocabulary)


def _token_at(place: int, story: Story, vocabulary: Vocabulary) -> int:
    """The token of a story in which a character stands, counted from its end as its bytes are many."""
    at, left = len(story.ids), len(story.text[place:].encode())
    while at > 0 and left > 0:
        at -= 1
        left -= len(vocabulary.bytes[story.ids[at]])
    return at


def _ends(target: Target, story: Story) -> list[str]:
    """The target's words as they may stand: with a capital or without, and with each stop; the first one closes the
    story wherever it stands."""
    typed = target.words.rstrip(PUNCTUATION)
    spellings = [typed] if typed[:1].isupper() else [typed, typed[0].upper() + typed[1:]]
    if not target.final:
        return [f" {spelling}" for spelling in spellings]
    mark = target.words[len(typed) :]
    stops = [mark, mark + '"'] if SENTENCE_END.search(mark) else [mark + stop for stop in STOPS]
    ends = [f" {spelling}{stop}" for spelling in spellings for stop in stops]
    return sorted(ends, key=lambda end: not closes_sentence(story.text + end))


def _read(decoder: Decoder, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Append to each row its tokens.

    Returns:
        nats of all tokens but the first, (rows,); and the logits after the last, (rows, vocab).
    """
    costs, after = np.zeros(len(rows)), np.empty(0)
    for at in range(max(map(len, rows))):
        reading = [number for number, ids in enumerate(rows) if at < len(ids)]
        logits = decoder.step([ids[at] if at < len(ids) else None for ids in rows]).numpy()
        after = after if after.size else np.empty((len(rows), logits.shape[1]), dtype=logits.dtype)
        for number, read in zip(reading, logits, strict=True):
            after[number] = read
            if at + 1 < len(rows[number]):
                costs[number] -= log_softmax(read)[rows[number][at + 1]]
    return costs, after


def _spread(costs: np.ndarray, number: int) -> list[int]:
    """So many of the ends, the likelier the more often: systematic sampling."""
    shares = np.exp((costs.min() - costs) / STOP_TEMPERATURE)
    at = (np.arange(number) + 0.5) / number * shares.sum()
    return np.searchsorted(shares.cumsum(), at).tolist()


def _grow(
    closings: list[_Closing],
    fork: Decoder,
    logits: np.ndarray,
    target: Target,
    story: Story,
    random: Random,
    vocabulary: Vocabulary,
) -> None:
    """Write the leads of some closings side by side, each until it begins or there is no room for more.

    Args:
        fork: one row for each closing; logits: (closings, vocab), what comes before its end.
    """
    room = story.words_left - story.words_needed(story.request.missing(story.text))
    words, between = count_words(target.words), closes_sentence(story.text)
    growing = list(range(len(closings)))
    for _ in range(LEAD_TOKENS + 1):
        drawn: list[int | None] = [None] * len(closings)
        for number, read in zip(growing, logits, strict=True):
            closing = closings[number]
            if count_words(closing.text) - words > room:
                continue
            chances = log_softmax(read)
            may_begin = _may_begin(closing.text, story.text) and bool(closing.lead or not between)
            if may_begin:
                closing.places.append((-float(chances[BEGIN_ID]), len(closing.lead)))
            if len(closing.lead) == LEAD_TOKENS:
                continue
            allowed = read.copy()
            allowed[vocabulary.not_whole] = -np.inf
            if may_begin:
                allowed[BEGIN_ID] = read[BEGIN_ID]
            token = sample(*nucleus(allowed, TEMPERATURE, TOP_P), random.random())
            if token == BEGIN_ID:
                closing.places = closing.places[-1:]
                continue
            closing.lead.append(token)
            closing.costs.append(-float(chances[token]))
            closing.text = vocabulary.pieces[token] + closing.text
            drawn[number] = token
        growing = [number for number, token in enumerate(drawn) if token is not None]
        if len(growing) <= len(closings) // 4:
            break  # the longest ones begin where they best may
        logits = fork.step(drawn).numpy()
    for closing in closings:
        if closing.places:  # one that had not begun in time begins where it best may
            cost, length = min(closing.places)
            closing.lead, closing.costs = closing.lead[:length], [*closing.costs[:length], cost]
            closing.text = vocabulary.decode(closing.tokens)


def _begin_well(closing: _Closing, target: Target, story: Story, vocabulary: Vocabulary) -> None:
    """Give a closing that follows a sentence its capital, and take its blank where the text ends on one. Its costs stay
    those of what was drawn."""
    text = closing.text.lstrip() if story.text[-1:].isspace() else closing.text
    first = len(text) - len(text.lstrip(" \n" + PUNCTUATION))
    if closes_sentence(story.text) and text[first : first + 1].islower():
        capital = text[:first] + text[first].upper() + text[first + 1 :]
        if keeps_capitals(capital, target.words):  # an iPhone stays one
            text = capital
    if text != closing.text:
        tokens, num_end = vocabulary.encode(text), len(closing.end)
        if tokens[-num_end:] != closing.end:
            num_end = len(tokens)
        closing.text, closing.end = text, tokens[len(tokens) - num_end :]
        closing.lead = tokens[: len(tokens) - num_end][::-1]


def _may_begin(closing: str, text: str) -> bool:
    """Whether a closing can stand after the text: it starts a word, or goes on after an opening quote."""
    if closing[:1].isspace() or text[-1:].isspace():
        return True
    return not text[-1:].isalnum() and open_quote(text) and not SENTENCE_END.search(text)


def _fits(closing: _Closing, target: Target, story: Story) -> bool:
    """Whether the closing is whole, and the story keeps its contract with it."""
    text = story.text + closing.text
    if not closing.places or not target.final:
        return bool(closing.places)
    quoted = quotes_after(story.text, closing.text) is False
    return quoted and closes_sentence(text) and ends_with(text, target.words) and keeps_capitals(text, target.words)


def _reread(
    rows: list[tuple[int, ...]], final: bool, reader: Decoder, logits: np.ndarray, vocabulary: Vocabulary
) -> list[np.ndarray]:
    """Nats of each closing's tokens, and of the story's end after them if it is final, as they are read forwards."""
    longest = max(map(len, rows))
    fork = reader.fork([0] * len(rows), room=longest)
    read = fork.extend([[*ids, *[vocabulary.eos] * (longest - len(ids))] for ids in rows]).numpy()
    costs = []
    for ids, after in zip(rows, read, strict=True):
        targets = [*ids, *[vocabulary.eos] * final]
        chances = log_softmax(np.concatenate((logits[None], after[: len(targets) - 1])))  # (tokens, vocab)
        costs.append(-chances[np.arange(len(targets)), targets])
    return costs


def _cost(closing: _Closing, forward: np.ndarray, target: Target, story: Story, vocabulary: Vocabulary) -> float:
    """How unlikely a closing is, in nats beyond the usual, in both directions; great surprises count twice."""
    if target.final:
        cost = _closing_cost(forward, closing.costs, closing.text, target.words, vocabulary)
    else:
        cost = _beyond_usual(np.array([*forward, *closing.costs]))
    lead = "".join(vocabulary.pieces[token] for token in reversed(closing.lead))
    said = closing.text.strip() in story.text or ends_with(story.text + lead, target.words)
    return cost + SAID_COST * said + CAPITAL_COST * closing.capital


def _closing_cost(
    forward: np.ndarray, backward: Sequence[float] | np.ndarray, text: str, words: str, vocabulary: Vocabulary
) -> float:
    """How unlikely the end of a story is, in nats beyond the usual; that it stops after these words counts twice.

    Args:
        forward: nats of its tokens and of `</sos>`; backward: of what leads to the words; text: the sentence.
    """
    mark = text[len(text.rstrip(PUNCTUATION)) :]
    stop = forward[-1 - len(vocabulary.encode(mark))]
    pieces = PIECES_COST * (len(vocabulary.word_ids(words)) > 1)
    again = AGAIN_COST * (count_words(words) == 1 and bare_words(text).count(bare_words(words)[-1]) > 1)
    return _beyond_usual(np.array([*forward, *backward])) + max(0.0, float(stop) - TOKEN_NATS) + pieces + again


def _beyond_usual(costs: np.ndarray) -> float:
    """Nats of some tokens beyond what as many usually cost; great surprises count twice, likely tokens hardly."""
    return float(np.maximum(costs - TOKEN_NATS, -CREDIT).sum() + np.maximum(costs - SURPRISE, 0).sum())

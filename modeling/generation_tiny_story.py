"""How a story is decoded: from the reader's start to the reader's ending, within the reader's length.

`write_stories` writes a batch of stories token by token. A story that asks for something is planned: its wishes stand
before it as a control prefix, which the model was trained on. It is not left to chance either: `</sos>` is only taken
after a sentence that closes on the ending, with every word to include told. Where the model would stop without them
(late in a story, where it hints that it would) or the limit nears, `bring_in` has a sentence written backwards from the
ending, or a clause from the word. A rare ending is prepared: the story tells of its word early, if that can be done
well. Words are given out only when they are final, so a stream never takes anything back.

Drafts of one story compete while they are written: again and again the less likely half goes on from the likelier half.

Every story draws from its own random numbers: it comes out the same alone or in a batch.
"""

from collections.abc import Iterator
from functools import cache
from itertools import count, groupby
from random import Random

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .closing_tiny_story import LEAD_TOKENS, Target, bring_in
from .control_tiny_story import MAX_INCLUDE, NAMED_LENGTHS, control_prefix, fitting_bucket
from .decoder_tiny_story import Decoder, Precision, open_decoder
from .naming_tiny_story import is_strange, learner_in
from .request_tiny_story import (
    StoryRequest,
    closes_sentence,
    count_words,
    ends_with,
    includes,
    keeps_capitals,
)
from .sampling_tiny_story import log_softmax, nucleus, repetition_penalties, sample
from .story_tiny_story import Place, Story, Vocabulary, vocabulary_of

TOKENS_PER_WORD = 1.4  # of TinyStories: how much room the cache gets at once
LEAST_CHARACTERS = 200  # before the model may stop, or as many as half of max_words take: real ones have 250
CHARACTERS_PER_WORD = 5
# A story with an ending waits for it. Late in it, a small probability of </sos> already says that here the model would
# rather stop: a better place to close than the limit. And any sentence may be the last: it is drawn less boldly.
LATE = 0.41  # of the words there were to write, at most so many left
HINT = 0.03  # of </sos>, after a sentence
COOLING = 0.5  # of the reader's temperature
# What a story is about is chosen at its opening: drawn boldly, for stories that differ, and not what drafts are chosen
# by. What follows is drawn coldly, for it must hold together.
OPENING = 0.2  # of the words there are to write
BOLDNESS = 2.0  # of `nucleus`: no word is drawn that the reader's temperature would not draw
# An ending fits a story that has told of it: a rare word is brought in early, if that can be done well.
COMMON_TOKENS = 1000  # the plan alone knows what to do with these
PLANT_TRIES = 2
PLANT_WORDS, PLANT_LATEST = 8, 0.4  # told at least, and of the words there are to write at most
PLANT_COST = 22.0  # of `bring_in`; dearer is hardly ever English
SENTENCE_WORDS = 12  # a whole sentence that fewer words could follow is a better place to stop than a word
CHEAP = 4.0  # cost of a closing for which no other place or draft is tried
CLOSING_WORDS = 16  # words kept back for the closing sentence, and for one with each word to include
TITLES = ("Mr.", "Mrs.", "Ms.", "Dr.")  # no sentence ends there
# Drafts are compared while they are written, as the particles of a sequential Monte Carlo sampler are (Lew et al. 2023,
# arXiv 2306.03081), but the likelier half always wins.
STAGE_TOKENS = 12  # between two comparisons
LEAST_JUDGED = 12  # tokens by which a draft can be compared; late ones go on alone, to close in different ways


@torch.inference_mode()
def write_stories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: list[StoryRequest],
    precision: Precision = "auto",
    close: bool = True,
    drafts: int = 1,
) -> Iterator[tuple[int, str, Story]]:
    """Write stories side by side.

    Args:
        precision: as in `open_decoder`.
        drafts: so many requests after one another are of one story, but for their seeds, and compete.
        close: also write the closing sentences that the stories need. If not, such a story stops before it, with "open"
            as its finish_reason, until `close_story`: drafts that will not be chosen need none.

    Yields:
        (index of the request, next piece of its text, the story so far); the first piece is the start. Of drafts that
        compete nothing is final before they are finished. When the iterator ends, every story has its `finish_reason`.

    Raises:
        ValueError: a start or an ending does not fit into the model's context; the tokenizer lacks the tokens that a
            story begins and ends with, or has more tokens than the model; the model's weights are no numbers any more,
            as after a training that failed.
    """
    for name in ("bos_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"the tokenizer has no {name}, which a story needs; load it from the model's own folder")
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}; say "
            f"model.resize_token_embeddings({len(tokenizer)}), and train it on the new ones"
        )
    vocabulary = vocabulary_of(tokenizer, model.config.vocab_size)
    unknown = slice(len(tokenizer), None)  # logits that stand for no token
    decoder = open_decoder(model, precision)
    strange = cache(lambda words: is_strange(words, decoder, vocabulary))
    stories, prompts, limits = [], [], []
    for request in requests:
        prefix, ids, limit = plan(request, vocabulary, model.config)
        stories.append(Story(request, ids, request.start, Random(request.seed), whole_word=request.start[-1].isalnum()))
        if request.planned_end:
            stories[-1].strange = strange(request.planned_end)
            stories[-1].learner = learner_in(request.start, request.planned_end)
            prepared = stories[-1].strange or _is_rare(vocabulary.word_ids(request.planned_end))
            stories[-1].plants = PLANT_TRIES if prepared else 0
        prompts.append([*prefix, tokenizer.bos_token_id, *ids])
        limits.append(limit)
    for index, story in enumerate(stories):
        yield index, story.give(), story

    rows = list(range(len(stories)))  # story of each row of the decoder
    room = round(TOKENS_PER_WORD * max(request.max_words for request in requests))
    logits = decoder.start(prompts, min(room, max(limits))).numpy()  # (rows, vocab)
    if np.isnan(logits).any():
        raise ValueError("the model says NaN: its weights are no numbers any more, as after a training that failed")
    for step in count(1):
        logits[:, unknown] = -np.inf
        finished = []
        for row, index in enumerate(rows):
            story = stories[index]
            _advance(story, decoder, logits[row], vocabulary, limits[index] - len(story.ids), close)
            if story.finish_reason:
                finished.append(row)
            yield index, story.give() if drafts == 1 or story.finish_reason else "", story
        if finished:
            keep = list(range(len(rows)))
            for row in reversed(finished):  # the last row takes its place: less to move
                keep[row] = keep[-1]
                keep.pop()
            rows = [rows[row] for row in keep]
            if not rows:
                return
            decoder.keep(keep)
        if drafts > 1 and step % STAGE_TOKENS == 0:
            decoder.keep(_compete(stories, rows, drafts))
        logits = decoder.step([stories[index].ids[-1] for index in rows]).numpy()


def _compete(stories: list[Story], rows: list[int], drafts: int) -> list[int]:
    """Of each story's drafts, let the less likely half go on from the likelier half.

    Args:
        rows: the draft in each row; those that are finished have none.

    Returns:
        The row from which each row goes on.
    """
    leaders = list(range(len(rows)))
    ripe = [
        row
        for row, index in enumerate(rows)
        if stories[index].num_judged >= LEAST_JUDGED and not _is_late(stories[index])
    ]
    ranked = sorted(ripe, key=lambda row: (rows[row] // drafts, -stories[rows[row]].mean_judged, rows[row]))
    for _, group in groupby(ranked, key=lambda row: rows[row] // drafts):
        competing = list(group)
        ahead = (len(competing) + 1) // 2
        for leader, row in zip(competing, competing[ahead:], strict=False):
            stories[rows[row]].follow(stories[rows[leader]])
            leaders[row] = leader
    return leaders


def plan(request: StoryRequest, vocabulary: Vocabulary, config: PreTrainedConfig) -> tuple[list[int], list[int], int]:
    """The control prefix, the start's tokens, and how many tokens of text leave just room for what was asked for and
    what leads to it. The prefix speaks as the training stories do; the story keeps the reader's spelling.

    Raises:
        ValueError: the start does not fit.
    """
    prefix: list[int] = []
    ending = request.planned_end
    if config.control_prefix:
        waits = bool(ending) and not request.length  # a length that the reader named stands
        buckets = [fitting_bucket(request.max_words, waits), NAMED_LENGTHS.get(request.length)]
        bucket = min((bucket for bucket in buckets if bucket), default=None)
        include = [vocabulary.at_home(word) for word in request.include]
        at_home = ending and vocabulary.at_home(ending)
        if at_home and len(vocabulary.word_ids(ending)) > 1 and len(include) < MAX_INCLUDE:
            # A word that hardly ever ends a story: a model asked to end on it does so, sense or no sense.
            include, at_home = [*include, at_home], None
        prefix = control_prefix(vocabulary.encode, at_home, bucket, include)
    wanted = [*request.include, *([ending] * 2 if ending else [])]  # an ending may be prepared too
    reserve = sum(LEAD_TOKENS + 12 + len(vocabulary.encode(f" {words}")) for words in wanted or [""])
    limit = config.max_position_embeddings - 1 - len(prefix) - reserve
    start = vocabulary.encode(request.start)
    if len(start) > limit:
        raise ValueError(
            f"the start has {len(start)} tokens; with this ending the model has room for {max(0, limit)} "
            f"(its context is {config.max_position_embeddings} tokens)"
        )
    return prefix, start, limit


def _advance(
    story: Story, decoder: Decoder, logits: np.ndarray, vocabulary: Vocabulary, room: int, close: bool
) -> None:
    """Write one more token, or finish the story.

    Args:
        logits: (vocab,) of the story's next token.
        room: tokens until the limit of `plan`.
    """
    if not story.pending:
        token = _draw(story, logits, vocabulary)
        step = _judge(story, token, logits, vocabulary, room)
        if isinstance(step, str):
            story.finish_reason = step
            return
        if isinstance(step, Target) and step.final:
            story.searches, story.finish_reason = story.searches + 1, "open"
            if close:
                close_story(story, decoder, vocabulary)
            return
        if isinstance(step, Target):
            story.pending = bring_in(step, story, decoder, vocabulary)
        if not story.pending:
            story.log_probability += float(log_softmax(logits)[token])
            story.write(token, vocabulary)
            if _opens(story):
                story.unjudged = (len(story.ids) - story.num_given, story.log_probability)
            return
        story.searches += isinstance(step, Target) and not step.prepares
    story.write(story.pending.pop(0), vocabulary)
    story.whole_word = not story.pending


def close_story(story: Story, decoder: Decoder, vocabulary: Vocabulary, places: int = 1) -> None:
    """Write the closing sentence of a story whose finish_reason is "open".

    Args:
        decoder: any of the story's model.
        places: where it may stand: the end, and ends of sentences shortly before it. They are tried from the last one
            back, until a closing costs little. One is left where the story has been given out.
    """
    ending = Target(vocabulary.with_capital(story.request.end or ""), final=True)
    best: tuple[Story, list[int]] | None = None
    earlier = [place for place in reversed(story.places) if place.num_characters < len(story.text.rstrip())]
    for place in [None, *earlier][:places]:
        told = story if place is None else story.back_at(place)
        closing = bring_in(ending, told, decoder, vocabulary)
        if best is None or told.closing_cost < best[0].closing_cost:
            best = told, closing
        if told.closing_cost <= CHEAP:
            break
    assert best
    told, closing = best
    if told is not story:
        story.follow(told)
    story.finish_reason = "ending"
    for token in closing:
        story.write(token, vocabulary)


def _draw(story: Story, logits: np.ndarray, vocabulary: Vocabulary) -> int:
    """The token the model wants next, within what a story may hold."""
    logits = logits.copy()
    logits[vocabulary.breaks(story.half)] = -np.inf
    logits[vocabulary.misquotes(story.text)] = -np.inf
    request = story.request
    least = min(LEAST_CHARACTERS, CHARACTERS_PER_WORD * request.max_words / 2)
    if story.text == request.start or len(story.text) < least:
        logits[vocabulary.eos] = -np.inf
    if story.whole_word:
        logits[vocabulary.joins] = -np.inf
    if story.text[-1] == " ":
        logits[vocabulary.blank_first] = -np.inf
    for token, penalty in repetition_penalties(story.ids, request.dry_multiplier).items():
        if not vocabulary.joins[token]:  # a word that was begun is not broken off
            logits[token] -= penalty
    temperature = request.temperature * (COOLING if _closes_soon(story) else 1)
    boldness = BOLDNESS if _opens(story) else 1.0
    return sample(*nucleus(logits, temperature, request.top_p, boldness), story.random.random())


def _opens(story: Story) -> bool:
    """Whether the story is at its opening."""
    told = story.num_words - story.words_given
    return told < OPENING * (story.request.max_words - story.words_given)


def _is_late(story: Story) -> bool:
    """Whether few of the words there were to write are left."""
    return story.words_left <= LATE * (story.request.max_words - story.words_given)


def _closes_soon(story: Story) -> bool:
    """Whether the story waits for its ending and is late."""
    return bool(story.request.planned_end) and _is_late(story)


def _is_rare(ids: list[int]) -> bool:
    """Whether a word is not among the commonest tokens; byte pairs are numbered as they were merged, the commonest
    first."""
    return len(ids) > 1 or (len(ids) == 1 and ids[0] >= COMMON_TOKENS)


def _may_plant(story: Story, vocabulary: Vocabulary) -> bool:
    """Whether this is the time to prepare an ending: early, after a sentence or two, if it is not told of yet."""
    told, latest = story.num_words - story.words_given, PLANT_LATEST * (story.request.max_words - story.words_given)
    if not story.plants or not PLANT_WORDS <= told <= latest:
        return False
    ending = story.request.end or ""
    return not story.learner and not (_is_rare(vocabulary.word_ids(ending)) and includes(story.text, ending))


def _judge(story: Story, token: int, logits: np.ndarray, vocabulary: Vocabulary, room: int) -> str | Target | None:
    """What to do with the token the model wants next: take it (None), finish before it, or bring something in.

    Args:
        logits: (vocab,) that the token was drawn from.
        room: tokens until the limit of `plan`.
    """
    request, text, full = story.request, story.text, room <= 0
    if story.half:
        return None  # in the middle of a character
    if vocabulary.joins[token] and not text[-1:].isspace() and not full:
        return None  # in the middle of a word
    planned = bool(request.planned_end)
    stops, left = token == vocabulary.eos, min(story.words_left, int(room / TOKENS_PER_WORD))
    closed = closes_sentence(text) and not text.endswith(TITLES)
    if closed and _closes_soon(story):
        stops = stops or log_softmax(logits)[vocabulary.eos] >= np.log(HINT)
    missing = request.missing(text)
    if closed and _closes_soon(story) and not missing and not text[-1].isspace():
        story.places.append(Place(len(story.ids), len(text), story.log_probability))
    may_end = request.end and not missing and len(text) > len(request.start)
    timely = request.stop_at_first or (closed and (stops or left <= CLOSING_WORDS))
    if may_end and timely and ends_with(text, request.end) and keeps_capitals(text, request.end):
        return "ending"
    if closed and not stops and not full and _may_plant(story, vocabulary):
        return Target(vocabulary.with_capital(request.end), final=False, most=PLANT_COST)
    if not missing and not planned:
        if stops:
            return "eos"
        over = left <= 0 and count_words(text + vocabulary.pieces[token]) > request.max_words
        whole = closed and left <= min(SENTENCE_WORDS, request.max_words // 4) and len(text) > len(request.start)
        return "length" if full or over or whole else None
    left -= story.words_needed(missing)
    sentences = len(missing) + planned
    # A sentence end in good time is the better place; in mid-sentence only when the words run out.
    if full or stops or (closed and left <= CLOSING_WORDS * sentences) or left <= 4 * sentences:
        return Target(missing[0], final=False) if missing else Target(request.end, final=True)
    return None

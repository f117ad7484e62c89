"""How a story is decoded: from the reader's start to the reader's ending, within the reader's length.

`write_stories` writes a batch of stories token by token. A story that asks for something is planned: its wishes stand
before it as a control prefix, which the model was trained on. It is not left to chance either: `</sos>` is only taken
after a sentence that closes on the ending, with every word to include told. Where the model would stop without them
(late in a story, where it hints that it would) or the limit nears, `bring_in` searches how to bring the ending or the
word in. Words are given out only when they are final, so a stream never takes anything back.

Every story draws from its own random numbers: it comes out the same alone or in a batch.
"""

from collections.abc import Iterator
from random import Random

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .control_tiny_story import NAMED_LENGTHS, control_prefix, fitting_bucket
from .decoder_tiny_story import Decoder, Precision, open_decoder
from .request_tiny_story import StoryRequest, closes_sentence, count_words, ends_with
from .sampling_tiny_story import log_softmax, nucleus, repetition_penalties, sample
from .search_tiny_story import CANDIDATE_TOKENS, Target, bring_in
from .story_tiny_story import Story, Vocabulary, vocabulary_of

TOKENS_PER_WORD = 1.4  # of TinyStories: how much room the cache gets at once
LEAST_CHARACTERS = 200  # before the model may stop, or as many as half of max_words take: real ones have 250
CHARACTERS_PER_WORD = 5
# A story with an ending waits for it. Late in it, a small probability of </sos> already says that here the model would
# rather stop: a better place for a search than the limit. And any sentence may be the last: it is drawn less boldly.
LATE = 0.41  # of the words there were to write, at most so many left
HINT = 0.03  # of </sos>, after a sentence
COOLING = 0.5  # of the reader's temperature
CLOSING_WORDS = 16  # words kept back for the closing sentence, and for one with each word to include


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
    vocabulary = vocabulary_of(tokenizer)
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
    ending = request.planned_end
    if config.control_prefix:
        waits = bool(ending) and not request.length  # a length that the reader named stands
        buckets = [fitting_bucket(request.max_words, waits), NAMED_LENGTHS.get(request.length)]
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
        step = _judge(story, token, logits, vocabulary, full)
        if isinstance(step, str):
            story.finish_reason = step
            return
        if isinstance(step, Target):
            story.searches += 1
            story.pending = bring_in(step, story, decoder, row, logits, vocabulary)
            if step.final:
                story.closed_at = len(story.text)
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


def _draw(story: Story, logits: np.ndarray, vocabulary: Vocabulary) -> int:
    """The token the model wants next, within what a story may hold."""
    logits = logits.copy()
    logits[vocabulary.not_text] = -np.inf
    request = story.request
    least = min(LEAST_CHARACTERS, CHARACTERS_PER_WORD * request.max_words / 2)
    if story.text == request.start or len(story.text) < least:
        logits[vocabulary.eos] = -np.inf
    if story.whole_word:
        logits[vocabulary.joins] = -np.inf
    for token, penalty in repetition_penalties(story.ids, request.dry_multiplier).items():
        logits[token] -= penalty
    temperature = request.temperature * (COOLING if _closes_soon(story) else 1)
    return sample(*nucleus(logits, temperature, request.top_p), story.random.random())


def _closes_soon(story: Story) -> bool:
    """Whether the story waits for its ending and is late."""
    request = story.request
    return bool(request.planned_end) and story.words_left <= LATE * (request.max_words - story.words_given)


def _judge(story: Story, token: int, logits: np.ndarray, vocabulary: Vocabulary, full: bool) -> str | Target | None:
    """What to do with the token the model wants next: take it (None), finish before it, or bring something in.

    Args:
        logits: (vocab,) that the token was drawn from.
    """
    request, text = story.request, story.text
    if vocabulary.joins[token] and not text[-1:].isspace() and not full:
        return None  # in the middle of a word
    planned = bool(request.planned_end)
    stops, left, closed = token == vocabulary.eos, story.words_left, closes_sentence(text)
    if closed and _closes_soon(story):
        stops = stops or log_softmax(logits)[vocabulary.eos] >= np.log(HINT)
    missing = request.missing(text)
    may_end = request.end and not missing and len(text) > len(request.start)
    timely = request.stop_at_first or (closed and (stops or left <= CLOSING_WORDS))
    if may_end and timely and ends_with(text, request.end):
        return "ending"
    if not missing and not planned:
        if stops:
            return "eos"
        over = left <= 0 and count_words(text + vocabulary.pieces[token]) > request.max_words
        return "length" if full or over else None
    left -= story.words_needed(missing)
    sentences = len(missing) + planned
    # A sentence end in good time is the better place; in mid-sentence only when the words run out.
    if full or stops or (closed and left <= CLOSING_WORDS * sentences) or left <= 4 * sentences:
        return Target(missing[0], final=False) if missing else Target(request.end, final=True)
    return None

"""How a story is decoded: from the reader's start to the reader's ending, within the reader's length.

`write_stories` writes a batch of stories token by token on one key/value cache. A story that asks for an ending is
not left to chance: `</sos>` is only taken after a sentence that closes on the ending. Where the model would stop
without it, or the limit nears, `_close` searches how to bring the ending in: it samples continuations on copies of the
cache, and of all places in them takes the one where the model finds ending + sentence end + `</sos>` likeliest.
Words are given out only when they are final, so a stream never takes anything back.

Every story draws from its own random numbers: it comes out the same alone or in a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from .request_tiny_story import (
    PUNCTUATION,
    SENTENCE_END,
    StoryRequest,
    closes_sentence,
    count_words,
    ends_with,
    open_quote,
)

CANDIDATES = 12  # continuations sampled by a search for the close
CANDIDATE_TOKENS = 24  # their longest length
FINALISTS = 16  # places scored in full
CLOSING_WORDS = 16  # words kept back for the closing sentence, beside the ending's own


@dataclass
class Story:
    """A story as it is written; `finish_reason` is "ending", "eos" or "length" once it is finished."""

    request: StoryRequest
    ids: list[int]  # tokens of the text, without <sos>
    text: str
    generator: torch.Generator
    finish_reason: str | None = None
    given: int = field(default=0)  # characters already given out

    @property
    def words_left(self) -> int:
        return self.request.max_words - count_words(self.text)


class Vocabulary:
    """What the decoder must know of each token: which may start a word, and the ids it uses by name."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.pieces = [tokenizer.decode([i]) for i in range(len(tokenizer))]
        # After a whole word only these may come: text that goes on without a blank would make it another word.
        self.breaks_word = torch.tensor([not piece[:1].isalnum() and "\ufffd" not in piece for piece in self.pieces])
        self.special = torch.zeros(len(tokenizer), dtype=torch.bool)
        self.special[tokenizer.all_special_ids] = True
        self.eos = tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


_vocabulary = lru_cache(maxsize=4)(Vocabulary)


@torch.inference_mode()
def write_stories(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: list[StoryRequest]
) -> Iterator[tuple[int, str, Story]]:
    """Write stories side by side.

    Yields:
        (index of the request, next piece of its text, the story so far); the first piece is the start. When the
        iterator ends, every story has its `finish_reason`.

    Raises:
        ValueError: a start or an ending does not fit into the model's context.
    """
    vocabulary = _vocabulary(tokenizer)
    context = model.config.max_position_embeddings
    stories = [_begin(request, vocabulary, context) for request in requests]
    # Room for <sos>, a search, the ending and its close, whatever happens.
    reserve = [CANDIDATE_TOKENS + 8 + len(vocabulary.encode(" " + (s.request.end or ""))) for s in stories]
    for index, story in enumerate(stories):
        yield index, _give(story), story

    rows = list(range(len(stories)))  # story of each row of the batch
    width = max(len(story.ids) for story in stories) + 1
    padding = [width - 1 - len(story.ids) for story in stories]
    pad_id, bos_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    prompts = [[pad_id] * pad + [bos_id, *story.ids] for pad, story in zip(padding, stories, strict=True)]
    ids = torch.tensor(prompts, device=model.device)  # (batch, time), padded on the left
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=model.device)
    cache = DynamicCache(config=model.config)
    while True:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = model(
            ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1].float().cpu()  # (batch, vocab)  # fmt: skip
        tokens, keep = [], []
        for row, index in enumerate(rows):
            story = stories[index]
            token = _next_token(story, logits[row], vocabulary)
            step = _judge(story, token, vocabulary, full=len(story.ids) + 1 + reserve[index] >= context)
            if step is _Close:
                _close(story, model, vocabulary, _fork(cache, row, 1), mask[row : row + 1], logits[row])
                step = _Finish("ending")
            if isinstance(step, _Finish):
                story.finish_reason = step.reason
            else:
                story.ids.append(token)
                story.text = vocabulary.decode(story.ids)
                tokens.append(token)
                keep.append(row)
            yield index, _give(story), story
        rows = [rows[row] for row in keep]
        if not rows:
            return
        if len(keep) < len(mask):
            mask = mask[keep]
            cache.batch_select_indices(torch.tensor(keep, device=model.device))
        mask = torch.cat((mask, mask.new_ones(len(keep), 1)), dim=1)
        ids = torch.tensor(tokens, device=model.device)[:, None]


@dataclass(frozen=True)
class _Finish:
    reason: str


_Continue, _Close = object(), object()


def _begin(request: StoryRequest, vocabulary: Vocabulary, context: int) -> Story:
    ids = vocabulary.encode(request.start)
    ending = vocabulary.encode(" " + request.end) if request.end else []
    longest = context - 2 * CANDIDATE_TOKENS - len(ending)
    if len(ids) > longest:
        raise ValueError(
            f"the start has {len(ids)} tokens; with this ending the model has room for {max(0, longest)} "
            f"(its context is {context} tokens)"
        )
    return Story(request, ids, request.start, torch.Generator().manual_seed(request.seed))


def _give(story: Story) -> str:
    """The text that is final and not given out yet; half a character waits for its other half."""
    final = story.text if story.finish_reason else story.text.rstrip("\ufffd")
    piece, story.given = final[story.given :], max(story.given, len(final))
    return piece


def _next_token(story: Story, logits: torch.Tensor, vocabulary: Vocabulary) -> int:
    """Sample (or take the likeliest) from logits (vocab,); the reader's start is not lengthened to another word."""
    allowed = ~vocabulary.special
    allowed[vocabulary.eos] = True
    if story.text == story.request.start:
        allowed[vocabulary.eos] = False
        if story.text[-1].isalnum():
            allowed &= vocabulary.breaks_word
    return sample(logits.masked_fill(~allowed, -torch.inf)[None], story)[0]


def sample(logits: torch.Tensor, story: Story) -> list[int]:
    """One token for each row of logits (rows, vocab), by the story's settings and random numbers."""
    request = story.request
    if request.temperature == 0:
        return logits.argmax(-1).tolist()
    probabilities = torch.softmax(logits.double() / request.temperature, dim=-1)
    if request.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= request.top_p
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(outside, 0.0))
    # Cumulated in the order of the ids, not of their probabilities: rounding can then move no two tokens past
    # each other, and a batch gives what a single story gives.
    cumulated = probabilities.cumsum(-1)
    drawn = torch.rand(len(logits), 1, generator=story.generator, dtype=torch.float64) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, drawn, right=True).clamp(max=logits.shape[-1] - 1).flatten().tolist()


def _judge(story: Story, token: int, vocabulary: Vocabulary, full: bool) -> object:
    """What to do with the token the model wants next: take it, finish before it, or close on the ending.

    Args:
        full: there is just room in the context for a close.
    """
    request, piece = story.request, vocabulary.pieces[token]
    between_words = token == vocabulary.eos or not piece[:1].isalnum()
    started = len(story.text) > len(request.start)
    if request.end and started and between_words and ends_with(story.text, request.end):
        if request.stop_at_first:
            return _Finish("ending")
        if closes_sentence(story.text) and (token == vocabulary.eos or story.words_left <= CLOSING_WORDS):
            return _Finish("ending")
    if request.end and not request.stop_at_first:
        left = story.words_left - count_words(request.end)
        at_boundary = closes_sentence(story.text)
        # A sentence end in good time is the better place; in mid-sentence only when the words run out.
        if full or token == vocabulary.eos or (at_boundary and left <= CLOSING_WORDS) or (between_words and left <= 4):
            return _Close
        return _Continue
    if token == vocabulary.eos:
        return _Finish("eos")
    if full or (story.words_left <= 0 and count_words(story.text + piece) > request.max_words):
        return _Finish("length")
    return _Continue


def _fork(cache: DynamicCache, row: int, copies: int) -> DynamicCache:
    """Copies of one row of a cache, to write on without touching it."""
    fork = DynamicCache()
    for index, layer in enumerate(cache.layers):
        keys, values = (x[row : row + 1].expand(copies, -1, -1, -1) for x in (layer.keys, layer.values))
        fork.update(keys, values, index)
    return fork


def _close(
    story: Story,
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    cache: DynamicCache,
    mask: torch.Tensor,
    logits: torch.Tensor,
) -> None:
    """Finish the story on its ending: sample continuations, then take the best place to close in any of them.

    Args:
        cache, mask: one row, (1, context), for what is written so far; logits: (vocab,) of the next token.
    """
    ending = story.request.end
    typed = ending.rstrip(PUNCTUATION)
    mark = ending[len(typed) :]
    spellings = [typed] if typed[:1].isupper() else [typed, typed[0].upper() + typed[1:]]
    ending_ids = [vocabulary.encode(" " + spelling) for spelling in spellings]

    continuations, first_scores = _continuations(story, model, vocabulary, cache, mask, logits, ending_ids)
    places = []  # (log-probability of the ending's first token, continuation, tokens of it, spelling)
    for index, tokens in enumerate(continuations):
        for length in range(len(tokens) + 1):
            if _may_close(story, tokens, length, vocabulary):
                for spelling in range(len(spellings)):
                    places.append((first_scores[length][index][spelling], index, length, spelling))
    places = sorted(set(places), key=lambda place: (-place[0], place[1:]))
    if not places:  # nothing fits: close right here
        places = [(0.0, 0, 0, 0)]
    closings: list[tuple[list[int], list[int]]] = []
    seen: set[tuple[tuple[int, ...], int]] = set()
    for _, index, length, spelling in places:
        prefix = continuations[index][:length]
        key = (tuple(prefix), spelling)
        if key not in seen and len(seen) < FINALISTS:
            seen.add(key)
            text = vocabulary.decode(story.ids + prefix)
            for stop in [mark] if SENTENCE_END.search(mark) else [mark + ".", mark + "!"]:
                stop += '"' if open_quote(f"{text} {spellings[spelling]}{stop}") else ""
                closings.append((prefix, ending_ids[spelling] + vocabulary.encode(stop)))
    scores = _score(closings, model, vocabulary, cache, mask, logits)
    prefix, close = closings[max(range(len(closings)), key=scores.__getitem__)]
    story.ids = story.ids + prefix + close
    story.text = vocabulary.decode(story.ids)


def _may_close(story: Story, tokens: list[int], length: int, vocabulary: Vocabulary) -> bool:
    """Whether the ending may stand after `length` of the tokens: inside a sentence, between words, within the limit."""
    text = vocabulary.decode(story.ids + tokens[:length])
    following = vocabulary.pieces[tokens[length]] if length < len(tokens) else ""
    fits = count_words(text) + count_words(story.request.end) <= story.request.max_words
    inside = (text[-1:].isalnum() or text[-1:] == ",") and "\ufffd" not in text
    # A word that stands twice in a row is no ending; the whole of a word the reader began with stays as it is.
    return fits and inside and not following[:1].isalnum() and not ends_with(text, story.request.end)


def _continuations(
    story: Story,
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    cache: DynamicCache,
    mask: torch.Tensor,
    logits: torch.Tensor,
    ending_ids: list[list[int]],
) -> tuple[list[list[int]], list[list[list[float]]]]:
    """Sample ways on to the next sentence end.

    Returns:
        the continuations' tokens, and log-probabilities of the ending's first token, [length][continuation][spelling].
    """
    fork = _fork(cache, 0, CANDIDATES)
    fork_mask = mask.expand(CANDIDATES, -1)
    position = int(mask.sum())
    banned = vocabulary.special.clone()
    first = torch.tensor([ids[0] for ids in ending_ids])
    logits = logits.expand(CANDIDATES, -1)
    room = story.words_left - count_words(story.request.end)
    tokens: list[list[int]] = [[] for _ in range(CANDIDATES)]
    ended = [False] * CANDIDATES
    scores = []
    for length in range(CANDIDATE_TOKENS + 1):
        scores.append(torch.log_softmax(logits, -1)[:, first].tolist())
        if length == CANDIDATE_TOKENS:
            break
        drawn = sample(logits.masked_fill(banned, -torch.inf), story)
        for index, token in enumerate(drawn):
            if not ended[index]:
                tokens[index].append(token)
                text = vocabulary.decode(tokens[index])
                ended[index] = bool(SENTENCE_END.search(text)) or count_words(text) > room + 1
        if all(ended):
            break
        fork_mask = torch.cat((fork_mask, fork_mask.new_ones(CANDIDATES, 1)), dim=1)
        logits = model(
            torch.tensor(drawn, device=model.device)[:, None], attention_mask=fork_mask,
            position_ids=torch.full((CANDIDATES, 1), position + length, device=model.device),
            past_key_values=fork, use_cache=True,
        ).logits[:, -1].float().cpu()  # (candidates, vocab)  # fmt: skip
    return tokens, scores


def _score(
    closings: list[tuple[list[int], list[int]]],
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    cache: DynamicCache,
    mask: torch.Tensor,
    logits: torch.Tensor,
) -> list[float]:
    """log p(ending, sentence end, </sos> | story, prefix) of each (prefix, close); one forward pass for all."""
    width = max(len(prefix) + len(close) for prefix, close in closings)
    rows = [prefix + close + [vocabulary.eos] for prefix, close in closings]
    ids = torch.tensor([row[:-1] + [0] * (width + 1 - len(row)) for row in rows], device=model.device)
    positions = int(mask.sum()) + torch.arange(width, device=model.device)
    full_mask = torch.cat((mask.expand(len(rows), -1), mask.new_ones(len(rows), width)), dim=1)
    output = model(
        ids, attention_mask=full_mask, position_ids=positions.expand(len(rows), -1),
        past_key_values=_fork(cache, 0, len(rows)), use_cache=True,
    ).logits.float().cpu()  # (closings, width, vocab)  # fmt: skip
    # Padding stands on the right, where it is seen by no token that counts.
    everything = torch.cat((logits.expand(len(rows), 1, -1), output), dim=1).log_softmax(-1)
    return [
        sum(everything[row, at, rows[row][at]].item() for at in range(len(prefix), len(rows[row])))
        for row, (prefix, _) in enumerate(closings)
    ]

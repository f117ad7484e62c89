"""How surprising the least likely token of a sentence is: the automatic companion of a blind reading.

One wrong word makes a sentence nonsense, and hides in a mean over its tokens. So a sentence counts as surprising as its
least likely token, and as its least likely word (the sum over a word's tokens), under a judge that is not the writer:
one checkpoint, or several averaged in probability. What is surprising, real stories say: a sentence is *odd* beyond the
99th percentile of theirs. The judge is checked first: it must tell real last sentences from the same with a wrong last
word, with a word left out, with a rarer ending forced in. What is written by a search that minimises this very surprise
escapes it: a judge must be kept out of the writer's drafts.
"""

import math
import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling.request_tiny_story import PUNCTUATION, bare_words
from training.checkpoint import load_pretrained
from training.endings import last_sentence
from training.intervals import auc_interval, roc_auc
from training.reading import in_bands, share
from training.scoring import token_nats
from training.wishes import SENTENCE_START
from training.writers import REAL, WrittenStory

MEASURES = ("token", "word")
PERCENTILES = (95, 99)  # of real sentences
SEPARATES = 0.9  # area under the ROC curve from which a measure is trusted with a kind of nonsense
CHUNK = 50  # stories measured between two steps of the progress bar


@dataclass(frozen=True)
class Surprise:
    """Of one sentence, in nats: its least likely token, and its least likely word."""

    token: float
    word: float


class Judges:
    """Checkpoints read as one: the mean of their probabilities, token by token.

    Raises:
        ValueError: there are none, or they do not share one vocabulary.
    """

    def __init__(self, models: Sequence[PreTrainedModel], tokenizers: Sequence[PreTrainedTokenizerBase]):
        if not models:
            raise ValueError("no judges; give at least one checkpoint")
        if any(tokenizer.get_vocab() != tokenizers[0].get_vocab() for tokenizer in tokenizers):
            raise ValueError("the judges' tokenizers differ: probabilities of different tokens have no mean")
        self.models, self.tokenizer = models, tokenizers[0]

    @classmethod
    def load(cls, names: Sequence[str]) -> "Judges":
        """Judges from folders or Hub names."""
        loaded = [load_pretrained(name) for name in names]
        return cls([model for model, _ in loaded], [tokenizer for _, tokenizer in loaded])

    def nats(self, texts: Sequence[str]) -> list[list[float]]:
        """-log p of every token of each story and of its end, in nats, as `token_nats` gives them for one model."""
        read = [token_nats(model, self.tokenizer, texts) for model in self.models]
        return [
            (math.log(len(read)) - torch.logsumexp(-torch.tensor(story, dtype=torch.float64), 0)).tolist()
            for story in zip(*read, strict=True)
        ]

    def sentences(self, texts: Sequence[str], progress: bool = False) -> list[list[Surprise]]:
        """The surprise of every sentence of each story."""
        found = []
        for at in tqdm(range(0, len(texts), CHUNK), desc="Judging", unit=f" x {CHUNK} stories", disable=not progress):
            chunk = texts[at : at + CHUNK]
            encoded = self.tokenizer(list(chunk), add_special_tokens=False, return_offsets_mapping=True)
            for text, nats, offsets in zip(chunk, self.nats(chunk), encoded["offset_mapping"], strict=True):
                found.append(sentence_surprises(text, nats, [stop for _, stop in offsets]))
        return found


def sentence_surprises(text: str, nats: Sequence[float], stops: Sequence[int]) -> list[Surprise]:
    """The surprise of each sentence of a text.

    Args:
        nats: of each token; what follows the last of `stops` (the story's end) does not count.
        stops: where each token's characters end. Blanks count to the word after them.
    """
    begins = [match.start() for match in re.finditer(r"\S+", text)]
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    words: list[list[float]] = [[] for _ in ends]
    for cost, stop in zip(nats, stops, strict=False):
        words[min(bisect_left(ends, stop), len(ends) - 1)].append(cost)
    starts = sorted({match.end() for match in SENTENCE_START.finditer(text) if match.end() < len(text)} - {0})
    sentences: list[list[list[float]]] = [[] for _ in range(len(starts) + 1)]
    for begin, costs in zip(begins, words, strict=True):
        sentences[bisect_left(starts, begin + 1)].append(costs)
    return [
        Surprise(max(max(costs, default=0.0) for costs in sentence), max(map(sum, sentence)))
        for sentence in sentences
        if sentence
    ]


def swap_ending(text: str, ending: str) -> str:
    """The story with another last word or words in place of its last word, its punctuation kept."""
    head, _, last = text.rpartition(" ")
    core = last.strip(PUNCTUATION)
    return f"{head} {last.replace(core, ending) if core else ending + last}"


def drop_word(text: str, rng: random.Random) -> str | None:
    """The story without one word of its last sentence, neither its first nor its last; None if that has under four."""
    at = last_sentence(text)
    words = text[at:].split(" ")
    if len(words) < 4:
        return None
    del words[rng.randrange(1, len(words) - 1)]
    return text[:at] + " ".join(words)


def spoil(real: Sequence[str], endings: dict[str, list[str]], seed: int) -> dict[str, list[str]]:
    """Real stories whose last sentence was made nonsense of, by what was done to it.

    Args:
        endings: of each band, words or phrases to force in.
    """
    rng = random.Random(seed)
    lasts = [words[-1] for words in map(bare_words, real) if words]
    spoilt = {
        "another story's last word": [
            swap_ending(text, rng.choice([word for word in lasts if word != bare_words(text)[-1]])) for text in real
        ],
        "a word left out": [text for text in (drop_word(text, rng) for text in real) if text],
    }
    for band, words in endings.items():
        spoilt[f"forced: {band}"] = [swap_ending(text, rng.choice(words)) for text in real]
    return spoilt


def last(story: Sequence[Surprise], measure: str) -> float:
    """A measure of a story's last sentence, in nats."""
    return getattr(story[-1], measure)


def separation(real: Sequence[list[Surprise]], spoilt: dict[str, list[list[Surprise]]]) -> str:
    """How well each measure tells spoilt last sentences from real ones, as a Markdown table: area under the ROC curve
    with a 95 % interval; what does not reach `SEPARATES` says so."""
    lines = ["| last sentence | stories | least likely token | least likely word |", "|---|---|---|---|"]
    for kind, stories in spoilt.items():
        cells = [area([last(s, name) for s in real], [last(s, name) for s in stories]) for name in MEASURES]
        lines.append(f"| {kind} | {len(stories)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def area(low: Sequence[float], high: Sequence[float]) -> str:
    """The area under the ROC curve with its interval, for a table."""
    value = roc_auc(low, high)
    begin, end = auc_interval(low, high)
    return f"{value:.3f} ({begin:.3f}-{end:.3f}){'' if value >= SEPARATES else ', not seen'}"


class Real:
    """What real stories' sentences cost: limits that few of them lie beyond, apart for last and for other sentences."""

    def __init__(self, stories: Sequence[list[Surprise]]):
        self.last = self._limits([story[-1] for story in stories])
        self.other = self._limits([sentence for story in stories for sentence in story[:-1]])

    def odd(self, story: Sequence[Surprise]) -> list[bool]:
        """Of each sentence, the story's last one at the end, whether its least likely token lies beyond the 99th
        percentile of real ones."""
        limits = [self.other["token", 99]] * (len(story) - 1) + [self.last["token", 99]]
        return [sentence.token > limit for sentence, limit in zip(story, limits, strict=True)]

    @staticmethod
    def _limits(sentences: Sequence[Surprise]) -> dict[tuple[str, int], float]:
        return {
            (name, percentile): float(np.percentile([getattr(one, name) for one in sentences], percentile))
            for name in MEASURES
            for percentile in PERCENTILES
        }


def surprise_table(stories: Sequence[WrittenStory], surprises: Sequence[list[Surprise]], real: Real) -> str:
    """By writer and band, as a Markdown table: means of the last sentence in nats, shares of last sentences beyond the
    percentiles of real last ones (with 95 % intervals), and of all other sentences beyond the 99th of real others."""
    found = dict(zip(map(id, stories), surprises, strict=True))
    heads = ["writer", "band", "stories", *(f"least likely {name}, nats" for name in MEASURES)]
    heads += [f"{name} beyond {percentile}th" for name in MEASURES for percentile in PERCENTILES]
    heads += [f"other sentences: {name} beyond 99th" for name in MEASURES]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for writer in sorted({story.writer for story in stories}, key=lambda name: (name == REAL, name)):
        for band, some in in_bands([one for one in stories if one.writer == writer], lambda one: one.band):
            told = [found[id(story)] for story in some]
            others = [sentence for story in told for sentence in story[:-1]]
            cells = [f"{np.mean([last(story, name) for story in told]):.1f}" for name in MEASURES]
            for (name, _), limit in real.last.items():
                cells.append(share(sum(last(story, name) > limit for story in told), len(told)))
            for name in MEASURES:
                limit = real.other[name, 99]
                beyond = sum(getattr(sentence, name) > limit for sentence in others)
                cells.append(f"{100 * beyond / len(others):.1f} %" if others else "-")
            lines.append(f"| {writer} | {band} | {len(told)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def reader_separation(stories: Sequence[list[Surprise]], sensible: Sequence[bool]) -> str:
    """Whether the measures see what readers see: area under the ROC curve between last sentences they found sensible
    and the others, as a Markdown table's row.

    Raises:
        ValueError: the readers said the same of all.
    """
    if len(set(sensible)) < 2:
        raise ValueError("the readers found all last sentences sensible, or none: nothing to tell apart")
    cells = []
    for name in MEASURES:
        values = [(last(story, name), answer) for story, answer in zip(stories, sensible, strict=True)]
        cells.append(area([v for v, answer in values if answer], [v for v, answer in values if not answer]))
    return f"| not sensible to readers | {sensible.count(False)} | {' | '.join(cells)} |"

"""Do stories end as asked, and at what price? Pairs in bands, baselines, and a judge that is not the writer.

The pairs: first three words of one validation story, and an ending in one of six bands, by how often a word is the last
one of a training story: ranks 1 to 20, 21 to 100, 101 to 1,100, seen but never last, never seen, and phrases of two to
five words that close another validation story.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

from modeling.request_tiny_story import PUNCTUATION, bare_words, closes_sentence, ends_with
from training.scoring import token_nats
from training.wishes import SENTENCE_END, SENTENCE_START

BANDS = ("last words 1-20", "last words 21-100", "last words 101-1,100", "seen, never last", "never seen", "phrases")


@dataclass(frozen=True)
class Pair:
    """A story's first words and its ending, and the ending's band."""

    band: str
    start: str
    end: str


@dataclass(frozen=True)
class Told:
    """A story told for a pair, and whether its ending needed a search."""

    pair: Pair
    text: str
    num_words: int
    searched: bool


def last_word_ranks(texts: Iterable[str]) -> dict[str, int]:
    """Rank (from 1) of each word by how often it is the last one of a story."""
    counts = Counter(words[-1] for words in map(bare_words, texts) if words)
    return {word: rank for rank, (word, _) in enumerate(counts.most_common(), start=1)}


def band_of(word: str, ranks: dict[str, int], seen: set[str]) -> str | None:
    """The band of a single word; None for last words rarer than rank 1,100."""
    if word not in ranks:
        return BANDS[3] if word in seen else BANDS[4]
    return next((band for band, last in zip(BANDS, (20, 100, 1100), strict=False) if ranks[word] <= last), None)


def make_pairs(validation: Sequence[str], training: Sequence[str], per_band: int, seed: int) -> list[Pair]:
    """So many pairs of each band that has any ending, in the order of the bands."""
    rng = random.Random(seed)
    ranks = last_word_ranks(training)
    seen = {word for text in training for word in bare_words(text)}
    candidates: dict[str, list[str]] = {band: [] for band in BANDS}
    for text in validation:
        words = bare_words(text)
        if words:
            band = band_of(words[-1], ranks, seen)
            if band in BANDS[:3]:
                candidates[band].append(words[-1])
            # Others hardly ever close a story: any word of the story may be asked for.
            for word in {word for word in words if len(word) > 3 and word.isalpha()}:
                if (band := band_of(word, ranks, seen)) in BANDS[3:5]:
                    candidates[band].append(word)
            phrase = SENTENCE_END.split(" ".join(text.split()[-rng.randint(2, 5) :]))[-1].strip(PUNCTUATION + " ")
            if len(phrase.split()) > 1:
                candidates[BANDS[5]].append(phrase)
    pairs = []
    for band, endings in candidates.items():
        if not endings:
            continue
        # Frequent words as often as they occur; rare ones each once, as far as they go.
        chosen = rng.sample(sorted(set(endings)) if band in BANDS[3:5] else endings, min(per_band, len(set(endings))))
        chosen += [rng.choice(endings) for _ in range(per_band - len(chosen))]
        pairs += [Pair(band, " ".join(rng.choice(validation).split()[:3]), end) for end in chosen]
    return pairs


def tell_pairs(
    tell: Pipeline, pairs: Sequence[Pair], max_words: int, seed: int, batch: int, **wishes: Any
) -> list[Told]:
    """One story for each pair, `batch` at a time; the story of pair i has seed `seed` + i."""
    wanted = ({"start": pair.start, "end": pair.end} for pair in pairs)
    results = tell(wanted, batch_size=batch, max_words=max_words, seed=seed, **wishes)
    told = tqdm(zip(pairs, results, strict=True), total=len(pairs), unit=" stories", desc="Telling")
    return [Told(pair, result["story"], result["num_words"], result["num_searches"] > 0) for pair, result in told]


def tell_by_rejection(tell: Pipeline, pair: Pair, max_words: int, seed: int, tries: int) -> int | None:
    """Free stories with this start, until one ends on the ending by itself: how many it took; None if none did."""
    stories = tell(pair.start, max_words=max_words, num_stories=tries, seed=seed)
    for number, story in enumerate(stories, start=1):
        if ends_with(story["story"], pair.end) and story["finish_reason"] == "eos":
            return number
    return None


def force(text: str, end: str) -> str:
    """The naive way: the story's last whole sentence, then the ending, pasted."""
    return f"{text} {end[0].upper()}{end[1:]}."


def last_sentence(text: str) -> int:
    """Where the last sentence begins, in characters."""
    starts = [match.end() for match in SENTENCE_START.finditer(text)]
    return max([0, *(start for start in starts if start < len(text))])


class Judge:
    """Another model's bits per byte of a story, and of its last sentence given the rest."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer

    def bits(self, texts: Sequence[str]) -> tuple[float, float, float]:
        """Bits per byte of all texts together; of all last sentences together, the story's end included; and the
        standard error of the latter (a ratio of sums; Cochran 1977, Sampling Techniques, section 2.11)."""
        nats = token_nats(self.model, self.tokenizer, texts)
        whole = sum(map(sum, nats)) / math.log(2) / sum(len(text.encode()) for text in texts)
        lasts = []  # (bits, bytes)
        for text, story in zip(texts, nats, strict=True):
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            begin = last_sentence(text)
            first = next((i for i, (_, stop) in enumerate(offsets) if stop > begin), len(offsets))
            lasts.append((sum(story[first:]) / math.log(2), len(text[begin:].encode())))
        size = sum(length for _, length in lasts)
        last = sum(cost for cost, _ in lasts) / size
        return whole, last, math.sqrt(sum((cost - last * length) ** 2 for cost, length in lasts)) / size


def repeated_four_grams(text: str) -> float:
    """Share of a story's runs of four words that stood in it before."""
    words = bare_words(text)
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def by_band(pairs: Sequence[Pair], value: Callable[[int], float]) -> dict[str, float]:
    """Mean of a value over the pairs of each band that has any, by index."""
    places = {band: [i for i, pair in enumerate(pairs) if pair.band == band] for band in BANDS}
    return {band: sum(map(value, indices)) / len(indices) for band, indices in places.items() if indices}


def real_stories(texts: Sequence[str], training: Sequence[str]) -> dict[str, list[str]]:
    """Validation stories by the band of their last word; phrases are taken from all of them."""
    ranks = last_word_ranks(training)
    seen = {word for text in training for word in bare_words(text)}
    found: dict[str, list[str]] = {band: [] for band in BANDS}
    for text in texts:
        words = bare_words(text)
        if words and (band := band_of(words[-1], ranks, seen)):
            found[band].append(text)
        found[BANDS[5]].append(text)
    return found


def kept(told: Sequence[Told], max_words: int) -> dict[str, dict[str, float]]:
    """For each band, the shares of stories that end on their ending, in a whole sentence, within the limit, and whose
    ending came by plan alone."""
    pairs = [story.pair for story in told]
    return {
        "exact ending": by_band(pairs, lambda i: ends_with(told[i].text, told[i].pair.end)),
        "whole sentence": by_band(pairs, lambda i: closes_sentence(told[i].text)),
        "length kept": by_band(pairs, lambda i: told[i].num_words <= max_words),
        "by plan alone": by_band(pairs, lambda i: not told[i].searched),
    }

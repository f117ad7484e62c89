"""Figures about scores and about texts: intervals, where bits are spent, how much a set of stories varies."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU

from modeling.request_tiny_story import bare_words

RESAMPLES = 2000  # of the bootstrap
LENGTHS = (400, 600, 800, 1200)  # bytes of a story: the borders of its length classes
POSITIONS = (50, 100, 200, 400, 800)  # bytes from a story's beginning: the borders of the places in it


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}–{self.high:.4f}]"


@dataclass(frozen=True)
class StoryScore:
    """One story's bits, by token, and where in the story's text each token ends.

    Args:
        bits: of each token, the story's end the last one.
        stops: bytes of the text up to each token's end; None where the tokenizer does not say.
        num_bytes: of the normalised text.
    """

    bits: list[float]
    stops: list[int] | None
    num_bytes: int

    @property
    def total(self) -> float:
        """Bits of the story and its end."""
        return math.fsum(self.bits)


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Sum over sum, and its percentile interval over resampled pairs (Efron and Tibshirani 1993, chapter 13).

    >>> bootstrap_ratio([1.0, 1.0], [2.0, 2.0])
    Interval(value=0.5, low=0.5, high=0.5)

    Raises:
        ValueError: nothing to resample, or as many numerators as denominators there are not.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if not len(above) or len(above) != len(below):
        raise ValueError(f"a bootstrap needs pairs, got {len(above)} numerators and {len(below)} denominators")
    rng = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for i in range(resamples):
        chosen = rng.integers(len(above), size=len(above))
        ratios[i] = above[chosen].sum() / below[chosen].sum()
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(above.sum() / below.sum()), float(low), float(high))


def bits_per_byte(scores: Sequence[StoryScore], seed: int = 0) -> Interval:
    """Of all stories together, over resampled stories."""
    return bootstrap_ratio([score.total for score in scores], [score.num_bytes for score in scores], seed)


def bits_by_length(scores: Sequence[StoryScore], seed: int = 0) -> list[dict[str, Any]]:
    """Bits per byte of the stories of each length class that has ten or more."""
    rows = []
    for name, within in _classes(LENGTHS):
        some = [score for score in scores if within(score.num_bytes)]
        if len(some) >= 10:
            rows.append({"bytes": name, "stories": len(some)} | asdict(bits_per_byte(some, seed)))
    return rows


def bits_by_position(scores: Sequence[StoryScore], seed: int = 0) -> list[dict[str, Any]]:
    """Bits per byte of the tokens that end in each part of a story, and bits of the stories' ends.

    None of it where the tokenizer does not say where its tokens end.
    """
    placed = [(score, score.stops) for score in scores if score.stops is not None]
    rows: list[dict[str, Any]] = []
    for name, within in _classes(POSITIONS) if placed else []:
        bits: list[float] = []
        sizes: list[float] = []
        for score, stops in placed:
            begins = [0, *stops[:-1]]
            inside = [i for i, stop in enumerate(stops[:-1]) if within(stop)]  # the story's end stands by itself
            if inside:
                bits.append(math.fsum(score.bits[i] for i in inside))
                sizes.append(sum(stops[i] - begins[i] for i in inside))
        if len(sizes) >= 10 and any(sizes):
            rows.append({"bytes": name, "stories": len(sizes)} | asdict(bootstrap_ratio(bits, sizes, seed)))
    if placed:
        ends = bootstrap_ratio([score.bits[-1] for score, _ in placed], [1] * len(placed), seed)
        rows.append({"bytes": "the end, bits", "stories": len(placed)} | asdict(ends))
    return rows


def _classes(borders: Sequence[int]) -> list[tuple[str, Callable[[int], bool]]]:
    """Names of the classes between borders, and whether a number belongs: above the lower one, up to the upper one."""
    edges = [0, *borders, math.inf]
    names = [f"up to {borders[0]}", *(f"{a + 1}-{b}" for a, b in pairwise(borders))]
    names.append(f"over {borders[-1]}")
    return [(name, partial(_within, low, high)) for name, (low, high) in zip(names, pairwise(edges), strict=True)]


def _within(low: float, high: float, size: int) -> bool:
    return low < size <= high


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Different runs of n words over all runs of n words (distinct-n, Li et al. 2016).

    >>> distinct_n(["the cat saw the cat"], 2)
    0.75

    Raises:
        ValueError: no text has n words.
    """
    runs = [tuple(words[i : i + n]) for words in map(bare_words, texts) for i in range(len(words) - n + 1)]
    if not runs:
        raise ValueError(f"no text of {n} words or more")
    return len(set(runs)) / len(runs)


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4 of each text against all others, 0 to 1: high where stories are alike (Zhu et al. 2018, Texygen).

    Raises:
        ValueError: fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"self-BLEU compares texts with one another, got {len(texts)}")
    bleu = BLEU(effective_order=True, lowercase=True)
    scores = [bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)]
    return sum(scores) / len(scores) / 100


def first_words(texts: Iterable[str], count: int) -> list[str]:
    """The first `count` words of the texts that have so many: what varies must be compared at equal length."""
    return [" ".join(words[:count]) for words in map(str.split, texts) if len(words) >= count]

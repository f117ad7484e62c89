"""Intervals against every resample there is; bits where they are spent; variety on texts counted by hand."""

import itertools
import math

import numpy as np
import pytest

from training.metrics import (
    StoryScore,
    bits_by_length,
    bits_by_position,
    bits_per_byte,
    bootstrap_ratio,
    distinct_n,
    first_words,
    self_bleu,
)


def test_the_interval_is_that_of_all_resamples():
    above, below = [3.0, 5.0, 9.0, 2.0], [4.0, 5.0, 8.0, 4.0]
    every = sorted(
        sum(above[i] for i in chosen) / sum(below[i] for i in chosen)
        for chosen in itertools.product(range(4), repeat=4)  # all 256, equally likely
    )
    low, high = np.quantile(every, [0.025, 0.975], method="inverted_cdf")
    interval = bootstrap_ratio(above, below, resamples=20_000)
    assert interval.value == sum(above) / sum(below)
    assert interval.low == pytest.approx(low, abs=0.02) and interval.high == pytest.approx(high, abs=0.02)


def test_the_interval_of_many_is_as_wide_as_theory_says():
    rng = np.random.default_rng(1)
    sizes = rng.integers(200, 1500, 1000)
    bits = sizes * 0.6 + rng.normal(0, 40, 1000)
    interval = bits_per_byte([StoryScore([b], None, int(n)) for b, n in zip(bits, sizes, strict=True)])
    ratio = bits.sum() / sizes.sum()
    error = math.sqrt(((bits - ratio * sizes) ** 2).sum()) / sizes.sum()  # Cochran 1977, section 2.11
    assert interval.value == pytest.approx(ratio)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_bits_are_counted_where_they_are_spent():
    story = StoryScore(bits=[10.0, 20.0, 30.0, 4.0], stops=[40, 90, 150, 150], num_bytes=150)
    rows = {row["bytes"]: row["value"] for row in bits_by_position([story] * 10)}
    assert rows == {"up to 50": 10 / 40, "51-100": 20 / 50, "101-200": 30 / 60, "the end, bits": 4.0}
    assert bits_by_position([StoryScore([1.0], None, 10)] * 10) == []
    (length,) = bits_by_length([story] * 10 + [StoryScore([1.0], None, 5000)] * 9)  # nine are too few to speak of
    assert length["bytes"] == "up to 400" and length["stories"] == 10 and length["value"] == pytest.approx(64 / 150)


def test_variety_on_texts_counted_by_hand():
    texts = ["The cat sat.", "the cat ran"]
    assert distinct_n(texts, 1) == 4 / 6 and distinct_n(texts, 2) == 3 / 4
    same, other = ["one two three four five six"] * 3, ["one two three four five six", "a b c d e f", "u v w x y z"]
    assert self_bleu(same) == pytest.approx(1)
    assert self_bleu(other) < 0.1
    assert first_words(["a b c d", "a"], 2) == ["a b"]


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="needs pairs"):
        bootstrap_ratio([], [])
    with pytest.raises(ValueError, match="no text of 3 words"):
        distinct_n(["a b"], 3)
    with pytest.raises(ValueError, match="got 1"):
        self_bleu(["alone"])

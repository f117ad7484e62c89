"""Sampling against the plain definition, and the guard against loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling.sampling_tiny_story import DRY_ALLOWED, nucleus, repetition_penalties, sample


def defined(logits: np.ndarray, temperature: float, top_p: float) -> dict[int, float]:
    """Token and probability, from the definition: the fewest likeliest tokens that reach top_p, normalised."""
    scaled = logits.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    kept, mass = {}, 0.0
    for token in np.argsort(-probabilities, kind="stable"):
        kept[int(token)] = probabilities[token]
        mass += probabilities[token]
        if mass >= top_p:
            break
    return {token: p / mass for token, p in kept.items()}


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.8, 0.95), (1.5, 0.5), (0.3, 0.9)])
def test_sampling_equals_the_definition(temperature: float, top_p: float):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=300).astype(np.float32) * 3
    expected = defined(logits, temperature, top_p)
    draws = (np.arange(20_000) + 0.5) / 20_000
    likely = nucleus(logits, temperature, top_p)
    counts = np.bincount([sample(*likely, draw) for draw in draws], minlength=300) / len(draws)
    assert set(np.flatnonzero(counts)) <= set(expected)
    for token, probability in expected.items():
        assert counts[token] == pytest.approx(probability, abs=2e-4)


@given(st.floats(0, 1, exclude_max=True), st.floats(0.01, 1), st.floats(0, 5), st.integers(0, 2**32 - 1))
def test_a_forbidden_token_never_comes(draw: float, top_p: float, temperature: float, seed: int):
    logits = np.random.default_rng(seed).normal(size=50).astype(np.float32) * 10
    logits[::2] = -np.inf
    assert sample(*nucleus(logits, temperature, top_p), draw) % 2 == 1


def penalties(ids: list[int]) -> dict[int, float]:
    return repetition_penalties(ids, 0.8)


def test_only_long_repeats_are_penalised_and_longer_ones_more():
    passage = [5, 6, 7, 8, 9, 10, 11, 12]
    assert penalties([*passage, 99, *passage[: DRY_ALLOWED - 1]]) == {}  # shorter than what is allowed
    grown = []
    for length in range(DRY_ALLOWED, len(passage)):
        found = penalties([*passage, 99, *passage[:length]])
        assert set(found) == {passage[length]}
        grown.append(found[passage[length]])
    assert grown == pytest.approx([0.8 * 1.75**n for n in range(len(grown))])


def test_a_name_may_come_as_often_as_it_likes():
    assert penalties([5, 20, 5, 21, 5, 22, 5, 23, 5]) == {}


def test_bold_draws_are_flatter_but_of_likely_tokens_only():
    logits = np.log(np.array([0.6, 0.3, 0.07, 0.02, 0.01]))
    ids, cumulated = nucleus(logits, 1.0, 1.0, boldness=2.0)
    assert ids.tolist() == [0, 1, 2]  # at least a twentieth as likely as the likeliest
    assert np.diff(cumulated, prepend=0) == pytest.approx(np.sqrt([0.6, 0.3, 0.07]))
    assert nucleus(logits, 1.0, 1.0)[0].tolist() == [0, 1, 2, 3, 4]

"""A story's wishes are true of the story: whatever prefix is drawn, the text keeps to it."""

import random

import pytest

from modeling.control_tiny_story import ENDING, INCLUDE, LENGTH_LIMITS, LENGTHS, fitting_bucket, length_bucket
from modeling.request_tiny_story import closes_sentence, count_words, ends_with
from training.wishes import content_words, draw_excerpt, draw_wishes


def read_prefix(tokenizer, prefix: list[int]) -> dict[str, list[str]]:
    """The prefix as a reader sees it: the parts by their special tokens."""
    parts: dict[str, list[str]] = {}
    name = ""
    for token, piece in zip(prefix, tokenizer.convert_ids_to_tokens(prefix), strict=True):
        if token in tokenizer.all_special_ids:
            name = piece
            parts.setdefault(name, []).append("")
        else:
            parts[name][-1] += tokenizer.decode([token])
    return parts


@pytest.mark.parametrize("seed", range(60))
def test_the_story_keeps_to_the_wishes_drawn_from_it(tokenizer, stories: list[str], seed: int):
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    original = stories[seed % len(stories)]
    prefix, text = draw_wishes(original, "story", encode, random.Random(seed))
    assert text in original and text[0] not in " \n" and closes_sentence(text)
    parts = read_prefix(tokenizer, prefix)
    assert set(parts) <= {ENDING, INCLUDE, *LENGTHS}
    for ending in parts.get(ENDING, []):
        assert ends_with(text, ending) and 1 <= count_words(ending) <= 5
    for word in parts.get(INCLUDE, []):
        assert word.strip() in content_words(text)
    for bucket in set(parts) & set(LENGTHS):
        assert LENGTHS.index(bucket) + 1 == length_bucket(count_words(text))


def test_excerpts_are_whole_sentences_with_their_own_ending(tokenizer, stories: list[str]):
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rng = random.Random(1)
    for story in stories * 10:
        prefix, text = draw_excerpt(story, encode, rng)
        assert text in story and closes_sentence(text) and not text.startswith((" ", "\n"))
        parts = read_prefix(tokenizer, prefix)
        assert ends_with(text, parts[ENDING][0])
        assert LENGTHS[length_bucket(count_words(text)) - 1] in parts
    assert draw_excerpt("One sentence only.", encode, rng) is None


def test_every_kind_of_wish_is_drawn(tokenizer, stories: list[str]):
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rng = random.Random(0)
    drawn = [draw_wishes(story, "story", encode, rng) for story in stories * 40]
    names = {tokenizer.convert_ids_to_tokens(token) for prefix, _ in drawn for token in prefix}
    assert {ENDING, INCLUDE} < names and names & set(LENGTHS)
    assert any(text not in {story[: len(text)] for story in stories} for _, text in drawn)  # begun at a later sentence
    assert any(not any(story.endswith(text) for story in stories) for _, text in drawn)  # ended at an earlier one
    assert any(not prefix for prefix, _ in drawn)


def test_text_without_an_end_has_no_wishes(stories: list[str]):
    for kind in ("head", "middle"):
        assert draw_wishes(stories[0], kind, lambda text: [20], random.Random(0)) == ([], stories[0])
    assert draw_wishes("One sentence.", "story", lambda text: [20], random.Random(0)) == ([], "One sentence.")


def test_length_buckets_meet_at_their_limits():
    for bucket, limit in enumerate(LENGTH_LIMITS, start=1):
        assert length_bucket(limit) == bucket and length_bucket(limit + 1) == bucket + 1
    buckets = [fitting_bucket(max_words) for max_words in range(1, 200)]
    assert buckets == sorted(buckets) and set(buckets) == {1, 2, 3, 4, 5, 6}
    assert [fitting_bucket(max_words) for max_words in (20, 80, 120, 150, 199)] == [1, 2, 3, 4, 6]
    assert fitting_bucket(200) is None

"""Sentences written backwards are the story's own: turned round again, they are the story, token for token."""

import random

import pytest

from modeling.control_tiny_story import BEGIN, CLOSE, SPECIAL_TOKENS
from training.closings import draw_closings
from training.data import IGNORED, pack_batch, tokenise_batch

CLOSE_ID, BEGIN_ID = SPECIAL_TOKENS.index(CLOSE), SPECIAL_TOKENS.index(BEGIN)


def turn_back(ids: list[int]) -> list[int]:
    """Independent of the writer: a scan from left to right."""
    told: list[int] = []
    backward: list[int] | None = None
    for token in ids:
        if token == CLOSE_ID:
            assert backward is None
            backward = []
        elif token == BEGIN_ID:
            assert backward
            told += backward[::-1]
            backward = None
        else:
            (told if backward is None else backward).append(token)
    assert backward is None
    return told


@pytest.mark.parametrize("seed", range(40))
def test_turned_back_it_is_the_story(tokenizer, stories: list[str], seed: int):
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    text = stories[seed % len(stories)]
    end = [tokenizer.eos_token_id] if seed % 3 else []
    ids = draw_closings(text, encode, end, random.Random(seed))
    assert turn_back(ids) == encode(text) + end
    if not end:  # where the text was cut off, its last words are no ending
        assert ids[-1] != BEGIN_ID


def test_every_way_to_turn_is_drawn(tokenizer, stories: list[str]):
    """Whole sentences, from a word on, up to a word, and last sentences with the end of the story."""
    seen = {"whole": 0, "from a word": 0, "up to a word": 0, "the end": 0}
    for seed in range(30):
        batch = {"text": stories, "kind": ["story"] * len(stories)}
        rows = tokenise_batch(
            batch, list(range(len(stories))), tokenizer.backend_tokenizer.to_str(), tokenizer.bos_token_id,
            tokenizer.eos_token_id, wishes_share=0.0, seed=str(seed), closings_share=1.0,
        )["input_ids"]  # fmt: skip
        for ids in rows:
            for at in (place for place, token in enumerate(ids) if token == CLOSE_ID):
                stop = ids.index(BEGIN_ID, at)
                before, last = tokenizer.decode(ids[at - 1 : at]), tokenizer.decode(ids[at + 1 : at + 2])
                seen["the end"] += ids[at + 1] == tokenizer.eos_token_id
                seen["up to a word"] += last.strip().isalpha()
                seen["from a word"] += before.strip().isalpha()
                seen["whole"] += not before.strip().isalpha() and not last.strip().isalpha() and stop > at
    assert min(seen.values()) > 10


def test_close_is_never_a_target(tokenizer, stories: list[str]):
    batch = {"text": stories, "kind": ["story"] * len(stories)}
    documents = tokenise_batch(
        batch, list(range(len(stories))), tokenizer.backend_tokenizer.to_str(), tokenizer.bos_token_id,
        tokenizer.eos_token_id, wishes_share=0.5, seed="", closings_share=1.0,
    )  # fmt: skip
    packed = pack_batch(documents, 384, tokenizer.pad_token_id)
    inputs = [token for row in packed["input_ids"] for token in row]
    labels = [token for row in packed["labels"] for token in row]
    assert CLOSE_ID in inputs and CLOSE_ID not in labels and BEGIN_ID in labels
    for token, label in zip(inputs, labels, strict=True):
        assert label in (token, IGNORED)

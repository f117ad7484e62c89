"""Any text goes through the tokenizer unchanged, and no text becomes a special token."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modeling.control_tiny_story import SPECIAL_TOKENS
from tests.conftest import HUB_FOLDER
from training.tokenizer import bytes_per_token, save_tokenizer, train_tokenizer

TOKENIZER = AutoTokenizer.from_pretrained(HUB_FOLDER)


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_round_trips(text: str):
    ids = TOKENIZER(text)["input_ids"]
    assert ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(SPECIAL_TOKENS), st.text(max_size=5)), max_size=6))
def test_typed_special_tokens_are_text(parts: list[str]):
    text = " ".join(parts).encode("utf-8", "ignore").decode()
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(range(len(SPECIAL_TOKENS)))
    assert TOKENIZER.decode(ids) == text


def test_the_vocabulary_is_as_designed():
    assert len(TOKENIZER) == TOKENIZER.vocab_size == 5000
    assert TOKENIZER.convert_ids_to_tokens(list(range(len(SPECIAL_TOKENS)))) == list(SPECIAL_TOKENS)
    assert (TOKENIZER.bos_token, TOKENIZER.eos_token, TOKENIZER.pad_token) == ("<sos>", "</sos>", "<pad>")
    assert TOKENIZER.padding_side == "left"
    settings = json.loads((HUB_FOLDER / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_training_is_repeatable_and_saves(tmp_path, stories: list[str]):
    first, second = train_tokenizer(stories, 400), train_tokenizer(stories, 400)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    save_tokenizer(first, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in stories:
        assert loaded(text)["input_ids"] == first(text)["input_ids"]
    assert 1 < bytes_per_token(first, stories) < bytes_per_token(train_tokenizer(stories, 600), stories)


def test_too_small_a_vocabulary_is_refused(stories: list[str]):
    with pytest.raises(ValueError, match="at least 272"):
        train_tokenizer(stories, 200)

"""Any text goes through the tokenizer unchanged, and no text becomes a special token."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling.control_tiny_story import SPECIAL_TOKENS
from tests.conftest import HUB_FOLDER
from training.config import TrainingConfig
from training.tokenizer import bytes_per_token, load_tokenizer, save_tokenizer, train_tokenizer
from training.train import build_model_config

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


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"bos": "<s>", "eos": "</s>", "pad": "<pad>"}, "wishes_share and closings_share need <pad>, <sos>, </sos>, "),
        ({"bos": "<s>", "eos": "</s>"}, "has no pad_token"),
        ({}, "has no bos_token"),
    ],
)
def test_a_tokenizer_without_the_tokens_a_run_needs_is_refused(tmp_path, stories, tokens: dict[str, str], message: str):
    backend = Tokenizer(models.BPE())
    backend.train_from_iterator(stories, trainers.BpeTrainer(vocab_size=300, special_tokens=list(tokens.values())))
    foreign = PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{name}_token": t for name, t in tokens.items()})
    foreign.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"tokenizer {tmp_path}.*{message}"):
        load_tokenizer(str(tmp_path), controls=True)
    if "pad" in tokens:  # of no use for wishes, but a tokenizer
        config = build_model_config(TrainingConfig("run"), load_tokenizer(str(tmp_path), controls=False))
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)

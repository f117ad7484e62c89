"""What may be drawn: whole characters, tokens the tokenizer has; and how a plan spells what the reader typed."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, Pipeline, pipeline

from modeling.control_tiny_story import ENDING, INCLUDE, SPECIAL_TOKENS
from modeling.generation_tiny_story import plan
from modeling.request_tiny_story import PUNCTUATION, StoryRequest, ends_with, keeps_capitals, open_quote, quotes_after
from modeling.story_tiny_story import Vocabulary, vocabulary_of
from tests.conftest import HUB_FOLDER

HALVES = [character.encode()[:length] for character in "é’旽🐸" for length in range(len(character.encode()))]


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> Vocabulary:
    return vocabulary_of(tokenizer)


def test_the_bytes_of_a_token_are_those_it_was_made_of(vocabulary, tokenizer, stories):
    for text in [*stories, "🐸 “naïve” Привет 旽 \x00\u0301"]:
        assert b"".join(vocabulary.bytes[token] for token in vocabulary.encode(text)).decode() == text
    known = {data for token, data in enumerate(vocabulary.bytes) if not vocabulary.special[token]}
    assert {bytes([value]) for value in range(256)} <= known


def continues(half: bytes, token: bytes) -> bool:
    """From the definition: some bytes after these make it text."""
    return any(is_utf_8(half + token + tail * length) for length in range(4) for tail in (b"\x80", b"\xbf"))


def is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("half", [*HALVES, b"\xe0", b"\xed", b"\xf4", b"\xf0"])
def test_only_what_continues_a_character_may_come(vocabulary, half: bytes):
    mask = vocabulary.breaks(half)
    assert mask[vocabulary.special].sum() == vocabulary.special.sum() - (not half)  # a story may end between characters
    assert mask[vocabulary.eos] == bool(half)
    for token in np.flatnonzero(~vocabulary.special):
        assert mask[token] != continues(half, vocabulary.bytes[token]), vocabulary.bytes[token]


def test_whole_tokens_are_whole_characters(vocabulary):
    for token, data in enumerate(vocabulary.bytes):
        assert vocabulary.not_whole[token] == (vocabulary.special[token] or not is_utf_8(data))


@settings(deadline=None, max_examples=6, derandomize=True)
@given(seed=st.integers(0, 2**31 - 1), end=st.sampled_from([None, "home"]))
def test_no_half_characters_however_hot(tell: Pipeline, seed: int, end: str | None):
    wishes = {"end": end, "max_words": 40, "temperature": 10.0, "top_p": 1.0, "seed": seed}
    pieces = list(tell.stream("Once", **wishes))
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == tell("Once", **wishes)["story"]


def test_hot_stories_do_hold_characters_of_several_tokens(tell: Pipeline, vocabulary):
    told = tell("Once", max_words=60, temperature=10.0, top_p=1.0, num_stories=16, seed=0)
    text = "".join(story["story"] for story in told)
    assert any(len(vocabulary.encode(character)) > 1 for character in text)


def test_what_the_reader_typed_stays_even_if_it_is_the_replacement_character(tell: Pipeline):
    pieces = list(tell.stream("A \ufffd", end="b\ufffdd", max_words=20, seed=1))
    assert pieces[0] == "A \ufffd" and ends_with("".join(pieces), "b\ufffdd")


@pytest.mark.parametrize("precision", ["full", "int8", "auto"])
def test_embeddings_padded_past_the_tokenizer_change_nothing(tell: Pipeline, precision: str):
    wishes = {"end": "moon", "max_words": 40, "num_stories": 3, "seed": 5, "precision": precision}
    expected = tell("The fox", **wishes)
    wide = type(tell)(model=copy.deepcopy(tell.model), tokenizer=tell.tokenizer)
    wide.model.resize_token_embeddings(5056, mean_resizing=False)
    # As likely as can be, were they drawn: a model of tied weights gives each the logit of the likeliest token.
    wide.model.get_input_embeddings().weight.data[5000:] = wide.model.get_input_embeddings().weight.data[11]
    assert [story["story"] for story in wide("The fox", **wishes)] == [story["story"] for story in expected]


@pytest.mark.parametrize(
    ("typed", "planned"),
    [
        ("happy", "happy"), ("Happy", "happy"), ("HAPPY", "happy"), ("home!", "home!"), ("HOME!", "home!"),
        ("Lily", "Lily"), ("LILY", "Lily"), ("Zog", "Zog"), ("USA", "usa"), ("the USA", "the usa"), ("x-Ray", "x-ray"),
        ("lily", "Lily"), ("mary!", "Mary!"), ("zog", "zog"), ("ICE CREAM", "ice cream"), ("Ärger", "Ärger"),
    ],
)  # fmt: skip
def test_a_plan_spells_as_the_training_stories_do(tell: Pipeline, vocabulary, typed: str, planned: str):
    assert vocabulary.at_home(typed) == planned
    request = StoryRequest("One day", end=typed, max_words=200)
    prefix, _, _ = plan(request, vocabulary, tell.model.config)
    ids = vocabulary.encode(f" {planned}")
    # One word of several tokens hardly ever ends a story: it is planned as a word to include.
    kind = INCLUDE if len(ids) > 1 and " " not in planned and planned[-1] != "!" else ENDING
    assert prefix == [SPECIAL_TOKENS.index(kind), *ids]
    assert request.end == typed


@pytest.mark.parametrize(
    ("text", "ending", "kept"),
    [
        ("They live in the USA.", "USA", True), ("They live in the usa.", "USA", False),
        ('"The USA!"', "the USA", True), ("He loved McDonald.", "McDonald", True),
        ("He loved Mcdonald.", "McDonald", False),
        ("They were happy.", "Happy", True), ("They were Happy.", "happy", True),
    ],
)  # fmt: skip
def test_what_counts_as_the_readers_spelling(text: str, ending: str, kept: bool):
    assert ends_with(text, ending) and keeps_capitals(text, ending) == kept


@pytest.mark.parametrize("end", ["USA", "NASA", "HOME", "the big TV"])
def test_an_ending_in_capitals_does_not_disturb_the_story(tell: Pipeline, end: str):
    def bare(text: str) -> list[str]:
        return [word.strip(PUNCTUATION) for word in text.split()]

    for story in tell("One day", end=end, num_stories=6, seed=3, max_words=60):
        text = story["story"].rstrip(".!?\"'")
        assert text.endswith((f" {end}", f' "{end}')) and story["num_words"] <= 60
        before = text.removesuffix(end)
        assert not any(word.isupper() and len(word) > 2 for word in bare(before.replace(end, "")))


@pytest.mark.parametrize(
    "text", ["", "He ran.", "He said, ", 'He said, "', 'He said, "Go', 'He said, "Go.', 'Go."', "(", "a\n"]
)
def test_the_mask_of_misquotes_is_what_the_rule_says_of_each_piece(tokenizer, text: str):
    vocabulary = vocabulary_of(tokenizer)
    mask = vocabulary.misquotes(text)
    for token, piece in enumerate(vocabulary.pieces):
        if token == vocabulary.eos:
            assert mask[token] == open_quote(text)
        else:
            assert mask[token] == (quotes_after(text, piece) is None), (text, piece)


@pytest.mark.parametrize(
    ("text", "more", "is_open"),
    [
        ("", '"Go," he said.', False),
        ('He said, "Go', '." She went.', False),
        ("He said,", ' "Go', True),
        ("Why do you cry", '?" he said.', None),  # closes what was not opened
        ('"Go', ' "now".', None),  # opens within quotes
        ('"Go', "\nHe went.", None),  # the paragraph leaves it open
        ('"Go."', '\n"Stop."', False),
        ("He read (", '"Go").', False),
    ],
)
def test_where_quotation_marks_can_stand(text: str, more: str, is_open: bool | None):
    assert quotes_after(text, more) is is_open


def test_a_tokenizer_that_outgrew_the_model_is_refused(trained_model):
    tokenizer = AutoTokenizer.from_pretrained(HUB_FOLDER)
    tokenizer.add_tokens(["zorgle"])
    tell = pipeline("story-generation", model=trained_model, tokenizer=tokenizer, trust_remote_code=True)
    with pytest.raises(ValueError, match=r"5001 tokens, the model 5000; say model\.resize_token_embeddings\(5001\)"):
        tell("The zorgle")

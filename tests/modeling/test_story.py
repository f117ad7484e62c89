"""The story contract, through the pipeline and the trained model of this clone."""

import copy
import math
import re
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, Pipeline

from modeling import closing_tiny_story, generation_tiny_story
from modeling.control_tiny_story import LENGTHS, SPECIAL_TOKENS
from modeling.generation_tiny_story import SENTENCE_WORDS, _draw, plan, write_stories
from modeling.pipeline_tiny_story import StoryGenerationPipeline
from modeling.request_tiny_story import (
    BOUNDARY,
    StoryRequest,
    bare_words,
    closes_sentence,
    count_words,
    ends_with,
    includes,
    open_quote,
    quotes_after,
)
from modeling.sampling_tiny_story import DRY_ALLOWED, repetition_penalties
from modeling.story_tiny_story import Story, vocabulary_of

PAIRS = [
    ("She", "happy", 40), ("The dragon", "home", 60), ("one day, a boy named Zog", "volcano", 50),
    ("Hello!", "blue car", 6), ("Lily", "Lily", 20), ("In 1999 a robot", "xylophone", 30),
    ("Привет", "friends", 25), ("“Stop!” said the cat.", "ice cream", 30), ("Happy", "happy", 2), ("Go.", "end!", 3),
    ("🐸 jumped", "don't", 25), ("A story\nof two lines", "the very end of it", 30),
]  # fmt: skip


@pytest.mark.parametrize(("start", "end", "max_words"), PAIRS)
def test_a_story_keeps_the_contract(tell: Pipeline, start: str, end: str, max_words: int):
    result = tell(start, end=end, max_words=max_words, seed=7)
    story = result["story"]
    assert story.startswith(start[0].upper() + start[1:])
    assert ends_with(story, end) and closes_sentence(story)
    assert count_words(story) == result["num_words"] <= max_words
    assert result["finish_reason"] == "ending"
    assert set(result) == {
        "story", "start", "end", "finish_reason", "num_words", "num_tokens", "num_searches", "log_probability", "score",
        "seed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("with Zoë", "with Zoë"), ("the café", "the café"), ("Grandma’s house", "Grandma's house"),
        ("my friend 😀", "my friend 😀"), ("I don’t know", "I don't know"), ("“home”", '"home"'),
        ("friends,", "friends"),
    ],
)  # fmt: skip
def test_an_ending_of_any_characters_closes_a_sentence(tell: Pipeline, end: str, told: str):
    """Curly quotes are straight ones, as in the rest of the story, and no comma stays."""
    for seed in range(4):
        result = tell("Tim and Sue", end=end, max_words=60, seed=seed)
        bare, words = result["story"].rstrip('.!?"'), told.strip('"')
        assert bare.lower().endswith(words.lower()) and math.isfinite(result["score"])
        assert not closes_sentence(bare[: len(bare) - len(words)].rstrip(' "')), result["story"]


def test_a_start_without_a_capital_letter_or_with_a_curly_quote(tell: Pipeline):
    for start in ("ßtraße", "ﬁsh"):
        assert tell(start, max_words=10, seed=1)["story"].startswith(start)
    story = tell("Mom said, “Come", end="home", max_words=60, seed=0)["story"]
    assert story.startswith("Mom said, “Come") and not any(map(open_quote, story.split("\n")))


def test_no_blank_follows_a_blank(tell: Pipeline):
    for start in ("The 😀", "🐸", "In 日本"):
        for seed in range(6):
            assert "  " not in tell(start, max_words=25, seed=seed)["story"]


def test_none_counts_as_not_given(tell: Pipeline):
    nothing = {name: None for name in ("include", "max_words", "temperature", "end", "length", "num_candidates")}
    assert tell("She", seed=1, **nothing) == tell("She", seed=1)


def test_what_is_no_model_any_more_is_said(tell: Pipeline):
    broken = copy.deepcopy(tell)
    with torch.no_grad():
        broken.model.fc.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        broken("She", end="home")
    foreign = copy.deepcopy(tell)
    foreign.tokenizer.bos_token = None
    with pytest.raises(ValueError, match="bos_token"):
        foreign("She", end="home")


ODD_TEXT = st.one_of(
    st.text(max_size=30),
    st.text(alphabet='ab .!?"\'\n\t,-“”’', max_size=30),
    st.lists(
        st.sampled_from(["dragon", "Ben's", "🐸🐸", "שלום", "naïve", "\x00", '"hi"', "end.", "<sos>", "e\u0301"]),
        max_size=5,
    ).map(" ".join),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(start=ODD_TEXT, end=ODD_TEXT, include=st.lists(ODD_TEXT, max_size=2), max_words=st.integers(1, 40))
@example(start="x" * 10_000, end="home", include=[], max_words=40)
@example(start="word " * 3000, end="home", include=[], max_words=4000)
@example(start="home", end="home", include=["home"], max_words=12)
@example(start='"Home', end='he said "no', include=["🐸"], max_words=20)
@example(start="She", end="\ud800", include=[], max_words=20)
@example(start="مرحبا", end="سلام", include=[], max_words=15)
def test_whatever_is_asked_for_the_contract_is_kept_or_refused(
    tell: Pipeline, start: str, end: str, include: list[str], max_words: int
):
    try:
        result = tell(start, end=end, include=include, max_words=max_words, seed=1, temperature=1.0)
    except ValueError as problem:
        assert len(str(problem)) > 20
        return
    story = result["story"]
    assert story.startswith(start.strip()[0].upper() + start.strip()[1:])
    assert count_words(story) <= max_words
    assert all(includes(story, word) for word in include)
    if result["end"] is not None:
        assert ends_with(story, end) and closes_sentence(story) and result["finish_reason"] == "ending"


def test_words_to_include_are_told(tell: Pipeline):
    for seed in range(4):
        result = tell("One day", end="home", include=["dragon", "ice cream", "jump"], max_words=60, seed=seed)
        assert all(includes(result["story"], word) for word in ("dragon", "ice cream", "jump"))
        assert ends_with(result["story"], "home") and result["num_words"] <= 60
    free = tell("One day", include=["rocket"], max_words=60, num_stories=4, seed=0)
    assert all(includes(result["story"], "rocket") for result in free)


def test_a_longer_length_gives_longer_stories(tell: Pipeline):
    short, long = (
        [story["num_words"] for story in tell("Once", length=length, max_words=250, num_stories=32, seed=0)]
        for length in ("short", "long")
    )
    if tell.model.config.control_prefix:
        assert sum(short) / 32 + 50 < sum(long) / 32


@pytest.mark.parametrize(
    ("end", "max_words", "length", "bucket"),
    [(None, 150, None, 4), ("home", 150, None, 3), ("home", 150, "medium", 4), ("home", 200, None, None)],
)
def test_a_story_that_waits_for_its_ending_is_planned_shorter(
    tell: Pipeline, end: str | None, max_words: int, length: str | None, bucket: int | None
):
    request = StoryRequest("She", end=end, max_words=max_words, length=length)
    prefix, _, _ = plan(request, vocabulary_of(tell.tokenizer), tell.model.config)
    lengths = [SPECIAL_TOKENS.index(name) for name in LENGTHS]
    assert [token for token in prefix if token in lengths] == ([lengths[bucket - 1]] if bucket else [])


def test_an_ending_that_comes_at_once_is_not_the_story(tell: Pipeline):
    """ "They were so happy." begins and ends as asked, and is no story."""
    told = tell("They", end="happy", max_words=120, num_stories=16, seed=0)
    assert all(story["num_words"] > 30 for story in told)
    short = tell("They", end="happy", max_words=8, num_stories=8, seed=0)
    assert all(ends_with(story["story"], "happy") and 4 <= story["num_words"] <= 8 for story in short)


def test_the_limit_holds_at_the_end_of_a_paragraph(tell: Pipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tell.model.config, "control_prefix", False)  # with it, another limit gives another story
    limits = 0
    for start in ("Once upon a time", "Lily", "The dog", "One day", "Tom and", "A boy"):
        story = tell(start, max_words=80, temperature=0)["story"]
        for end in (match.start() for match in re.finditer("\n", story)):
            limit = count_words(story[:end])
            told = tell(start, max_words=limit, temperature=0)
            assert told["num_words"] <= limit and story.startswith(told["story"].rstrip())
            limits += 1
    assert limits >= 5


def test_the_guard_against_loops_breaks_off_no_word(tell: Pipeline):
    """A name of several tokens may be told again and again; no token that goes on a word is made less likely."""
    vocabulary = vocabulary_of(tell.tokenizer, tell.model.config.vocab_size)
    first, *rest = vocabulary.encode(" Dragons")
    said = [*vocabulary.encode(" One day,"), first, *rest, *vocabulary.encode(" ran. One day,")]
    assert repetition_penalties([*said, first], 1.2)[rest[0]] > 0
    story = Story(StoryRequest("One", temperature=0.0), [*said, first], "One day, Dragons ran. One day, D", Random(0))
    logits = np.full(tell.model.config.vocab_size, -20.0, dtype=np.float32)
    (other,) = vocabulary.encode(" dog")
    logits[rest[0]], logits[other] = 1.0, 0.5
    assert _draw(story, logits, vocabulary) == rest[0]
    loop = Story(StoryRequest("One", temperature=0.0), said, "One day, Dragons ran. One day,", Random(0))
    logits[rest[0]], logits[first] = -20.0, 1.0
    assert _draw(loop, logits, vocabulary) == other  # but no loop begins


def test_a_stream_takes_one_candidate(tell: Pipeline):
    pieces = tell.stream("She", end="home", max_words=40, num_candidates=1, seed=1)
    assert "".join(pieces) == tell("She", end="home", max_words=40, seed=1)["story"]


def test_a_word_that_was_learnt_is_remembered_in_what_follows(tell: Pipeline):
    start = 'Tom ran to the park. He saw Lily. That day, Lily learned a new word: "qualms." They were happy.'
    for seed in range(4):
        story = tell(continue_from=start, end="qualms", max_words=100, seed=seed)["story"]
        assert story.count('learned a new word: "qualms') == 1 and ends_with(story, "qualms")
        assert "Lily" in story[story.rindex("qualms") - 80 :]


def test_a_word_to_include_is_told_of_where_the_ending_may_not_come(tell: Pipeline):
    told = tell("She", end="qualms", include=["qualms"], stop_at_first=True, max_words=30, seed=0)
    assert includes(told["story"], "qualms")


def test_stories_differ_from_their_openings_on(tell: Pipeline, monkeypatch: pytest.MonkeyPatch):
    def openings() -> int:
        teller = StoryGenerationPipeline(model=tell.model, tokenizer=tell.tokenizer)
        return len({told["story"][:60] for told in teller(["Once upon a time"] * 40, max_words=90, seed=1)})

    bold = openings()
    monkeypatch.setattr(generation_tiny_story, "BOLDNESS", 1.0)
    assert bold > openings()


def test_a_rare_ending_is_told_of_before(tell: Pipeline, monkeypatch: pytest.MonkeyPatch):
    """It stands in the story before its last sentence more often than without the care for it."""
    wishes = [{"start": "Once upon a time", "end": end} for end in ("pocket", "treasure", "carrots", "kite") * 3]

    def told_of() -> int:
        stories = StoryGenerationPipeline(model=tell.model, tokenizer=tell.tokenizer)(wishes, max_words=120, seed=0)
        texts = [story["story"] for story in stories]
        assert all(ends_with(text, wish["end"]) for text, wish in zip(texts, wishes, strict=True))
        return sum(includes(BOUNDARY.split(text)[0] + " ".join(BOUNDARY.split(text)[1:-1]), wish["end"])
                   for text, wish in zip(texts, wishes, strict=True))  # fmt: skip

    with_care = told_of()
    monkeypatch.setattr(generation_tiny_story, "PLANT_TRIES", 0)
    assert with_care > told_of()


@pytest.mark.parametrize("start", ["Why", '"Stop', "Nobody", 'He said "yes', "One day"])
def test_quotation_marks_are_opened_and_closed(tell: Pipeline, start: str):
    """Also at a temperature at which the model forgets them."""
    for story in tell(start, num_stories=6, max_words=100, temperature=1.3, seed=0):
        text = story["story"]
        assert quotes_after(text[: len(start)], text[len(start) :]) in (False, story["num_words"] > 90)


def test_a_story_without_an_ending_stops_after_a_whole_sentence(tell: Pipeline):
    stories = tell(["One day", "The little girl", "Tom and", "She"] * 12, max_words=45, seed=0)
    cut_off = [story for story in stories if story["finish_reason"] == "length"]
    assert len(cut_off) >= 8 and all(story["num_words"] > 30 for story in cut_off)
    assert sum(closes_sentence(story["story"]) for story in cut_off) >= 0.75 * len(cut_off)


def test_a_story_is_continued_to_a_new_ending(tell: Pipeline):
    first = tell("The fox", end="park", max_words=40, seed=5)
    second = tell(continue_from=first["story"], end="moon", max_words=80, seed=6)
    assert second["story"].startswith(first["story"]) and len(second["story"]) > len(first["story"]) + 10
    assert ends_with(second["story"], "moon") and second["num_words"] <= 80
    pieces = list(tell.stream(continue_from=first["story"], end="moon", max_words=80, seed=6))
    assert "".join(pieces) == second["story"]


def test_every_precision_keeps_the_contract(tell: Pipeline):
    for precision in ("full", "int8", "auto"):
        batch = tell(["She", "The old dragon"], end="home", max_words=30, seed=3, precision=precision)
        alone = tell("The old dragon", end="home", max_words=30, seed=4, precision=precision)
        # Full precision's logits differ in their last bits between a batch and a single row.
        told, alone_too = ([result.pop(name) for name in ("log_probability", "score")] for result in (batch[1], alone))
        assert batch[1] == alone and ends_with(alone["story"], "home")
        assert told == pytest.approx(alone_too, abs=1e-4)


@pytest.mark.parametrize("precision", ["full", "int8", "auto"])
def test_torchs_defaults_change_no_story(tell: Pipeline, precision: str):
    wishes = {"end": "home", "max_words": 30, "seed": 3, "precision": precision, "details": True}
    told = tell("She", **wishes)
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            assert tell("She", **wishes) == told
        finally:
            torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert tell("She", **wishes) == told


def test_a_model_of_another_kind_is_refused(tell: Pipeline):
    config = GPT2Config(vocab_size=5000, n_embd=16, n_layer=1, n_head=2)
    for other in (GPT2LMHeadModel(config), tell.model.model):
        mine = StoryGenerationPipeline(model=other, tokenizer=tell.tokenizer)
        with pytest.raises(ValueError, match=f"told by a TinyStoryForCausalLM, .* not by a {type(other).__name__}"):
            mine("She")


def test_the_guard_against_loops_breaks_them(tell: Pipeline):
    def repeats(text: str, length: int) -> int:
        """How many runs of so many words stand twice."""
        words = bare_words(text)
        runs = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
        return len(runs) - len(set(runs))

    starts = ["Once upon a time", "The dragon", "Ben and Mia", "One day"]
    strict, free = (
        [story["story"] for story in tell(starts, max_words=150, temperature=0, dry_multiplier=value, seed=0)]
        for value in (50.0, 0.0)
    )
    # A repeat of DRY_ALLOWED + 1 tokens costs 50 nats: hardly more words than that can stand twice.
    assert sum(repeats(text, DRY_ALLOWED + 2) for text in strict) == 0
    assert sum(repeats(text, DRY_ALLOWED + 2) for text in free) > 0


def test_a_closing_whose_leads_are_cut_short(tell: Pipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(closing_tiny_story, "LEAD_TOKENS", 3)
    requests = [StoryRequest("The cat", end="garden", max_words=25, seed=seed) for seed in range(4)]
    stories = {i: story for i, _, story in write_stories(tell.model, tell.tokenizer, requests)}
    assert all(ends_with(story.text, "garden") and count_words(story.text) <= 25 for story in stories.values())


def test_greedy_keeps_the_contract_too(tell: Pipeline):
    results = tell(["The cat", "Tom and Sue"], end="sleep", max_words=50, temperature=0)
    assert all(ends_with(r["story"], "sleep") and r["num_words"] <= 50 for r in results)
    assert [r["story"] for r in tell(["The cat", "Tom and Sue"], end="sleep", max_words=50, temperature=0, seed=9)] == [
        r["story"] for r in results
    ]


def test_batch_equals_single_and_seed_repeats(tell: Pipeline):
    starts = ["She", "The old dragon of the north", "One day, Ben"]
    batch = tell(starts, end="home", max_words=45, num_stories=2, seed=11)
    seeds = [story["seed"] for stories in batch for story in stories]
    assert seeds == [11, 12, 13, 14, 15, 16]
    for start, stories in zip(starts, batch, strict=True):
        for story in stories:
            assert tell(start, end="home", max_words=45, seed=story["seed"]) == story
    assert batch[0][0]["story"] != batch[0][1]["story"]


def test_stream_gives_the_story_of_the_call(tell: Pipeline):
    wishes = {"end": "friends", "max_words": 40, "seed": 3}
    pieces = list(tell.stream("Once", **wishes))
    expected = tell("Once", **wishes)
    assert pieces[0] == "Once" and len(pieces) > 5
    assert "".join(pieces) == expected["story"]
    *told, last = tell.stream_story("Once", batch_size=4, num_workers=0, details=True, **wishes)
    assert told == pieces and last == tell("Once", batch_size=4, num_workers=0, details=True, **wishes)


def test_a_drawn_seed_is_reported(tell: Pipeline):
    first = tell("A fox", max_words=25)
    assert tell("A fox", max_words=25, seed=first["seed"]) == first


@pytest.mark.parametrize("end", [None, "</sos>"])
def test_without_an_ending_the_model_ends_or_the_limit_comes(tell: Pipeline, end: str | None):
    results = tell("Once upon a time", end=end, max_words=150, num_stories=6, seed=0)
    assert {r["finish_reason"] for r in results} <= {"eos", "length"}
    for result in results:
        assert result["end"] is None and "<" not in result["story"]
        assert result["num_words"] <= 150
        assert result["finish_reason"] == "eos" or result["num_words"] >= 150 - SENTENCE_WORDS
    assert tell("Once upon a time", end=end, max_words=9, seed=1)["num_words"] == 9


def test_stop_at_first_stops_where_the_word_is_first_written(tell: Pipeline):
    for result in tell("The cat", end="was", max_words=60, stop_at_first=True, num_stories=4, seed=2):
        words = bare_words(result["story"])
        if result["finish_reason"] == "ending":
            assert words[-1] == "was" and "was" not in words[2:-1]
        else:
            assert "was" not in words[2:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": "  "}, "start must hold"),
        ({"start": "She", "end": "..."}, "end must hold at least one word"),
        ({"start": "She", "end": 5}, "end must be"),
        ({"start": "She", "max_words": 0}, "max_words must be"),
        ({"start": "She", "max_words": 2.5}, "max_words must be"),
        ({"start": "One two three", "end": "four", "max_words": 3}, "alone need 4"),
        ({"start": "She", "temperature": -1}, "temperature"),
        ({"start": "She", "stop_at_first": "no"}, "stop_at_first must be True or False, got 'no'"),
        ({"start": "She", "details": "False"}, "details must be True or False, got 'False'"),
        ({"start": "She", "top_p": 0}, "top_p"),
        ({"start": "She", "num_stories": 0}, "num_stories"),
        ({"start": "She", "seed": "x"}, "seed"),
        ({"start": "She", "colour": "red"}, "unknown argument 'colour'"),
        ({"start": "She", "include": "dragon"}, "include must be a list"),
        ({"start": "She", "include": ["a", "b", "c", "d"]}, "include takes up to 3 words"),
        ({"start": "She", "include": ["..."]}, "include takes up to 3 words"),
        ({"start": "She", "include": ["cat", "dog"], "end": "home", "max_words": 3}, "alone need 4"),
        ({"start": "She", "length": "huge"}, "length must be one of"),
        ({"start": "She", "num_candidates": 0}, "num_candidates"),
        ({"start": "She", "precision": "int3"}, "precision must be"),
        ({"start": "She", "dry_multiplier": -1}, "dry_multiplier"),
        ({"start": "She", "continue_from": "He ran."}, "either start or continue_from"),
        ({}, "either start or continue_from"),
        ({"start": "word " * 2000, "max_words": 5000}, "room for"),
        ({"start": []}, "empty list"),
    ],
)
def test_what_cannot_be_done_is_said(tell: Pipeline, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tell(**arguments)


def test_stream_complains_before_its_first_piece(tell: Pipeline):
    with pytest.raises(ValueError, match="one story"):
        tell.stream("She", num_stories=2)


def test_typed_special_tokens_stay_text(tell: Pipeline):
    result = tell("<sos> </sos> <pad>", end="home", max_words=30, seed=0)
    assert result["story"].startswith("<sos> </sos> <pad>")


@pytest.mark.parametrize(
    ("text", "word", "there"),
    [
        ("Two dragons flew.", "dragon", True), ("The dragon's cave.", "Dragon", True), ("He danced.", "dance", True),
        ("She was dancing!", "dance", True), ("They cried.", "cry", True), ("The dragonfly.", "dragon", False),
        ("An ice cream, please.", "ice cream", True), ("Ice, then cream.", "ice cream", False),
        ("He cares.", "car", False), ("She catches it.", "catch", True),
    ],
)  # fmt: skip
def test_what_counts_as_included(text: str, word: str, there: bool):
    assert includes(text, word) == there


@pytest.mark.parametrize(
    ("text", "ending", "is_end", "is_closed"),
    [
        ("They were happy.", "happy", True, True),
        ('"I am happy!"', "Happy", True, True),
        ('She said, "I am happy.', "happy", True, False),
        ("They were unhappy.", "happy", False, True),
        ("happy they were", "happy", False, False),
        ("She ate ice cream.", "ice cream", True, True),
        ("It was Lily's.", "lily's", True, True),
    ],
)
def test_what_counts_as_an_ending(text: str, ending: str, is_end: bool, is_closed: bool):
    assert ends_with(text, ending) == is_end
    assert closes_sentence(text) == is_closed


def test_request_keeps_the_readers_words():
    request = StoryRequest("  the   cat ", end="  ice   cream ")
    assert request.start == "The   cat" and request.end == "ice cream"

"""The story contract, through the pipeline and the trained model of this clone."""

import pytest
from transformers import Pipeline

from modeling import generation_tiny_story
from modeling.request_tiny_story import StoryRequest, bare_words, closes_sentence, count_words, ends_with

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
    assert set(result) == {"story", "start", "end", "finish_reason", "num_words", "num_tokens", "seed"}


def test_a_search_whose_continuations_are_cut_short(tell: Pipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generation_tiny_story, "CANDIDATE_TOKENS", 3)
    requests = [StoryRequest("The cat", end="garden", max_words=25, seed=seed) for seed in range(4)]
    stories = {i: story for i, _, story in generation_tiny_story.write_stories(tell.model, tell.tokenizer, requests)}
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
    *told, last = tell.stream_story("Once", **wishes)
    assert told == pieces and last == expected


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
        assert (result["num_words"] == 150) == (result["finish_reason"] == "length") or result["num_words"] == 150
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
        ({"start": "She", "top_p": 0}, "top_p"),
        ({"start": "She", "num_stories": 0}, "num_stories"),
        ({"start": "She", "seed": "x"}, "seed"),
        ({"start": "She", "colour": "red"}, "unknown argument 'colour'"),
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

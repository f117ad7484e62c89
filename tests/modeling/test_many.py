"""Many stories in one call: lists, generators and data sets in, with wishes of each story's own, batch by batch."""

import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset
from transformers import Pipeline
from transformers.pipelines.pt_utils import KeyDataset

ROWS: list[dict[str, Any]] = [
    {"start": "She", "end": "happy"},
    {"start": "He", "end": "home", "max_words": 60},
    {"start": "The old dragon", "end": "ice cream", "include": ["volcano"], "temperature": 0.5},
    {"start": "One day", "seed": 40},
    {"continue_from": "Ben had a red ball. He", "end": "park", "length": "short"},
]
CALL: dict[str, Any] = {"max_words": 30, "seed": 5}
STARTS = [row["start"] for row in ROWS[:4]]


@pytest.fixture(scope="module")
def alone(tell: Pipeline) -> list[dict[str, Any]]:
    """Each story by itself, its wishes as arguments."""
    return [tell(**{**CALL, "seed": CALL["seed"] + number, **row}) for number, row in enumerate(ROWS)]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5, np.int64(4)])
def test_a_story_is_the_same_alone_and_in_any_batch(tell: Pipeline, alone: list, batch_size: Any):
    assert tell(ROWS, batch_size=batch_size, **CALL) == alone
    assert tell(tuple(ROWS), batch_size=batch_size, **CALL) == alone
    assert list(tell((row for row in ROWS), batch_size=batch_size, **CALL)) == alone


def test_one_mapping_is_one_story(tell: Pipeline, alone: list):
    assert tell(ROWS[0], **CALL) == alone[0]
    *pieces, last = tell.stream_story(ROWS[0], **CALL)
    assert last == alone[0] and "".join(pieces) == last["story"]


SOURCES: dict[str, Callable[[], Any]] = {
    "generator": lambda: (start for start in STARTS),
    "column": lambda: Dataset.from_dict({"start": STARTS})["start"],
    "data set": lambda: Dataset.from_dict({"start": STARTS}),
    "streamed data set": lambda: Dataset.from_dict({"start": STARTS}).to_iterable_dataset(),
    "KeyDataset": lambda: KeyDataset(Dataset.from_dict({"text": STARTS}), "text"),
    "series": lambda: pandas.Series(STARTS),
    "array": lambda: np.array(STARTS),
}


@pytest.fixture(scope="module")
def all_at_once(tell: Pipeline) -> list[dict[str, Any]]:
    return tell(STARTS, end="home", **CALL)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_what_comes_one_by_one_is_told_one_by_one(
    tell: Pipeline, all_at_once: list, source: str, batch_size: int | None
):
    told = tell(SOURCES[source](), end="home", batch_size=batch_size, **CALL)
    assert isinstance(told, types.GeneratorType)
    assert list(told) == all_at_once


def test_rows_of_data_sets_and_frames_may_leave_wishes_out(tell: Pipeline, alone: list):
    data = Dataset.from_list([{**ROWS[0], "max_words": None}, ROWS[1]])
    assert list(tell(data, **CALL)) == alone[:2]
    frame = pandas.DataFrame(ROWS[:2])
    assert frame["max_words"].tolist()[1] == 60.0 and frame["max_words"].isna()[0]
    assert tell(frame, **CALL) == alone[:2]


def test_a_source_is_read_no_further_than_it_is_told(tell: Pipeline):
    read: list[str] = []

    def starts() -> Iterator[str]:
        for start in STARTS:
            read.append(start)
            yield start

    told = tell(starts(), num_stories=2, **CALL)
    assert read == []
    for number, stories in enumerate(told, start=1):
        assert len(read) == number and [story["seed"] for story in stories] == [3 + 2 * number, 4 + 2 * number]
    read.clear()
    told = tell(starts(), batch_size=2, **CALL)
    next(told)
    assert len(read) == 2


def test_stories_and_candidates_of_many_starts_part_between_batches(tell: Pipeline):
    wishes = {"num_stories": 2, "num_candidates": 3, **CALL, "max_words": 15}
    whole = tell(STARTS[:2], **wishes)
    assert [len(stories) for stories in whole] == [2, 2]
    assert tell(STARTS[:2], batch_size=5, **wishes) == whole
    assert list(tell(iter(STARTS[:2]), batch_size=4, **wishes)) == whole
    assert whole[1] == tell(STARTS[1], **wishes | {"seed": CALL["seed"] + 2})


def test_batches_hold_as_many_stories_as_asked_for(tell: Pipeline, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    forward = tell.forward

    def counted(requests: list, **kwargs: Any) -> Any:
        sizes.append(len(requests))
        return forward(requests, **kwargs)

    monkeypatch.setattr(tell, "forward", counted)
    tell(["She"] * 18, max_words=5)
    tell(["She"] * 5, max_words=5, batch_size=2)
    assert sizes == [16, 2, 2, 2, 1]


INTEGERS = [np.int64(20), np.uint8(20), torch.tensor(20), np.array(20)]


@pytest.mark.parametrize("twenty", INTEGERS)
def test_numbers_of_numpy_and_torch_are_numbers(tell: Pipeline, twenty: Any):
    expected = tell("She", end="home", max_words=20, seed=20, temperature=0.5, num_stories=2, num_candidates=2)
    two, half = type(twenty)(2) if isinstance(twenty, np.generic) else twenty // 10, np.float32(0.5)
    temperature = torch.tensor(0.5) if isinstance(twenty, torch.Tensor) else half
    assert expected == tell(
        "She", end="home", max_words=twenty, seed=twenty, temperature=temperature, num_stories=two, num_candidates=two
    )


def test_what_data_sets_make_of_wishes(tell: Pipeline):
    expected = tell({"start": "She", "end": "home"}, max_words=20, seed=20)
    for gap in (None, float("nan"), np.float32("nan"), torch.tensor(float("nan")), pandas.NA, pandas.NaT):
        assert tell({"start": "She", "end": "home", "length": gap}, max_words=20, seed=20) == expected
    for twenty in (20.0, np.float32(20), torch.tensor(20.0)):
        assert tell("She", end="home", max_words=twenty, seed=20, stop_at_first=np.bool_(False)) == expected
    frame = pandas.DataFrame({"start": ["She", "He"], "end": ["home", "moon"]})
    assert tell(frame.iloc[0], max_words=20, seed=20) == expected
    rows = (row for _, row in frame.iterrows())
    assert list(tell(rows, max_words=20, seed=20)) == tell(frame, max_words=20, seed=20)
    assert tell(frame["start"], max_words=20, seed=20) is not None


@pytest.mark.parametrize(
    ("inputs", "wishes", "message"),
    [
        (["She", "  "], {}, r"story 1 \(counted from 0\): start must hold"),
        ([{"start": "She"}, {"start": "He", "colour": "red"}], {}, "story 1 .*: unknown wish 'colour'"),
        ([{"start": "She", "num_stories": 2}], {}, "unknown wish 'num_stories'"),
        ([{"end": "home"}], {}, "either start or continue_from"),
        ([{"start": "She", "max_words": 2.5}], {}, "max_words must be a whole number of at least 1, got 2.5"),
        ([{"start": "She", "seed": -1}], {}, "seed must be a whole number of at least 0, got -1"),
        (["She", "word " * 2000], {"max_words": 5000}, "story 1 .*: the start has .* room for"),
        (["She"], {"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        (["She", 5], {}, "story 1 .*: start must hold at least one word, got 5"),
        (5, {}, "start must hold at least one word, got 5"),
        ("She", {"temperature": "warm"}, "temperature must be a number, got 'warm'"),
        ("She", {"top_p": float("nan")}, "top_p"),
        ("She", {"max_words": torch.tensor([20, 30])}, "max_words must be a whole number"),
        ("She", {"max_words": True}, "max_words must be a whole number"),
        ("She", {"include": {"dragon": 1}}, "include must be a list"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_story(
    tell: Pipeline, monkeypatch: pytest.MonkeyPatch, inputs: Any, wishes: dict, message: str
):
    monkeypatch.setattr(tell, "forward", None)
    with pytest.raises(ValueError, match=message):
        tell(inputs, **wishes)


def test_a_source_says_what_cannot_be_done_when_it_comes(tell: Pipeline):
    told = tell(iter(["She", ""]), **CALL)
    assert next(told)["story"].startswith("She")
    with pytest.raises(ValueError, match=r"story 1 \(counted from 0\): start must hold"):
        next(told)
    with pytest.raises(ValueError, match="unknown argument"):
        tell(iter(["She"]), colour="red")
    with pytest.raises(ValueError, match="one story"):
        tell.stream(ROWS)


def test_the_pipelines_own_arguments_hold_until_a_call_says_otherwise(tell: Pipeline):
    mine = type(tell)(model=tell.model, tokenizer=tell.tokenizer, end="home", max_words=20, seed=3, batch_size=2)
    assert mine("She") == tell("She", end="home", max_words=20, seed=3)
    assert mine(STARTS, end="moon") == tell(STARTS, end="moon", max_words=20, seed=3)

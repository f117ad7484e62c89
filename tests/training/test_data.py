"""From stories to packed rows: nothing lost, nothing scored twice."""

import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from training.data import (
    IGNORED,
    TrainingRows,
    best_fit,
    pack,
    tokenise,
)


def test_kinds_have_the_ends_they_should(tokenizer):
    kinds = ["story", "head", "tail", "middle"]
    documents = tokenise(Dataset.from_dict({"text": ["A cat."] * 4, "kind": kinds}), tokenizer)["input_ids"]
    body = tokenizer("A cat.", add_special_tokens=False)["input_ids"]
    assert list(documents) == [[1, *body, 2], [1, *body], [*body, 2], body]


@given(st.lists(st.integers(1, 50), max_size=60))
def test_best_fit_places_each_document_once(lengths: list[int]):
    rows = best_fit(lengths, 50)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 50 for row in rows)
    assert len(rows) <= max(1, 2 * sum(lengths) / 50 + 1)


def test_packing_keeps_every_token_and_scores_each_once(tokenizer):
    documents = [[1, *range(20, 20 + n), 2] for n in (5, 30, 60, 3, 17, 44)]
    documents_set = Dataset.from_dict({"input_ids": documents, "prefix_length": [0] * len(documents)})
    rows = pack(documents_set, 32, tokenizer.pad_token_id)
    batch = {name: torch.tensor(values) for name, values in rows[:].items()}
    assert batch["input_ids"].shape[1] == 32
    real = batch["input_ids"] != tokenizer.pad_token_id
    assert sorted(batch["input_ids"][real].tolist()) == sorted(token for d in documents for token in d)
    starts = real & (torch.roll(batch["position_ids"], 1, 1) + 1 != batch["position_ids"])
    starts[:, 0] = real[:, 0]
    assert (batch["labels"] != IGNORED).sum() == real.sum() - starts.sum()
    assert (batch["labels"][starts] == IGNORED).all()
    # A document longer than a row goes on in the next one at its true position.
    assert batch["position_ids"].max() == 61


def test_a_control_prefix_is_read_but_not_scored(tokenizer):
    # A prefix of 4 tokens before <sos>; the second document is longer than a row.
    documents = [[3, 30, 31, 7, 1, 40, 41, 2], [3, 50, 1, *range(60, 80), 2]]
    rows = pack(Dataset.from_dict({"input_ids": documents, "prefix_length": [4, 2]}), 12, tokenizer.pad_token_id)
    scored = sorted(label for row in rows["labels"] for label in row if label != IGNORED)
    # All of the story but its <sos>; of a piece that goes on in another row, all but its first token.
    assert scored == sorted([40, 41, 2, *range(60, 69), *range(70, 80), 2])
    first = rows["input_ids"][[len(set(row) & {30}) for row in rows["input_ids"]].index(1)]
    assert first[:8] == documents[0]


def test_every_pass_goes_through_all_rows(tokenizer, stories: list[str]):
    dataset = Dataset.from_dict({"text": stories * 5, "kind": ["story"] * len(stories) * 5})
    rows = TrainingRows(dataset, tokenizer, row_length=96, seed=3)
    count = rows.num_rows
    seen = [tuple(rows.batch(step, 1)["input_ids"][0].tolist()) for step in range(2 * count)]
    assert sorted(seen[:count]) == sorted(seen[count:]) and seen[:count] != seen[count:]
    again = TrainingRows(dataset, tokenizer, row_length=96, seed=3)
    assert [tuple(row) for row in again.batch(1, 4)["input_ids"].tolist()] == seen[4:8]
    halves = [again.batch(1, 4, rank, 2)["input_ids"].tolist() for rank in range(2)]
    assert [tuple(row) for pair in zip(*halves, strict=True) for row in pair] == seen[4:8]


def test_wishes_are_drawn_anew_in_each_pass_and_again_on_resume(tokenizer, stories: list[str]):
    dataset = Dataset.from_dict({"text": stories, "kind": ["story"] * len(stories)})
    rows = TrainingRows(dataset, tokenizer, row_length=512, wishes_share=1.0, seed=3)
    passes = [rows.batch(step, rows.num_rows)["input_ids"].tolist() for step in range(3)]
    assert sorted(passes[0]) != sorted(passes[1])
    assert TrainingRows(dataset, tokenizer, 512, 1.0, seed=3).batch(2, rows.num_rows)["input_ids"].tolist() == passes[2]


def test_whole_stories_end_where_they_end(tokenizer, stories: list[str]):
    dataset = Dataset.from_dict({"text": stories, "kind": ["story"] * len(stories)})
    ends = {tuple(tokenizer(text, add_special_tokens=False)["input_ids"][-5:]) for text in stories}
    counts: dict[bool, int] = {}
    for whole in (False, True):
        told = tokenise(dataset, tokenizer, 1.0, "3", whole)
        counts[whole] = len(told)
        at_their_end = [tuple(ids[-6:-1]) in ends for ids in told["input_ids"]]
        assert all(at_their_end) == whole
    assert counts[True] == len(stories) < counts[False]

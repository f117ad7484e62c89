"""From files to packed rows: nothing lost, nothing doubled, nothing of validation in training."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import STORIES_FILE
from training.data import (
    IGNORED,
    best_fit,
    collate,
    load_stories,
    normalise_story,
    pack,
    rows_of_step,
    tokenise,
    without_stories,
)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  One.\n\n\nTwo. \r\n Three.  ", "One.\nTwo.\nThree."),
        ("She said, â€œCome!â€\n\nItâ€™s late.", 'She said, "Come!"\nIt\'s late.'),
        ("â€œNow!â€ he said.", '"Now!" he said.'),
        ("“Yes,”  said\tTom’s dog.", '"Yes," said Tom\'s dog.'),
        ("A café – closed.", "A café – closed."),
    ],
)
def test_normalisation(raw: str, clean: str):
    assert normalise_story(raw) == clean
    assert normalise_story(clean) == clean


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".txt"])
def test_formats_give_the_same_stories(tmp_path: Path, stories: list[str], suffix: str):
    path = tmp_path / f"stories{suffix}"
    if suffix == ".parquet":
        Dataset.from_dict({"text": stories}).to_parquet(path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": s}) + "\n" for s in stories))
    else:
        path.write_text("\n<|endoftext|>\n".join(stories) + "\n<|endoftext|>\n")
    assert load_stories([str(path)], "train")["text"] == stories


def test_duplicates_and_validation_stories_are_left_out(tmp_path: Path, stories: list[str]):
    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    doubled = [*stories, stories[0].replace("\n", "\n\n"), f" {stories[3]} ", ""]
    train.write_text("".join(json.dumps({"text": s}) + "\n" for s in doubled))
    validation.write_text("".join(json.dumps({"text": s}) + "\n" for s in stories[:4]))
    loaded = load_stories([str(train)], "train")
    assert loaded["text"] == stories
    clean = without_stories(loaded, load_stories([str(validation)], "validation"))
    assert clean["text"] == stories[4:]


def test_bad_files_are_named(tmp_path: Path):
    cases = {
        "missing.parquet": (None, "no such file"), "empty.jsonl": (b"", "empty"),
        "broken.parquet": (b"not parquet", "not a readable"), "columns.jsonl": (b'{"story": "x"}\n', "no column"),
        "blank.jsonl": (b'{"text": "  "}\n', "no stories"), "kind.jsonl": (b'{"text": "x", "kind": "odd"}\n', "odd"),
        "stories.csv": (b"text\nx\n", "expected a file ending in"),
    }  # fmt: skip
    for name, (content, message) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            load_stories([str(path)], "train")
        assert name in str(error.value)


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
    rows = pack(Dataset.from_dict({"input_ids": documents}), 32, tokenizer.pad_token_id)
    batch = collate(rows[:], tokenizer.pad_token_id)
    assert batch["input_ids"].shape[1] == 32
    real = batch["input_ids"] != tokenizer.pad_token_id
    assert sorted(batch["input_ids"][real].tolist()) == sorted(token for d in documents for token in d)
    starts = real & (torch.roll(batch["position_ids"], 1, 1) + 1 != batch["position_ids"])
    starts[:, 0] = real[:, 0]
    assert (batch["labels"] != IGNORED).sum() == real.sum() - starts.sum()
    assert (batch["labels"][starts] == IGNORED).all()
    # A document longer than a row goes on in the next one at its true position.
    assert batch["position_ids"].max() == 61


def test_rows_of_step_go_through_all_rows_in_every_pass():
    seen = [row for step in range(10) for row in rows_of_step(step, 25, 5, seed=3)]
    assert sorted(seen[:25]) == sorted(seen[25:]) == list(range(25))
    assert seen[:25] != seen[25:]
    assert rows_of_step(7, 25, 5, seed=3) == seen[35:40]
    assert rows_of_step(0, 25, 5, seed=4) != seen[:5]


def test_own_stories_are_whole(stories: list[str]):
    assert load_stories([str(STORIES_FILE)], "train")["text"] == stories

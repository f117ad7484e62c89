"""Streamed rows: the same stories as the stored ones, parted between processes, taken up again where they stopped."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.conftest import STORIES_FILE
from tests.training.test_train import losses, train_here
from training.checkpoint import list_checkpoints, load_state
from training.data import TrainingRows
from training.sources import load_stories, normalise_story
from training.streaming import StreamedRows


@pytest.fixture
def many(tmp_path: Path, stories: list[str]) -> Path:
    """2,100 different stories: three chunks, the last one short."""
    path = tmp_path / "many.jsonl"
    lines = (json.dumps({"text": f"{stories[n % len(stories)]} The number was {n}."}) for n in range(2100))
    path.write_text("\n".join(lines))
    return path


def open_stream(path: Path, tokenizer: PreTrainedTokenizerFast, rank: int = 0, of: int = 1, **changes) -> StreamedRows:
    options = {"row_length": 128, "wishes_share": 0.0, "seed": 3, "held_out": []} | changes
    return StreamedRows([str(path)], tokenizer, rank=rank, num_processes=of, **options)


def documents(batches: list[dict[str, torch.Tensor]], eos: int, bos: int) -> set[tuple[int, ...]]:
    """The whole stories in some rows."""
    found: set[tuple[int, ...]] = set()
    for batch in batches:
        for row in batch["input_ids"].tolist():
            while bos in row and eos in row:
                row = row[row.index(bos) :]
                if eos in row:
                    found.add(tuple(row[: row.index(eos) + 1]))
                    row = row[row.index(eos) :]
    return found


def test_a_stream_holds_what_the_stored_data_hold(many: Path, tokenizer):
    stored = TrainingRows(load_stories([str(many)], "train"), tokenizer, 128)
    streamed = open_stream(many, tokenizer)
    ids = (tokenizer.eos_token_id, tokenizer.bos_token_id)
    steps = stored.num_rows // 4
    ours = documents([streamed.batch(step, 4) for step in range(steps)], *ids)
    theirs = documents([stored.batch(step, 4) for step in range(steps)], *ids)
    assert streamed.pass_number == 0 and len(theirs) > 1000
    assert len(ours & theirs) > 0.98 * len(theirs)  # the last rows of one may not be reached by the other


@pytest.mark.parametrize("steps", [1, 7, 150, 400])
@pytest.mark.parametrize("wishes_share", [0.0, 0.5])
def test_a_stream_goes_on_where_it_stopped(many: Path, tokenizer, steps: int, wishes_share: float):
    straight = open_stream(many, tokenizer, wishes_share=wishes_share)
    for step in range(steps):
        straight.batch(step, 8)
    state = json.loads(json.dumps(straight.state_dict()))
    again = open_stream(many, tokenizer, wishes_share=wishes_share)
    again.load_state_dict(state)
    for step in range(steps, steps + 120):
        ours, theirs = again.batch(step, 8), straight.batch(step, 8)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert straight.pass_number > 0 or steps < 150


def test_processes_share_the_stream(many: Path, tokenizer):
    ids = (tokenizer.eos_token_id, tokenizer.bos_token_id)
    parts = [open_stream(many, tokenizer, rank, of=2) for rank in range(2)]
    seen = [documents([part.batch(step, 8, 0, 2) for step in range(60)], *ids) for part in parts]
    assert min(map(len, seen)) > 50 and not seen[0] & seen[1]


def test_held_out_stories_are_not_streamed(tmp_path: Path, tokenizer, stories: list[str]):
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in stories))
    held_out = normalise_story(stories[0])
    stream = open_stream(path, tokenizer, row_length=512, held_out=[held_out])
    told = tokenizer.batch_decode(stream.batch(0, 4)["input_ids"])
    assert held_out[:60] not in " ".join(told)
    with pytest.raises(ValueError, match="no stories to train on"):
        open_stream(path, tokenizer, held_out=[normalise_story(text) for text in stories]).batch(0, 1)


def test_what_cannot_be_streamed_is_refused(tmp_path: Path, tokenizer):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl: no such file"):
        open_stream(tmp_path / "nowhere.jsonl", tokenizer)
    path = tmp_path / "other.jsonl"
    path.write_text('{"words": "A hen."}\n')
    with pytest.raises(ValueError, match='no column "text"'):
        open_stream(path, tokenizer).batch(0, 1)
    path.write_text('{"text": "A hen.", "kind": "poem"}\n{"text": "A cow.", "kind": "tail"}\n')
    with pytest.raises(ValueError, match=r"column \"kind\" holds \['poem'\]"):
        open_stream(path, tokenizer).batch(0, 1)
    with pytest.raises(ValueError, match=r"not from \.txt"):
        path.with_suffix(".TXT").write_text("A hen.")
        open_stream(path.with_suffix(".TXT"), tokenizer)


def test_a_stream_reads_what_a_file_calls_its_stories(tmp_path: Path, tokenizer):
    plain, other = tmp_path / "plain.jsonl", tmp_path / "other.csv"
    plain.write_text('{"text": "A hen had a hat."}\n')
    other.write_text("kind,story\nfable,A hen had a hat.\n")
    ours, theirs = open_stream(plain, tokenizer), open_stream(other, tokenizer, text_column="story")
    assert torch.equal(ours.batch(0, 1)["input_ids"], theirs.batch(0, 1)["input_ids"])


def test_a_streamed_run_resumes_to_the_same_losses_and_on_the_same_files_only(tmp_path: Path):
    validation, data = tmp_path / "validation.jsonl", tmp_path / "data.jsonl"
    validation.write_text(json.dumps({"text": "A hen had a hat. It was red. The hen was glad."}) + "\n")
    data.write_bytes(STORIES_FILE.read_bytes())
    changes = {"validation_dataset": validation, "dataset": data, "streaming": True, "num_steps": 8}
    done = train_here(tmp_path / "run", **changes)
    assert done.returncode == 0, done.stderr
    straight = losses(tmp_path / "run")
    assert straight[-1] < straight[0] - 0.3
    newest = list_checkpoints(tmp_path / "run/checkpoints")[-1]
    assert load_state(newest)["streams"][0]["taken"] > 0
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    done = train_here(tmp_path / "run", **changes)
    assert done.returncode == 0 and "step_00000004" in done.stdout, done.stderr
    assert losses(tmp_path / "run") == straight
    data.write_bytes(data.read_bytes().replace(b"dog", b"cat"))
    done = train_here(tmp_path / "run", **changes)
    assert done.returncode == 2 and "began with other training stories" in done.stderr

"""Rows from a corpus that is read as it comes, never stored: for data larger than the disk.

Each process reads its share of the stream, in the order it comes: shuffle such a corpus once, where it is stored. A
thousand stories at a time are normalised, tokenised and packed as training/data.py does it, and their rows shuffled.
Where the stream stands goes into the checkpoint, so a resumed run sees the rows it would have seen.

What a stored data set does more: leave out stories that come twice.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import interleave_datasets
from datasets.distributed import split_dataset_by_node
from transformers import PreTrainedTokenizerFast

from training.data import pack_batch, tokenise_batch
from training.sources import digest, file_format, find_files, foreign_kinds, normalise_story, open_source

CHUNK = 1000  # stories that are packed and shuffled together


class StreamedRows:
    """Packed rows of a stream, for one process.

    Args:
        sources: Hub data set names, or local files but .txt; several are read in turns until all are empty.
        held_out: texts that must not be trained on.
    """

    def __init__(
        self,
        sources: list[str],
        tokenizer: PreTrainedTokenizerFast,
        row_length: int,
        wishes_share: float,
        seed: int,
        held_out: list[str],
        rank: int = 0,
        num_processes: int = 1,
        whole_stories: bool = False,
        closings_share: float = 0.0,
        text_column: str = "text",
    ):
        for source in sources:
            if any(file_format(Path(file)) == ".txt" for file in find_files(source)):
                raise ValueError(f"{source}: a stream is read from the Hub or from tables of stories, not from .txt")
        self.text_column = text_column
        self.sources, self.rank, self.num_processes = sources, rank, num_processes
        self.row_length, self.pad_token_id = row_length, tokenizer.pad_token_id
        self.encoding = {
            "backend": tokenizer.backend_tokenizer.to_str(), "bos": tokenizer.bos_token_id,
            "eos": tokenizer.eos_token_id, "wishes_share": wishes_share,
            "whole_stories": whole_stories, "closings_share": closings_share,
        }  # fmt: skip
        self.seed = f"{seed} {rank}"
        self.held_out = {digest(text) for text in held_out}
        self.pass_number, self.num_stories = 0, 0
        self.rows: list[dict[str, list[int]]] = []
        self.taken = 0
        self._open()
        self.before = self._state()  # where the stream stood before the rows at hand

    def batch(self, step: int, batch_rows: int, rank: int = 0, num_processes: int = 1) -> dict[str, torch.Tensor]:
        """The next rows of this process; as `TrainingRows.batch`, but each call goes on where the last one ended."""
        rows = [self._next() for _ in range(batch_rows // num_processes)]
        return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "position_ids", "labels")}

    def state_dict(self) -> dict[str, Any]:
        """Where in the stream the next row begins."""
        return {**self.before, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was."""
        self._open(state["stream"])
        self.pass_number, self.num_stories = state["pass_number"], state["num_stories"]
        self._fill()
        self.taken = state["taken"]

    def _open(self, state: dict[str, Any] | None = None) -> None:
        """A new stream for every pass: one that was set to a place begins there each time it is read."""
        streams = [open_source(source, "train", True, self.text_column) for source in self.sources]
        stream = streams[0] if len(streams) == 1 else interleave_datasets(streams, stopping_strategy="all_exhausted")
        self.stream = split_dataset_by_node(stream, self.rank, self.num_processes)
        if state is not None:
            self.stream.load_state_dict(state)
        self.stories: Iterator[dict[str, Any]] = iter(self.stream)

    def _state(self) -> dict[str, Any]:
        return {
            "stream": self.stream.state_dict(), "pass_number": self.pass_number, "num_stories": self.num_stories
        }  # fmt: skip

    def _next(self) -> dict[str, list[int]]:
        if self.taken == len(self.rows):
            self._fill()
        self.taken += 1
        return self.rows[self.taken - 1]

    def _fill(self) -> None:
        self.before, self.taken = self._state(), 0
        stories = self._read()
        if not stories:  # the stream is at its end: once more from its beginning
            if self.num_stories == 0:
                raise ValueError(f"no stories to train on in the stream of process {self.rank}")
            self.pass_number, self.num_stories = self.pass_number + 1, 0
            self._open()
            stories = self._read()
        columns = {name: [story[name] for story in stories] for name in ("text", "kind")}
        places = list(range(self.num_stories - len(stories), self.num_stories))
        documents = tokenise_batch(columns, places, seed=f"{self.seed} {self.pass_number}", **self.encoding)
        packed = pack_batch(documents, self.row_length, self.pad_token_id)
        self.rows = [dict(zip(packed, row, strict=True)) for row in zip(*packed.values(), strict=True)]
        random.Random(f"{self.seed} {self.pass_number} {self.num_stories}").shuffle(self.rows)

    def _read(self) -> list[dict[str, str]]:
        stories: list[dict[str, Any]] = []
        for story in self.stories:
            text = normalise_story(story["text"] or "")
            if text and digest(text) not in self.held_out:
                stories.append({"text": text, "kind": story.get("kind")})
            if len(stories) == CHUNK:
                break
        self.num_stories += len(stories)
        foreign = foreign_kinds(", ".join(self.sources), [story["kind"] for story in stories])
        return [story | {"kind": "story" if foreign else story["kind"] or "story"} for story in stories]

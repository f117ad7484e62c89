"""Passes over the stories on a device, packed anew by other processes while it trains on the one before.

`training/data.py` draws and packs; here its work is split into tasks, and what comes back lies on the device as a
whole, so a batch costs a GPU no waiting.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.data import IGNORED, pack_batch, tokenise_batch

DOCUMENTS_A_TASK = 4000
PASSES_AHEAD = 2

Shard = tuple[np.ndarray, np.ndarray, np.ndarray]  # ids, positions, scored: each (rows, row_length)


def pack_stories(texts: list[str], kinds: list[str], row_length: int, **options: Any) -> Shard:
    """Packed rows of some stories; `options` are those of `tokenise_batch`."""
    documents = tokenise_batch({"text": texts, "kind": kinds}, list(range(len(texts))), **options)
    rows = pack_batch(documents, row_length, pad_token_id=0)
    scored = np.array(rows["labels"]) != IGNORED
    return np.array(rows["input_ids"], np.int16), np.array(rows["position_ids"], np.int16), scored


@dataclass
class Rows:
    """Packed rows on a device."""

    input_ids: torch.Tensor  # (rows, row_length), int16
    position_ids: torch.Tensor  # (rows, row_length), int16
    scored: torch.Tensor  # (rows, row_length), whether the token is a target
    written: torch.Tensor  # (rows,), whether a model wrote the stories

    def batches(self, batch_rows: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        """Each row once, in an order of the seed's; what does not fill a last batch is left out."""
        order = torch.randperm(len(self.input_ids), generator=torch.Generator().manual_seed(seed))
        for rows in order.to(self.input_ids.device).split(batch_rows):
            if len(rows) == batch_rows:
                yield self.batch(rows)

    def batch(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Returns:
            `input_ids`, `position_ids` and `targets` (each place's next token, or `IGNORED`), each (rows, row_length),
            and `written`, (rows, 1).
        """
        input_ids = self.input_ids[rows].long()
        targets = torch.full_like(input_ids, IGNORED)
        targets[:, :-1] = input_ids[:, 1:].masked_fill(~self.scored[rows][:, 1:], IGNORED)
        positions = self.position_ids[rows].long()
        return dict(input_ids=input_ids, position_ids=positions, targets=targets, written=self.written[rows, None])


class Packer:
    """Packs stories in other processes, and passes over its own ones ahead of the one that is read.

    Args:
        options: `row_length`, and those of `tokenise_batch` but its seed.
    """

    def __init__(self, executor: ProcessPoolExecutor, texts: list[str], kinds: list[str], **options: Any):
        self.executor, self.texts, self.kinds, self.options = executor, texts, kinds, options
        self.passes: list[list[Future[Shard]]] = []
        self.count = 0  # passes begun

    def submit(self, texts: list[str], kinds: list[str], seed: str, **options: Any) -> list[Future[Shard]]:
        """Have some stories packed, with other options than the packer's where they are named."""
        starts = range(0, len(texts), DOCUMENTS_A_TASK)
        parts = [(start, slice(start, start + DOCUMENTS_A_TASK)) for start in starts]
        options = self.options | options
        return [
            self.executor.submit(pack_stories, texts[part], kinds[part], seed=f"{seed} {start}", **options)
            for start, part in parts
        ]

    def prepare(self) -> None:
        """Have the next passes packed."""
        while len(self.passes) < PASSES_AHEAD:
            self.passes.append(self.submit(self.texts, self.kinds, f"pass {self.count}"))
            self.count += 1

    def next(self, device: torch.device, written: list[str]) -> Rows:
        """The next pass, among its rows those of some stories that a model wrote."""
        more = self.submit(written, ["story"] * len(written), f"written {self.count}")
        self.prepare()
        futures = self.passes.pop(0)
        rows = on_device(futures + more, device)
        rows.written[sum(len(future.result()[0]) for future in futures) :] = True
        self.prepare()
        return rows


def on_device(futures: list[Future[Shard]], device: torch.device) -> Rows:
    """What other processes packed, as one."""
    columns = [np.concatenate(arrays) for arrays in zip(*(future.result() for future in futures), strict=True)]
    ids, positions, scored = (torch.from_numpy(column).to(device) for column in columns)
    return Rows(ids, positions, scored, torch.zeros(len(ids), dtype=torch.bool, device=device))

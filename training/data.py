"""Stories in, packed rows of tokens out.

stories (training/sources.py) -> tokenise, some with the wishes they would have met -> pack whole stories into rows.
`datasets` caches every step by its content, so a second run starts at once.
"""

import random
from bisect import bisect_left, insort
from functools import lru_cache

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from training.closings import CLOSE_ID, draw_closings
from training.wishes import draw_excerpt, draw_wishes

IGNORED = -100  # a label that is not scored


def tokenise(
    stories: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    wishes_share: float = 0.0,
    seed: str = "",
    whole_stories: bool = False,
    closings_share: float = 0.0,
    num_proc: int | None = None,
) -> Dataset:
    """Add `input_ids`, `<sos> text </sos>` without the token at an end that `kind` says was cut off, and
    `prefix_length`.

    Args:
        wishes_share: share of the stories that carry a control prefix before `<sos>`; above 0, each story also gives
            an excerpt with one (training/wishes.py).
        seed: with it, each story's wishes are drawn from its place in the data set alone.
        whole_stories: no excerpts, and no story with a prefix ends early.
        closings_share: share of the stories, and excerpts, with sentences written backwards (training/closings.py).
    """
    # The tokenizer travels as its JSON text: that is stable, so the cache recognises it.
    options = {"backend": tokenizer.backend_tokenizer.to_str(), "bos": tokenizer.bos_token_id}
    options |= {"eos": tokenizer.eos_token_id, "wishes_share": wishes_share, "seed": seed}
    options |= {"whole_stories": whole_stories, "closings_share": closings_share}
    return stories.map(
        tokenise_batch, batched=True, with_indices=True, fn_kwargs=options, remove_columns=["text", "kind"],
        num_proc=num_proc, desc="Tokenising",
    )  # fmt: skip


def tokenise_batch(
    batch: dict[str, list],
    indices: list[int],
    backend: str,
    bos: int,
    eos: int,
    wishes_share: float,
    seed: str,
    whole_stories: bool = False,
    closings_share: float = 0.0,
) -> dict[str, list]:
    """Stories to token ids, some with the wishes they would have met; runs in the workers of `datasets`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(backend)
    tokenizer.encode_special_tokens = True

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    rows, prefix_lengths = [], []
    for index, text, kind in zip(indices, batch["text"], batch["kind"], strict=True):
        rng = random.Random(f"{seed} {index}")
        drawn: list[tuple[str, list[int], str]] = [(kind, [], text)]
        if rng.random() < wishes_share:
            drawn = [(kind, *draw_wishes(text, kind, encode, rng, whole_stories))]
        if wishes_share and not whole_stories and (excerpt := draw_excerpt(text, encode, rng)):
            drawn.append(("story", *excerpt))
        for kind, prefix, text in drawn:
            start = [*prefix, bos] if prefix or kind in ("story", "head") else []
            end = [eos] if kind in ("story", "tail") else []
            turned = rng.random() < closings_share
            rows.append(start + (draw_closings(text, encode, end, rng) if turned else encode(text) + end))
            prefix_lengths.append(len(prefix))
    return {"input_ids": rows, "prefix_length": prefix_lengths}


def pack(documents: Dataset, row_length: int, pad_token_id: int) -> Dataset:
    """Pack whole documents into rows of `row_length` tokens, best fit first, in groups of 1,000 documents.

    A document longer than a row is cut; its later pieces keep their positions in the story, though not its context.

    Returns:
        A data set with `input_ids`, `position_ids` and `labels`, each (row_length,). Positions restart where a document
        starts, which is how the model keeps documents apart. Labels are the tokens themselves (the model shifts them);
        what must not be predicted from its left neighbour is `IGNORED`: a piece's first token, a control prefix and the
        `<sos>` after it, `<close>`, and the padding (`pad_token_id`) that fills a row up.
    """
    options = {"row_length": row_length, "pad_token_id": pad_token_id}
    return documents.map(
        pack_batch, batched=True, batch_size=1000, fn_kwargs=options, remove_columns=documents.column_names,
        desc="Packing",
    )  # fmt: skip


def best_fit(lengths: list[int], row_length: int) -> list[list[int]]:
    """Bin packing, best fit decreasing: indices of the documents of each row; none may be longer than a row."""
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(space, (lengths[index], -1))
        if at == len(space):
            rows.append([])
            left, row = row_length, len(rows) - 1
        else:
            left, row = space.pop(at)
        rows[row].append(index)
        insort(space, (left - lengths[index], row))
    return rows


def pack_batch(batch: dict[str, list], row_length: int, pad_token_id: int) -> dict[str, list]:
    """Pack tokenised stories into rows of one length, best fit; runs in the workers of `datasets`."""
    pieces = []  # (tokens, position of the first, leading tokens that are not scored)
    for ids, prefix_length in zip(batch["input_ids"], batch["prefix_length"], strict=True):
        for start in range(0, len(ids), row_length):
            piece = ids[start : start + row_length]
            pieces.append((piece, start, min(len(piece), max(prefix_length - start, 0) + 1)))
    packed: dict[str, list] = {"input_ids": [], "position_ids": [], "labels": []}
    for row in best_fit([len(ids) for ids, _, _ in pieces], row_length):
        input_ids: list[int] = []
        position_ids: list[int] = []
        labels: list[int] = []
        for ids, start, unscored in (pieces[index] for index in row):
            input_ids += ids
            position_ids += range(start, start + len(ids))
            labels += [IGNORED] * unscored + [IGNORED if token == CLOSE_ID else token for token in ids[unscored:]]
        padding = row_length - len(input_ids)
        packed["input_ids"].append(input_ids + [pad_token_id] * padding)
        packed["position_ids"].append(position_ids + list(range(padding)))
        packed["labels"].append(labels + [IGNORED] * padding)
    return packed


class TrainingRows:
    """The packed rows of every pass over some stories; with wishes or closings, each pass draws them anew.

    What an update trains on is a function of its number alone, so a resumed run needs no position in the data, nor
    does another number of processes see other batches.
    """

    def __init__(
        self,
        stories: Dataset,
        tokenizer: PreTrainedTokenizerFast,
        row_length: int,
        wishes_share: float = 0.0,
        seed: int = 0,
        whole_stories: bool = False,
        closings_share: float = 0.0,
    ):
        self.stories, self.tokenizer = stories, tokenizer
        self.row_length, self.seed = row_length, seed
        self.wishes_share, self.closings_share = wishes_share, closings_share
        self.is_drawn = bool(wishes_share or closings_share)
        self.whole_stories = whole_stories
        self._pass_number, self._rows = 0, self._pack(0)
        self.num_rows = len(self._rows)  # of each pass; what is drawn makes some passes a few rows longer or shorter

    def _pack(self, pass_number: int) -> Dataset:
        seed = f"{self.seed} {pass_number}" if self.is_drawn else ""
        documents = tokenise(
            self.stories, self.tokenizer, self.wishes_share, seed, self.whole_stories, self.closings_share
        )
        return pack(documents, self.row_length, self.tokenizer.pad_token_id)

    def batch(self, step: int, batch_rows: int, rank: int = 0, num_processes: int = 1) -> dict[str, torch.Tensor]:
        """The rows of an update for one process: a new permutation in every pass, one pass after the other.

        Returns:
            `input_ids`, `position_ids` and `labels`, each (batch_rows / num_processes, row_length).
        """
        columns: dict[str, list] = {"input_ids": [], "position_ids": [], "labels": []}
        for place in range(step * batch_rows + rank, (step + 1) * batch_rows, num_processes):
            pass_number, at = divmod(place, self.num_rows)
            if pass_number != self._pass_number:
                if self.is_drawn:
                    self._rows = self._pack(pass_number)
                self._pass_number = pass_number
            row = self._rows[_permutation(pass_number, len(self._rows), self.seed)[at % len(self._rows)]]
            for name, values in columns.items():
                values.append(row[name])
        return {name: torch.tensor(values) for name, values in columns.items()}


@lru_cache(maxsize=2)
def _permutation(pass_number: int, num_rows: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + pass_number)
    return torch.randperm(num_rows, generator=generator).tolist()

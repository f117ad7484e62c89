"""Stories in, packed rows of tokens out.

load (Hub or local file) -> normalise -> drop duplicates and validation stories -> tokenise -> pack whole stories into
rows. `datasets` caches every step by its content, so a second run starts at once.
"""

import hashlib
import re
from bisect import bisect_left, insort
from functools import lru_cache
from pathlib import Path

import ftfy
import torch
from datasets import Dataset, Features, Value, concatenate_datasets, load_dataset
from transformers import PreTrainedTokenizerFast

DEFAULT_DATASET = "roneneldan/TinyStories"
STORY_SEPARATOR = "<|endoftext|>"  # between the stories of the data set's own .txt files
IGNORED = -100  # a label that is not scored
KINDS = ("story", "head", "tail", "middle")
_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}


def normalise_story(text: str) -> str:
    r"""The one normalisation, for training, scoring and prompts alike.

    Mojibake is repaired and curly quotes are made straight (ftfy); blanks at line ends and runs of blanks become one
    blank; paragraphs, parted by "\n\n" in TinyStories V1 and by "\n" in V2, are parted by one "\n".
    """
    text = re.sub(r"â€(?=\s|$)", '"', text)  # a closing quote whose last byte was lost before the data was published
    text = ftfy.fix_text(text)
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(r" ?\n[\n ]*", "\n", text).strip()


def load_stories(sources: list[str], split: str) -> Dataset:
    """Load and normalise the stories of some sources, without empty ones and duplicates.

    Args:
        sources: Hub data set names, or local .parquet, .jsonl or .txt files (stories split on `<|endoftext|>`).
            A column `kind` (story, head, tail, middle) marks text without its beginning or end.
        split: "train" or "validation"; picks the split of a Hub data set and serves for messages.

    Returns:
        A data set with columns `text` and `kind`.

    Raises:
        FileNotFoundError, ValueError: a source is missing, empty or malformed; the message names it.
    """
    stories = concatenate_datasets([_load_source(source, split) for source in sources])
    stories = stories.map(_normalise_batch, batched=True, desc=f"Normalising {split}")
    return _without(stories, seen=set())


def without_stories(stories: Dataset, others: Dataset) -> Dataset:
    """The stories that are not word for word among `others`: keeps validation out of the training split."""
    return _without(stories, seen={_digest(text) for text in others["text"]})


def _load_source(source: str, split: str) -> Dataset:
    path = Path(source)
    if path.suffix not in _FORMATS:
        if path.exists():
            raise ValueError(f"{source}: expected a file ending in {', '.join(_FORMATS)}")
        stories = load_dataset(source, split=split)
    else:
        if not path.is_file():
            raise FileNotFoundError(f"{source}: no such file")
        if path.stat().st_size == 0:
            raise ValueError(f"{source}: the file is empty")
        options = {"sample_by": "document"} if path.suffix == ".txt" else {}
        try:
            stories = load_dataset(_FORMATS[path.suffix], data_files=str(path), split="train", **options)
        except Exception as error:  # datasets wraps what its readers raise in many types
            raise ValueError(f"{source}: not a readable {path.suffix} file ({error.__cause__ or error})") from error
    if "text" not in stories.column_names:
        raise ValueError(f'{source}: no column "text", found {stories.column_names}')
    if path.suffix == ".txt":
        stories = stories.map(_split_file, batched=True)
    if "kind" not in stories.column_names:
        stories = stories.add_column("kind", ["story"] * len(stories))
    stories = stories.select_columns(["text", "kind"]).cast(Features(text=Value("string"), kind=Value("string")))
    if not any(text and text.strip() for text in stories["text"]):
        raise ValueError(f"{source}: no stories in it")
    unknown = set(stories.unique("kind")) - set(KINDS)
    if unknown:
        raise ValueError(f'{source}: column "kind" holds {sorted(map(str, unknown))}, expected {KINDS}')
    return stories


def _split_file(batch: dict[str, list]) -> dict[str, list]:
    return {"text": [story for text in batch["text"] for story in text.split(STORY_SEPARATOR)]}


def _normalise_batch(batch: dict[str, list]) -> dict[str, list]:
    return {"text": [normalise_story(text or "") for text in batch["text"]]}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _without(stories: Dataset, seen: set[bytes]) -> Dataset:
    keep = []
    for index, text in enumerate(text for batch in stories.iter(1000) for text in batch["text"]):
        digest = _digest(text)
        if text and digest not in seen:
            seen.add(digest)
            keep.append(index)
    return stories.select(keep)


def tokenise(stories: Dataset, tokenizer: PreTrainedTokenizerFast, num_proc: int | None = None) -> Dataset:
    """Add `input_ids`: `<sos> text </sos>`, without the token at an end that `kind` says was cut off."""
    # The tokenizer travels as its JSON text: that is stable, so the cache recognises it.
    options = {"backend": tokenizer.backend_tokenizer.to_str(), "bos": tokenizer.bos_token_id}
    options["eos"] = tokenizer.eos_token_id
    return stories.map(
        _tokenise_batch, batched=True, fn_kwargs=options, remove_columns=["text", "kind"], num_proc=num_proc,
        desc="Tokenising",
    )  # fmt: skip


def _tokenise_batch(batch: dict[str, list], backend: str, bos: int, eos: int) -> dict[str, list]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(backend)
    tokenizer.encode_special_tokens = True
    rows = []
    encodings = tokenizer.encode_batch(batch["text"], add_special_tokens=False)
    for encoding, kind in zip(encodings, batch["kind"], strict=True):
        start = [bos] if kind in ("story", "head") else []
        end = [eos] if kind in ("story", "tail") else []
        rows.append(start + encoding.ids + end)
    return {"input_ids": rows}


def pack(documents: Dataset, row_length: int, pad_token_id: int) -> Dataset:
    """Pack whole documents into rows of `row_length` tokens, best fit first, in groups of 1,000 documents.

    A document longer than a row is cut; its later pieces keep their positions in the story, though not its context.

    Returns:
        A data set with `input_ids` and `position_ids`, both (row_length,): positions restart where a document starts,
        which is how the model keeps documents apart. Rows are filled up with `pad_token_id`.
    """
    options = {"row_length": row_length, "pad_token_id": pad_token_id}
    return documents.map(_pack_batch, batched=True, batch_size=1000, fn_kwargs=options, desc="Packing")


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


def _pack_batch(batch: dict[str, list], row_length: int, pad_token_id: int) -> dict[str, list]:
    pieces = [
        (ids[start : start + row_length], start)
        for ids in batch["input_ids"]
        for start in range(0, len(ids), row_length)
    ]
    packed: dict[str, list] = {"input_ids": [], "position_ids": []}
    for row in best_fit([len(ids) for ids, _ in pieces], row_length):
        input_ids = [token for index in row for token in pieces[index][0]]
        position_ids = [start + i for index in row for ids, start in [pieces[index]] for i in range(len(ids))]
        padding = row_length - len(input_ids)
        packed["input_ids"].append(input_ids + [pad_token_id] * padding)
        packed["position_ids"].append(position_ids + list(range(padding)))
    return packed


def collate(rows: dict[str, list[list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Packed rows to a batch: `input_ids`, `position_ids`, `labels`, each (batch, row_length).

    Labels are the tokens themselves (the model shifts them); what must not be predicted from its left neighbour, a
    document's first token and padding, is `IGNORED`.
    """
    input_ids, position_ids = torch.tensor(rows["input_ids"]), torch.tensor(rows["position_ids"])
    follows = torch.zeros_like(input_ids, dtype=torch.bool)  # continues its left neighbour's document
    follows[:, 1:] = position_ids[:, 1:] == position_ids[:, :-1] + 1
    labels = input_ids.masked_fill(~follows | (input_ids == pad_token_id), IGNORED)
    return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}


def rows_of_step(step: int, num_rows: int, batch_rows: int, seed: int) -> list[int]:
    """The rows an update trains on: a new permutation in every pass, one pass after the other.

    A function of the step alone, so a resumed run needs no position in the data, nor does another number of
    processes see other batches.
    """
    places = range(step * batch_rows, (step + 1) * batch_rows)
    return [_permutation(place // num_rows, num_rows, seed)[place % num_rows] for place in places]


@lru_cache(maxsize=2)
def _permutation(epoch: int, num_rows: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_rows, generator=generator).tolist()

"""The stories of a reading: who tells them, and what each writer is asked for.

A writer is a checkpoint with the options of a pipeline call, or stories made elsewhere; `load_writers` reads them from
a YAML file (training/configs/reading.yaml). Two writers that are asked for as much are asked for the same: wishes and
seeds come from the reading's seed alone. Real stories are a writer like the others.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from modeling.pipeline_tiny_story import StoryGenerationPipeline
from modeling.request_tiny_story import count_words
from training.checkpoint import load_pretrained
from training.endings import make_pairs

REAL = "real"
REAL_LEAST_WORDS = 60
COMMON_STARTS = (
    "Once upon a time", "One day", "There was a", "Lily", "Tom and", "The little", "She", "He", "A boy", "One sunny",
    "Tim was", "The dog", "Mom", "In a big forest", "It was a", "Sara and Ben", "The cat", "Max", "Mia loved", "They",
)  # fmt: skip
ODD_STARTS = (
    "Nobody", "Why", "Dragons", "Two", "Because", "If only", "Purple", "Where did", '"Stop', "Yesterday", "Seven big",
    "Without", "The reason that", "Running", "Never", "Mr. Bean", "When the last", "Whose", "Cats and", "It is not",
)  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """What is asked of a writer. `band` is what the tally goes by: the ending's band, or the kind of start."""

    band: str
    start: str
    end: str | None
    seed: int


@dataclass(frozen=True)
class WrittenStory:
    """A story to be read; `wish` holds what else the key should tell of it (start, end, seed)."""

    writer: str
    band: str
    text: str
    wish: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Writer:
    """Who tells stories, and how many of which kind.

    Args:
        name: what the tally calls it; the readers never see it.
        model: folder or Hub name of a checkpoint.
        stories: instead of a model, a JSON lines file of stories made elsewhere (`text`; `band` and others as wanted).
        endings: stories of each band of endings.
        free: stories with the first three words of validation stories, and no ending.
        common, odd: stories with usual and with unusual starts, and no ending.
        wishes: instead of these four, a JSON lines file (`band`, `start`, `end`, `seed`), to ask for the same again.
        options: of each pipeline call, such as num_candidates; max_words is the reading's unless it is named here.

    Raises:
        ValueError: it has neither model nor stories or both, or nothing is asked of a model.
    """

    name: str
    model: str | None = None
    stories: str | None = None
    endings: int = 0
    free: int = 0
    common: int = 0
    odd: int = 0
    wishes: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.stories is None):
            raise ValueError(f"writer {self.name!r}: give either model or stories")
        counts = (self.endings, self.free, self.common, self.odd)
        if any(not isinstance(count, int) or count < 0 for count in counts):
            raise ValueError(
                f"writer {self.name!r}: endings, free, common and odd are numbers of stories, got {counts}"
            )
        if self.model and not any(counts) and self.wishes is None:
            raise ValueError(f"writer {self.name!r}: asked for nothing; give endings, free, common, odd or wishes")


def load_writers(path: Path) -> list[Writer]:
    """Writers from a YAML file: a mapping from names to the fields of `Writer`.

    Raises:
        ValueError: it is no such mapping, or a field is unknown.
    """
    entries = yaml.safe_load(path.read_text())
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError(f"{path}: expected a mapping from each writer's name to its fields")
    known = {one.name for one in fields(Writer)} - {"name"}
    for name, entry in entries.items():
        if unknown := sorted(set(entry) - known):
            raise ValueError(f"{path}: writer {name!r} has an unknown field {unknown[0]!r}; accepted: {sorted(known)}")
    return [Writer(str(name), **entry) for name, entry in entries.items()]


def make_wishes(writer: Writer, validation: Sequence[str], training: Sequence[str], seed: int) -> list[Wish]:
    """What is asked of a writer; each wish has a seed of its own."""
    if writer.wishes:
        try:
            return [Wish(row["band"], row["start"], row["end"], row["seed"]) for row in rows(writer.wishes)]
        except KeyError as error:
            raise ValueError(f"{writer.wishes}: a wish has no {error}; it takes band, start, end and seed") from error
    asked: list[tuple[str, str, str | None]] = []
    if writer.endings:
        asked += [(pair.band, pair.start, pair.end) for pair in make_pairs(validation, training, writer.endings, seed)]
    rng = random.Random(seed)
    asked += [("free", " ".join(rng.choice(validation).split()[:3]), None) for _ in range(writer.free)]
    for band, starts, count in (("common start", COMMON_STARTS, writer.common), ("odd start", ODD_STARTS, writer.odd)):
        asked += [(band, starts[number % len(starts)], None) for number in range(count)]
    return [Wish(*one, seed=seed + number) for number, one in enumerate(asked)]


def write(writer: Writer, wishes: Sequence[Wish], max_words: int) -> list[WrittenStory]:
    """A writer's stories, one for each wish; or those of its file."""
    if writer.stories:
        return [
            WrittenStory(writer.name, str(row.pop("band", "stories")), str(row.pop("text")), row)
            for row in rows(writer.stories)
        ]
    assert writer.model is not None
    model, tokenizer = load_pretrained(writer.model)
    tell = StoryGenerationPipeline(model=model, tokenizer=tokenizer)
    options = {"max_words": max_words} | writer.options
    written = []
    for wish in tqdm(wishes, desc=writer.name, unit=" stories"):
        end = {"end": wish.end} if wish.end else {}
        text = tell(wish.start, seed=wish.seed, **(options | end))["story"]
        written.append(
            WrittenStory(writer.name, wish.band, text, {"start": wish.start, "end": wish.end, "seed": wish.seed})
        )
    return written


def draw_real(validation: Sequence[str], count: int, max_words: int, seed: int) -> list[WrittenStory]:
    """Real stories that are no longer than the writers' own may be: length must not give them away.

    Raises:
        ValueError: there are fewer.
    """
    short = [text for text in validation if REAL_LEAST_WORDS <= count_words(text) <= max_words]
    if len(short) < count:
        raise ValueError(
            f"{count} real stories asked for, only {len(short)} have {REAL_LEAST_WORDS} to {max_words} words"
        )
    return [WrittenStory(REAL, REAL, text) for text in random.Random(seed).sample(short, count)]


def rows(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file.

    Raises:
        ValueError: a line is not an object; the message names it.
    """
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object, got {line.strip()[:60]!r}")
        found.append(row)
    if not found:
        raise ValueError(f"{path}: nothing in it")
    return found

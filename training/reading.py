"""Blind reading: sheets of unnamed stories for careful readers, and what their grades say of each writer.

A reader is a person, or a large language model that sees nothing but one part of a sheet. Real stories stand between
the writers' own, the key to who wrote what is kept apart, and every part holds a fair share of each writer and band, so
that a strict reader's part is not one writer's bad luck. Two drafts for the same wish are compared on a sheet of pairs.
"""

import csv
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

PART_STORIES = 31  # a reader takes one part: some 4,000 words
YES_OR_NO = ("last_sentence_sensible", "fits_story")
MARKS = ("grammar", "consistency", "plot")  # 1 to 10
ANSWERS = {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}
RESAMPLES = 2000  # of a bootstrap
Z_95 = 1.959964  # of the normal distribution, two-sided

STORY_QUESTIONS = """\
You are a strict, careful adult reader of English children's stories: an editor who decides what may be printed. Below
are short stories in simple words, by several writers who are not named. Read every story to its end, each on its own,
and grade it. Do not guess who wrote it. Be strict and use the whole scale: a story that you would print without a
change is a 10, one that you could not mend is a 1.

For each story write one line of JSON, with its number and five grades:

    {"number": 7, "last_sentence_sensible": "n", "fits_story": "n", "grammar": 6, "consistency": 3, "plot": 4}

- `last_sentence_sensible`, "y" or "n": the story's last sentence, looked at by itself, is sound English and makes sense.
  "n" if a word in it is wrong, missing, made up, doubled, or stands where no careful writer would put it.
- `fits_story`, "y" or "n": the last sentence also belongs here: it follows from what was told, is true of these people
  and things, and closes the story. "n" if it contradicts the story or brings in something from nowhere. A last sentence that is not
  sensible does not fit either.
- `grammar`, 1 to 10: English sentences, quotation marks and punctuation, in the whole story.
- `consistency`, 1 to 10: people, things, places, who speaks and what is true stay the same from sentence to sentence,
  and each sentence follows from those before it.
- `plot`, 1 to 10: something happens, for a reason, and comes to an end worth reading for a child.

Answer with the lines of JSON and nothing else, one for each story, in the order of the sheet.
"""

PAIR_QUESTIONS = """\
You are a strict, careful adult reader of English children's stories: an editor who decides what may be printed. Below
are pairs of short stories in simple words, by writers who are not named. Read both stories of a pair to their ends, and
say which one you would rather print: the one with sounder English, that holds together better from its first sentence
to its last, and ends as it should. There are no draws. Which stands first is chance.

For each pair write one line of JSON: {"number": 7, "preferred": "A"} or {"number": 7, "preferred": "B"}.

Answer with the lines of JSON and nothing else, one for each pair, in the order of the sheet.
"""


@dataclass(frozen=True)
class Told:
    """A story to be read.

    Args:
        writer: who told it, as the tally will name it.
        band: what was asked of it: the band of its ending, or the kind of its start.
        text: the story.
        wish: what else is known of it (start, ending, seed), for the key.
    """

    writer: str
    band: str
    text: str
    wish: dict[str, Any]


def deal(stories: Sequence[Told], part_stories: int, seed: int) -> list[list[Told]]:
    """Parts of about `part_stories`, each with its share of every writer and band, each shuffled."""
    rng = random.Random(seed)
    shuffled = rng.sample(list(stories), len(stories))
    shuffled.sort(key=lambda story: (story.writer, story.band))
    count = max(1, round(len(stories) / part_stories))
    return [rng.sample(shuffled[part::count], len(shuffled[part::count])) for part in range(count)]


def write_sheet(stories: Sequence[Told], folder: Path, part_stories: int = PART_STORIES, seed: int = 0) -> None:
    """`sheet-1.md` and on for the readers, `key.json` for the tally, `grades.jsonl` to be filled in."""
    folder.mkdir(parents=True, exist_ok=True)
    key, number = [], 0
    for part, dealt in enumerate(deal(stories, part_stories, seed), start=1):
        lines = [f"# Reading sheet, part {part}", "", STORY_QUESTIONS]
        for story in dealt:
            number += 1
            lines += [f"## Story {number}", "", "\n\n".join(story.text.strip().split("\n")), ""]
            key.append({"number": number, "part": part, **asdict(story)})
        (folder / f"sheet-{part}.md").write_text("\n".join(lines))
    (folder / "key.json").write_text(json.dumps(key, indent=1))
    blank = [dict.fromkeys(("number", *YES_OR_NO, *MARKS)) | {"number": entry["number"]} for entry in key]
    (folder / "grades.jsonl").write_text("".join(json.dumps(line) + "\n" for line in blank))

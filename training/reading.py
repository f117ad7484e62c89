"""Blind reading: sheets of unnamed stories for careful readers, and what their grades say of each writer.

A reader is a person, or a large language model that sees nothing but one part of a sheet. Real stories stand between
the writers' own, the key to who wrote what is kept apart, and every part holds a fair share of each writer and band, so
that a strict reader's part is not one writer's bad luck. Two writers asked for the same are compared on a sheet of
pairs.
"""

import csv
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from training.cli import refused
from training.endings import BANDS
from training.intervals import mean_interval, wilson
from training.writers import WrittenStory, rows

PART_STORIES = 31  # a reader takes one part: some 4,000 words
YES_OR_NO = ("last_sentence_sensible", "fits_story")
MARKS = ("grammar", "consistency", "plot")  # 1 to 10
ANSWERS = {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}
# Bands that are too small for a verdict of their own are also tallied together.
GROUPS = {
    "ranks 1-100": BANDS[:2],
    "ranks 101-1,100 and phrases": (BANDS[2], BANDS[5]),
    "never last or never seen": BANDS[3:5],
}

STORY_QUESTIONS = """\
You are a strict, careful adult reader of English children's stories: an editor who decides what may be printed. Below
are short stories in simple words, by several writers who are not named. Read every story to its end, each on its own,
and grade it. Do not guess who wrote it. Be strict and use the whole scale: a story that you would print without a
change is a 10, one that you could not mend is a 1.

For each story write one line of JSON, with its number and five grades:

    {"number": 7, "last_sentence_sensible": "n", "fits_story": "n", "grammar": 6, "consistency": 3, "plot": 4}

- `last_sentence_sensible`, "y" or "n": the story's last sentence, looked at by itself, is sound English and makes
  sense. "n" if a word in it is wrong, missing, made up, doubled, or stands where no careful writer would put it.
- `fits_story`, "y" or "n": the last sentence also belongs here: it follows from what was told, is true of these people
  and things, and closes the story. "n" if it contradicts the story or brings in something from nowhere. A last
  sentence that is not sensible does not fit either.
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

Item = TypeVar("Item")
Grade = dict[str, Any]  # a reader's answers for one story or pair


def deal(items: Sequence[Item], stratum: Callable[[Item], Any], part_size: int, seed: int) -> list[list[Item]]:
    """Parts of about `part_size` items, each with its share of every stratum, each shuffled."""
    rng = random.Random(seed)
    shuffled = sorted(rng.sample(list(items), len(items)), key=stratum)
    count = max(1, round(len(items) / part_size))
    return [rng.sample(shuffled[part::count], len(shuffled[part::count])) for part in range(count)]


def write_sheets(stories: Sequence[WrittenStory], folder: Path, part_size: int = PART_STORIES, seed: int = 0) -> int:
    """`sheet-1.md` and on, for one reader each, and `key/key.json` for the tally; returns how many parts.

    Raises:
        ValueError: the folder holds another reading.
    """
    parts = deal(stories, lambda story: (story.writer, story.band), part_size, seed)
    key: list[dict[str, Any]] = []
    texts = []
    for part, dealt in enumerate(parts, start=1):
        lines = [f"# Reading sheet, part {part}", "", STORY_QUESTIONS]
        for story in dealt:
            key.append({"number": len(key) + 1, "part": part, **asdict(story)})
            lines += [f"## Story {len(key)}", "", _paragraphs(story.text), ""]
        texts.append("\n".join(lines))
    return _write(folder, texts, {"kind": "stories", "entries": key})


def write_pair_sheets(
    first: Sequence[WrittenStory], second: Sequence[WrittenStory], folder: Path, part_size: int = 15, seed: int = 0
) -> int:
    """Like `write_sheets`, for two writers who were asked for the same; who stands first is drawn for each pair.

    Raises:
        ValueError: they were not asked for the same, or the folder holds another reading.
    """
    if [story.wish for story in first] != [story.wish for story in second]:
        raise ValueError("a sheet of pairs needs two writers with the same wishes: the same counts or the same file")
    rng = random.Random(seed)
    pairs = [rng.sample(pair, 2) for pair in zip(first, second, strict=True)]
    key: list[dict[str, Any]] = []
    texts = []
    for part, dealt in enumerate(deal(pairs, lambda pair: pair[0].band, part_size, seed), start=1):
        lines = [f"# Sheet of pairs, part {part}", "", PAIR_QUESTIONS]
        for pair in dealt:
            sides = {side: asdict(story) for side, story in zip("AB", pair, strict=True)}
            key.append({"number": len(key) + 1, "part": part, "band": pair[0].band, **sides})
            lines += [f"## Pair {len(key)}", ""]
            for side, story in zip("AB", pair, strict=True):
                lines += [f"### {side}", "", _paragraphs(story.text), ""]
        texts.append("\n".join(lines))
    return _write(folder, texts, {"kind": "pairs", "entries": key})


def _paragraphs(text: str) -> str:
    return "\n\n".join(text.strip().split("\n"))


def refuse_used(folder: Path) -> None:
    """
    Raises:
        ValueError: the folder holds another reading, whose key its grades still need.
    """
    if found := [*sorted(folder.glob("sheet-*.md")), *folder.glob("key/key.json")]:
        raise ValueError(f"{folder} holds another reading ({found[0].name}); give the new one a folder of its own")


def _write(folder: Path, texts: list[str], key: dict[str, Any]) -> int:
    refuse_used(folder)
    (folder / "key").mkdir(parents=True, exist_ok=True)
    for part, text in enumerate(texts, start=1):
        (folder / f"sheet-{part}.md").write_text(text, encoding="utf-8")
    (folder / "key" / "key.json").write_text(json.dumps(key, indent=1), encoding="utf-8")
    return len(texts)


def load_key(path: Path, kind: str | None = None) -> dict[str, Any]:
    """What `read make` kept apart: who wrote which story.

    Raises:
        ValueError: the file is no such key, or one of another kind of sheet.
    """
    with refused(f"key {path}"):
        key = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(key, dict) or "entries" not in key or key.get("kind") not in ("stories", "pairs"):
        raise ValueError(f"{path} is no key of a reading, expected key/key.json of `read make`")
    if kind and key["kind"] != kind:
        raise ValueError(f"{path} is the key of a sheet of {key['kind']}, expected one of {kind}")
    return key


def load_grades(paths: Sequence[Path], key: dict[str, Any]) -> dict[int, Grade]:
    """A reading's grades by number, from JSON lines or CSV files (as many as there were parts).

    Raises:
        ValueError: a number that the key does not hold or that was graded twice, or an answer that is missing or is
            none; the message names the file.
    """
    numbers = {entry["number"] for entry in key["entries"]}
    check = _check_pair if key["kind"] == "pairs" else _check_story
    grades: dict[int, Grade] = {}
    for path in paths:
        for row in _read(path):
            try:
                if not (given := _number(row, "number")).is_integer():
                    raise ValueError(f"number must be a whole one, got {row['number']!r}")
                number, grade = int(given), check(row)
            except ValueError as error:
                raise ValueError(f"{path}: {row} is no grade ({error})") from error
            if number not in numbers:
                raise ValueError(f"{path}: number {number} is not in the key")
            if number in grades:
                raise ValueError(f"{path}: number {number} was graded before; give a second reading its own --grades")
            grades[number] = grade
    return grades


def _read(path: Path) -> list[dict[str, Any]]:
    if path.suffix != ".csv":
        return rows(path)
    with path.open(newline="", encoding="utf-8-sig") as file:  # table programs put a mark in front
        return list(csv.DictReader(file))


def _answer(row: dict[str, Any], name: str) -> Any:
    if row.get(name) in (None, ""):  # a table's cell that was left empty
        raise ValueError(f"{name} is missing")
    return row[name]


def _number(row: dict[str, Any], name: str) -> float:
    answer = _answer(row, name)
    with suppress(TypeError, ValueError):
        if not isinstance(answer, bool):
            return float(answer)
    raise ValueError(f"{name} must be a number, got {answer!r}")


def _check_story(row: dict[str, Any]) -> Grade:
    grade: Grade = {}
    for name in YES_OR_NO:
        if (answer := str(_answer(row, name)).strip().lower()) not in ANSWERS:
            raise ValueError(f'{name} must be "y" or "n", got {row[name]!r}')
        grade[name] = ANSWERS[answer]
    for name in MARKS:
        grade[name] = _number(row, name)
        if not 1 <= grade[name] <= 10:
            raise ValueError(f"{name} must lie between 1 and 10, got {row[name]!r}")
    return grade


def _check_pair(row: dict[str, Any]) -> Grade:
    if (side := str(_answer(row, "preferred")).strip().upper()) not in ("A", "B"):
        raise ValueError(f'preferred must be "A" or "B", got {row["preferred"]!r}')
    return {"preferred": side}


def tally(key: dict[str, Any], grades: dict[int, Grade]) -> str:
    """The grades of one reading, by writer and band, as a Markdown table; in brackets 95 % intervals (Wilson for
    shares, bootstrap for means)."""
    entries = [entry for entry in key["entries"] if entry["number"] in grades]
    table = _tally_pairs(entries, grades) if key["kind"] == "pairs" else _tally_stories(entries, grades)
    return f"{table}\n\n{len(entries)} of {len(key['entries'])} graded.\n"


def _tally_stories(entries: list[dict[str, Any]], grades: dict[int, Grade]) -> str:
    lines = ["| writer | band | stories | last sentence sensible | fits its story | grammar | consistency | plot |"]
    lines.append("|---" * 8 + "|")
    for writer in sorted({entry["writer"] for entry in entries}):
        for band, some in in_bands([e for e in entries if e["writer"] == writer], lambda e: e["band"]):
            given = [grades[entry["number"]] for entry in some]
            cells = [share(sum(grade[name] for grade in given), len(given)) for name in YES_OR_NO]
            cells += [mean([grade[name] for grade in given]) for name in MARKS]
            lines.append(f"| {writer} | {band} | {len(some)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def counts(key: dict[str, Any], grades: dict[int, Grade]) -> list[dict[str, Any]]:
    """What `tally` says, as numbers: for each writer and band the stories, the share of each yes and the mean of each
    mark; of pairs, for each band how many of each writer's were preferred."""
    rows: list[dict[str, Any]] = []
    entries = [entry for entry in key["entries"] if entry["number"] in grades]
    if key["kind"] == "pairs":
        for band, some in in_bands(entries, lambda entry: entry["band"]):
            chosen = [entry[grades[entry["number"]]["preferred"]]["writer"] for entry in some]
            rows.append({"band": band, "pairs": len(some), "preferred": dict(sorted(Counter(chosen).items()))})
        return rows
    for writer in sorted({entry["writer"] for entry in entries}):
        for band, some in in_bands([e for e in entries if e["writer"] == writer], lambda e: e["band"]):
            given = [grades[entry["number"]] for entry in some]
            means = {name: round(float(np.mean([grade[name] for grade in given])), 4) for name in YES_OR_NO + MARKS}
            rows.append({"writer": writer, "band": band, "stories": len(given)} | means)
    return rows


def _tally_pairs(entries: list[dict[str, Any]], grades: dict[int, Grade]) -> str:
    lines = []
    writers = sorted({entry[side]["writer"] for entry in entries for side in "AB"})
    for band, some in in_bands(entries, lambda entry: entry["band"]):
        chosen = [entry[grades[entry["number"]]["preferred"]]["writer"] for entry in some]
        counts = (share(chosen.count(writer), len(chosen)) for writer in writers)
        lines.append(f"| {band} | {len(some)} | {' | '.join(counts)} |")
    head = [f"| band | pairs | {' | '.join(f'{writer} preferred' for writer in writers)} |"]
    return "\n".join([*head, "|---" * (2 + len(writers)) + "|", *lines])


def in_bands(items: Sequence[Item], band_of: Callable[[Item], str]) -> list[tuple[str, list[Item]]]:
    """All items, then those of each band, in the order of `BANDS`, then those of each group of bands."""
    present = sorted({band_of(item) for item in items}, key=lambda band: ((*BANDS, band).index(band), band))
    if len(present) == 1:
        return [(present[0], list(items))]
    sets = {"all": tuple(present)} | {band: (band,) for band in present}
    sets |= {name: group for name, group in GROUPS.items() if set(group) <= set(present)}
    return [(name, [item for item in items if band_of(item) in group]) for name, group in sets.items()]


def agreement(first: dict[int, Grade], second: dict[int, Grade]) -> str:
    """How far two readings agree on what both graded: for yes and no, sides too, the share of equal answers and Cohen's
    kappa (1960); for marks the correlation."""
    both = sorted(set(first) & set(second))
    if not both:
        return "No number was graded in both readings."
    said = []
    for name in first[both[0]]:
        a, b = ([grades[number][name] for number in both] for grades in (first, second))
        if name in MARKS:
            constant = len(set(a)) == 1 or len(set(b)) == 1
            said.append(f"{name} correlation {'-' if constant else f'{np.corrcoef(a, b)[0, 1]:.2f}'}")
            continue
        equal = sum(x == y for x, y in zip(a, b, strict=True)) / len(both)
        chance = sum(a.count(value) * b.count(value) for value in set(a)) / len(both) ** 2
        kappa = "-" if chance == 1 else f"{(equal - chance) / (1 - chance):.2f}"
        said.append(f"{name} {100 * equal:.0f} % equal, kappa {kappa}")
    return f"Agreement on {len(both)}: {'; '.join(said)}."


def share(hits: int, count: int) -> str:
    """A share with its interval, in percent."""
    low, high = wilson(hits, count)
    return f"{100 * hits / count:.0f} % ({100 * low:.0f}-{100 * high:.0f})"


def mean(values: Sequence[float]) -> str:
    """A mean with its interval."""
    low, high = mean_interval(values)
    return f"{np.mean(values):.1f} ({low:.1f}-{high:.1f})"

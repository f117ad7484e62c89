"""A sheet names nobody and gives every part its share; a tally counts what readers said, with intervals that hold."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from modeling.request_tiny_story import bare_words, ends_with
from tests.conftest import STORIES_FILE
from training.endings import BANDS
from training.intervals import auc_interval, mean_interval, roc_auc, wilson
from training.reading import agreement, in_bands, load_grades, tally, write_pair_sheets, write_sheets
from training.writers import Wish, Writer, WrittenStory, draw_real, load_writers, make_wishes, write

WRITERS = {"the flagship": {"model": "modeling"}, "another": {"model": "modeling/classic"}}


def written(writer: str, count: int, bands: tuple[str, ...] = BANDS) -> list[WrittenStory]:
    return [
        WrittenStory(writer, bands[n % len(bands)], f"Tale {n} told by one of them.\nThe end {n}.", {"seed": n})
        for n in range(count)
    ]


def key_of(folder: Path) -> dict:
    return json.loads((folder / "key" / "key.json").read_text())


def graded(folder: Path, answers: list[dict]) -> Path:
    path = folder / "grades.jsonl"
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    return path


def test_a_sheet_names_nobody_and_every_part_has_its_share(tmp_path: Path):
    stories = [*written("a checkpoint", 48), *written("real", 12, ("real",))]
    assert write_sheets(stories, tmp_path, part_size=20) == 3
    entries = key_of(tmp_path)["entries"]
    sheets = [path.read_text() for path in sorted(tmp_path.glob("*.md"))]
    for part, sheet in enumerate(sheets, start=1):
        assert not re.search(r"checkpoint|real\b|seed|last words", sheet)
        texts = dict(re.findall(r"## Story (\d+)\n\n(.*?)\n(?=\n## |$)", sheet, re.DOTALL))
        mine = {str(e["number"]): e["text"].replace("\n", "\n\n") for e in entries if e["part"] == part}
        assert {number: text.strip() for number, text in texts.items()} == mine
        assert sum(e["writer"] == "real" for e in entries if e["part"] == part) == 4
        for band in BANDS:
            assert 2 <= sum(e["band"] == band for e in entries if e["part"] == part) <= 3
    assert sorted(e["text"] for e in entries) == sorted(story.text for story in stories)
    assert [e["text"] for e in entries] != [story.text for story in stories]


def test_grades_come_as_json_lines_or_csv(tmp_path: Path):
    write_sheets(written("a", 4), tmp_path)
    key = key_of(tmp_path)
    answers = [
        {"number": n, "last_sentence_sensible": "y", "fits_story": "n", "grammar": 9, "consistency": n, "plot": 5}
        for n in (1, 2, 3)
    ]
    table = tmp_path / "grades.csv"
    table.write_text(
        "\n".join([",".join(answers[0]), *(",".join(map(str, answer.values())) for answer in answers)]) + "\n"
    )
    grades = load_grades([graded(tmp_path, answers)], key)
    assert load_grades([table], key) == grades
    table.write_text(table.read_text(), encoding="utf-8-sig")  # as Excel writes it
    assert load_grades([table], key) == grades
    assert grades[3] == {
        "last_sentence_sensible": True, "fits_story": False, "grammar": 9.0, "consistency": 3.0, "plot": 5.0
    }  # fmt: skip
    assert "3 of 4 graded" in tally(key, grades)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fits_story": "maybe"}, 'fits_story must be "y" or "n"'),
        ({"plot": 11}, "plot must lie between 1 and 10"),
        ({"number": 9}, "number 9 is not in the key"),
        ({"number": 1}, "number 1 was graded before"),
        ({"grammar": None}, "grammar is missing"),
        ({"grammar": "good"}, "grammar must be a number, got 'good'"),
        ({"grammar": True}, "grammar must be a number, got True"),
        ({"number": 2.9}, "number must be a whole one, got 2.9"),
        ({"number": True}, "number must be a number, got True"),
    ],
)
def test_what_is_no_grade_is_refused(tmp_path: Path, change: dict, message: str):
    write_sheets(written("a", 2), tmp_path)
    fine = {"last_sentence_sensible": "y", "fits_story": "n", "grammar": 9, "consistency": 3, "plot": 5}
    path = graded(tmp_path, [{"number": 1, **fine}, {"number": 2, **fine} | change])
    with pytest.raises(ValueError, match=re.escape(message)):
        load_grades([path], key_of(tmp_path))


@pytest.mark.parametrize("name", ["number", "fits_story", "plot"])
def test_an_answer_that_is_missing_is_said_to_be(tmp_path: Path, name: str):
    write_sheets(written("a", 2), tmp_path)
    fine = {"number": 1, "last_sentence_sensible": "y", "fits_story": "n", "grammar": 9, "consistency": 3, "plot": 5}
    table = tmp_path / "grades.csv"
    table.write_text(f"{','.join(fine)}\n{','.join('' if key == name else str(fine[key]) for key in fine)}\n")
    del fine[name]
    for path in (graded(tmp_path, [fine]), table):
        with pytest.raises(ValueError, match=f"{path.name}: .* is no grade .{name} is missing"):
            load_grades([path], key_of(tmp_path))


def test_a_new_reading_does_not_take_the_place_of_another(tmp_path: Path):
    write_sheets(written("a", 4), tmp_path, part_size=2)
    before = {path: path.read_text() for path in tmp_path.rglob("*.*")}
    for write_again in (lambda: write_sheets(written("b", 2), tmp_path),
                        lambda: write_pair_sheets(written("b", 2), written("c", 2), tmp_path)):  # fmt: skip
        with pytest.raises(ValueError, match="holds another reading"):
            write_again()
    assert {path: path.read_text() for path in tmp_path.rglob("*.*")} == before


def test_a_tally_counts_each_writer_and_band(tmp_path: Path):
    write_sheets([*written("a", 12), *written("real", 3, ("real",))], tmp_path)
    key = key_of(tmp_path)
    sound = {BANDS[0], BANDS[1], "real"}
    grades = {
        entry["number"]: {
            "last_sentence_sensible": entry["band"] in sound, "fits_story": entry["writer"] == "real",
            "grammar": 8.0, "consistency": 4.0 if entry["writer"] == "a" else 9.0, "plot": 5.0,
        }
        for entry in key["entries"]
    }  # fmt: skip
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tally(key, grades).splitlines()[2:-2]]
    cells = {(row[0], row[1]): row[2:] for row in rows}
    assert cells["a", "all"][:2] == ["12", "33 % (14-61)"]
    shares, means = ["100 % (51-100)", "0 % (0-49)"], ["8.0 (8.0-8.0)", "4.0 (4.0-4.0)", "5.0 (5.0-5.0)"]
    assert cells["a", "ranks 1-100"] == ["4", *shares, *means]
    assert cells["a", "never last or never seen"][1] == "0 % (0-49)"
    assert cells["real", "real"][0] == "3" and cells["real", "real"][3:5] == ["8.0 (8.0-8.0)", "9.0 (9.0-9.0)"]


def test_pairs_are_shuffled_and_tallied_by_who_was_preferred(tmp_path: Path):
    first, second = written("veteran", 24), written("novice", 24)
    assert write_pair_sheets(first, second, tmp_path, part_size=12) == 2
    key = key_of(tmp_path)
    sides = [entry["A"]["writer"] for entry in key["entries"]]
    assert {"veteran", "novice"} == set(sides)
    assert all(entry["A"]["wish"] == entry["B"]["wish"] for entry in key["entries"])
    sheet = (tmp_path / "sheet-1.md").read_text()
    assert "veteran" not in sheet and "novice" not in sheet
    assert sheet.count("### A") == sheet.count("### B") == 12
    answers = [
        {"number": entry["number"], "preferred": next(side for side in "AB" if entry[side]["writer"] == "novice")}
        for entry in key["entries"]
    ]
    answers[0]["preferred"] = "A" if answers[0]["preferred"] == "B" else "B"
    table = tally(key, load_grades([graded(tmp_path, answers)], key))
    assert "| all | 24 | 96 % (80-99) | 4 % (1-20) |" in table
    with pytest.raises(ValueError, match="same wishes"):
        write_pair_sheets(first, written("novice", 23), tmp_path)


def test_two_readings_agree_as_far_as_they_say():
    def reading(sensible: list[bool], plots: list[float]) -> dict:
        return {n: {"fits_story": s, "plot": p} for n, (s, p) in enumerate(zip(sensible, plots, strict=True))}

    first = reading([True, True, False, False], [1, 2, 3, 4])
    assert agreement(first, first) == "Agreement on 4: fits_story 100 % equal, kappa 1.00; plot correlation 1.00."
    other = reading([True, False, True, False], [4, 3, 2, 1])  # as often equal as chance would have it
    assert agreement(first, other) == "Agreement on 4: fits_story 50 % equal, kappa 0.00; plot correlation -1.00."
    assert agreement(first, {}) == "No number was graded in both readings."


def test_wilson_solves_its_equation_and_covers():
    for hits, count in ((0, 5), (3, 10), (97, 100), (7, 7)):
        for bound in wilson(hits, count):
            distance = abs(hits / count - bound) / max((bound * (1 - bound) / count) ** 0.5, 1e-12)
            assert min(bound, 1 - bound) < 1e-9 or distance == pytest.approx(1.959964, rel=1e-5)
    rng = random.Random(0)
    draws = [sum(rng.random() < 0.9 for _ in range(30)) for _ in range(2000)]
    covered = sum(low <= 0.9 <= high for low, high in (wilson(hits, 30) for hits in draws))
    assert 0.92 < covered / 2000 < 0.98
    with pytest.raises(ValueError, match="at least one case"):
        wilson(0, 0)


def test_a_bootstrap_is_as_wide_as_theory_says():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = mean_interval(values)
    assert (high - low) == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)
    assert low < values.mean() < high


def test_the_area_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(2)
    low, high = rng.integers(0, 9, 60), rng.integers(2, 12, 50)
    pairs = [(a < b) + 0.5 * (a == b) for a in low for b in high]
    assert roc_auc(low, high) == pytest.approx(np.mean(pairs))
    assert roc_auc([1, 2], [3, 4]) == 1.0
    begin, end = auc_interval(low, high)
    assert begin < roc_auc(low, high) < end


def test_bands_stand_in_order_and_unknown_ones_last():
    names = [name for name, _ in in_bands(["free", BANDS[5], BANDS[1], BANDS[0]], str)]
    assert names == ["all", BANDS[0], BANDS[1], BANDS[5], "free", "ranks 1-100"]


def test_writers_asked_for_as_much_are_asked_for_the_same(stories: list[str], tmp_path: Path):
    a, b = (Writer(name, **given, endings=2, free=2, common=1, odd=3) for name, given in WRITERS.items())
    wishes = make_wishes(a, stories, stories, seed=5)
    assert make_wishes(b, stories, stories, seed=5) == wishes
    assert {wish.band for wish in wishes} >= {BANDS[0], "free", "common start", "odd start"}
    assert len({wish.seed for wish in wishes}) == len(wishes)
    assert all((wish.end is None) == (wish.band not in BANDS) for wish in wishes)
    kept = tmp_path / "wishes.jsonl"
    kept.write_text("".join(json.dumps(vars(wish)) + "\n" for wish in wishes))
    assert make_wishes(Writer("again", model="modeling", wishes=str(kept)), [], [], seed=9) == wishes


def test_writers_tell_what_they_are_asked_for_as_the_pipeline_does(tell, tmp_path: Path):
    wishes = [Wish(BANDS[0], "One day", "happy", 3), Wish("odd start", "Dragons", None, 4)]
    writer = Writer("flagship", model="modeling", wishes="-", options={"temperature": 0.5})
    told = write(writer, wishes, max_words=60)
    for wish, story in zip(wishes, told, strict=True):
        direct = tell(wish.start, end=wish.end, seed=wish.seed, max_words=60, temperature=0.5)
        assert story.text == direct["story"] and story.band == wish.band
    assert ends_with(told[0].text, "happy")
    file = tmp_path / "elsewhere.jsonl"
    file.write_text(json.dumps({"text": "He ran home.", "band": "free", "by": "hand"}) + "\n")
    assert write(Writer("other", stories=str(file)), [], 60) == [
        WrittenStory("other", "free", "He ran home.", {"by": "hand"})
    ]


def test_real_stories_are_no_longer_than_the_others_may_be(long_stories: Path):
    texts = [json.loads(line)["text"] for line in long_stories.read_text().splitlines()]
    limit = sorted(len(text.split()) for text in texts)[len(texts) // 2]
    short = draw_real(texts, 3, limit, seed=0)
    assert len({story.text for story in short}) == 3
    assert all(60 <= len(story.text.split()) <= limit for story in short)
    with pytest.raises(ValueError, match="real stories asked for, only"):
        draw_real(texts, len(texts), limit, seed=0)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["a"], "expected a mapping"),
        ({"a": {"modle": "modeling"}}, "unknown field 'modle'"),
        ({"a": {"free": 3}}, "either model or stories"),
        ({"a": {"model": "modeling"}}, "asked for nothing"),
        ({"a": {"model": "modeling", "free": -1}}, "numbers of stories"),
    ],
)
def test_writers_that_make_no_sense_are_refused(tmp_path: Path, entries, message: str):
    path = tmp_path / "writers.yaml"
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(ValueError, match=message):
        load_writers(path)


def test_the_command_makes_sheets_and_tallies_them(
    run_command: Callable[..., str], tmp_path: Path, long_stories: Path, capsys: pytest.CaptureFixture
):
    writers = tmp_path / "writers.yaml"
    writers.write_text(yaml.safe_dump({"flagship": {"model": "modeling", "odd": 2}}))
    make = ["make", "--dataset", long_stories, "--training_dataset", STORIES_FILE, "--real", 2]
    run_command("training.evaluate", "read", *make, "--writers", writers, "--output", tmp_path)
    with pytest.raises(SystemExit):  # before a story is told: there is no such file of writers
        run_command("training.evaluate", "read", *make, "--writers", tmp_path / "none", "--output", tmp_path)
    assert "holds another reading" in capsys.readouterr().err
    entries = key_of(tmp_path)["entries"]
    starts = [entry["wish"]["start"] for entry in entries if entry["writer"] == "flagship"]
    assert sorted(starts) == ["Nobody", "Why"] and len(entries) == 4
    assert all(bare_words(entry["text"]) for entry in entries)
    fine = {"last_sentence_sensible": "y", "fits_story": "y", "grammar": 9, "consistency": 8, "plot": 5}
    grades = graded(tmp_path, [{"number": entry["number"], **fine} for entry in entries])
    count = ["tally", "--key", tmp_path / "key" / "key.json", "--grades", grades, "--grades", grades]
    kept = tmp_path / "reading.json"
    told = run_command("training.evaluate", "read", *count, "--output", kept)
    for sitting in json.loads(kept.read_text())["readings"]:
        row = next(row for row in sitting if (row["writer"], row["band"]) == ("flagship", "odd start"))
        assert (row["stories"], row["fits_story"], row["grammar"], row["plot"]) == (2, 1.0, 9.0, 5.0)
    assert "| flagship | odd start | 2 | 100 % (34-100) |" in told
    assert "Agreement on 4: last_sentence_sensible 100 % equal" in told

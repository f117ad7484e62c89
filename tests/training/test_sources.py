"""Stories as people have them: nothing lost, nothing doubled, nothing read as what it is not."""

import bz2
import csv
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from tests.conftest import STORIES_FILE
from training.sources import hold_out, load_stories, normalise_story, open_source, without_stories


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


def write_table(path: Path, delimiter: str, stories: list[str]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([["text", "age"], *([story, 4] for story in stories)])


def separated(text: str) -> Callable[[Path, list[str]], object]:
    return lambda path, stories: path.write_text(text.join(stories) + text)


WRITERS: dict[str, Callable[[Path, list[str]], object]] = {
    "a.parquet": lambda path, stories: Dataset.from_dict({"text": stories}).to_parquet(path),
    "a.jsonl": lambda path, stories: path.write_text("".join(json.dumps({"text": s}) + "\n" for s in stories)),
    "a.json": lambda path, stories: path.write_text(json.dumps([{"text": s, "age": 4} for s in stories])),
    "list.json": lambda path, stories: path.write_text(json.dumps(stories)),
    "a.csv": lambda path, stories: write_table(path, ",", stories),
    "a.tsv": lambda path, stories: write_table(path, "\t", stories),
    "a.txt": separated("\n<|endoftext|>\n"),
    "blank.txt": separated("\n\n"),
    "blanks.TXT": separated("\r\n \t\r\n\r\n"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("compress", [None, gzip, bz2, lzma], ids=["plain", "gz", "bz2", "xz"])
def test_formats_give_the_same_stories(tmp_path: Path, stories: list[str], name: str, compress):
    path = tmp_path / name
    WRITERS[name](path, stories)
    if compress and name != "a.parquet":  # compressed in itself
        ending = {gzip: ".gz", bz2: ".bz2", lzma: ".xz"}[compress]
        packed = path.with_name(path.name + ending)
        packed.write_bytes(compress.compress(path.read_bytes()))
        path = packed
    assert load_stories([str(path)], "train")["text"] == stories


def test_quotes_of_a_table_without_quoting_are_kept(tmp_path: Path):
    path = tmp_path / "talk.tsv"
    path.write_text('age\ttext\n4\t"Hello," she said.\n5\tHe left.\n')
    assert load_stories([str(path)], "train")["text"] == ['"Hello," she said.', "He left."]


@pytest.mark.parametrize("name", ["nan.jsonl", "nan.json", "nan.jsonl.gz"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_text_of_json_changes_no_other(tmp_path: Path, stories: list[str], name: str, streaming: bool):
    path = tmp_path / name
    for column in ("text", "story"):  # the second time, the file at this place is another one
        rows = [{column: text, "kind": "tail"} for text in (*stories[:3], float("nan"), None, *stories[3:])]
        content = json.dumps(rows) if ".jsonl" not in name else "\n\n".join(map(json.dumps, rows))
        path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
        read = list(open_source(str(path), "train", streaming, column))
        assert [row["text"] for row in read if row["text"]] == stories
        assert {row["kind"] for row in read if row["text"]} == {"tail"}
        loaded = load_stories([str(path)], "train", column)
        assert loaded["text"] == stories and set(loaded["kind"]) == {"tail"}


@pytest.mark.parametrize("value", [12, 1.5, False, ["A hen."], {"en": "A hen."}, float("inf")], ids=str)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_of_json_that_is_no_string_is_refused(tmp_path: Path, stories: list[str], value, streaming: bool):
    texts = [*stories[:2], value, *stories[2:]]
    (tmp_path / "typed.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "typed.json").write_text(json.dumps([{"text": text} for text in texts]))
    for path in tmp_path.glob("typed.*"):
        with pytest.raises(ValueError, match=re.escape(f"row 3 holds {value!r}, expected a text")) as error:
            open_source(str(path), "train", streaming)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(("ending", "name"), [(".csv", "comma"), (".tsv", "tab")])
@pytest.mark.parametrize("header", ["text", "id{0}text"])
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_a_row_longer_than_its_header_is_refused(tmp_path: Path, ending: str, name: str, header: str, compress: bool):
    separator = "," if ending == ".csv" else "\t"
    rows = [f'"One{separator} in{separator}\ntwo lines."', f"Once{separator} there was a hen.", "She was red."]
    lines = [header.format(separator), *(f"7{separator}{row}" if "id" in header else row for row in rows)]
    content = "\n".join(lines).encode()
    path = tmp_path / f"bare{ending}{'.gz' if compress else ''}"
    path.write_bytes(gzip.compress(content) if compress else content)
    width = len(lines[0].split(separator))
    message = f"line 4 has {width + 1} fields, the header has {width}; expected a {name} between fields only"
    with pytest.raises(ValueError, match=message) as error:
        load_stories([str(path)], "train")
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_long_text_of_a_table_is_read(tmp_path: Path):
    text = "A hen, and a hat. " * 10_000
    write_table(tmp_path / "long.csv", ",", [text])
    assert load_stories([str(tmp_path / "long.csv")], "train")["text"] == [text.strip()]


def test_lines_files_folders_and_patterns(tmp_path: Path, stories: list[str], capsys: pytest.CaptureFixture):
    flat = [story.replace("\n", " ") for story in stories]
    lines = tmp_path / "lines.txt"
    lines.write_text("\ufeff" + "\n".join(flat))
    assert load_stories([str(lines)], "train")["text"] == flat
    assert f"{lines}: {len(stories)} stories, one a line" in capsys.readouterr().out
    folder = tmp_path / "folder"
    (folder / "more").mkdir(parents=True)
    (folder / "notes.md").write_text("Not a story.")
    for number, story in enumerate(stories):  # paragraphs parted by blank lines are no other stories
        name = "more/last.txt" if number == len(stories) - 1 else f"{number:02}.txt"
        (folder / name).write_text(story.replace("\n", "\n\n"))
    for source in (str(folder), f"{folder}/**/*.txt"):
        assert load_stories([source], "train")["text"] == stories
        assert f"{source}: {len(stories)} stories, one a file" in capsys.readouterr().out
    assert load_stories([f"{folder}/*.txt"], "train")["text"] == stories[:-1]
    (folder / "table.csv").write_text("text\nA hen.\n")
    with pytest.raises(ValueError, match=re.escape("holds .csv and .txt files; name those to read")):
        load_stories([str(folder)], "train")


def test_a_copy_of_a_data_set_keeps_its_splits(tmp_path: Path, stories: list[str], capsys: pytest.CaptureFixture):
    (tmp_path / "training/data").mkdir(parents=True)
    parts = {"train-0-of-2": stories[:3], "train-1-of-2": stories[3:5], "validation-0-of-1": stories[5:]}
    for name, part in parts.items():
        Dataset.from_dict({"text": part}).to_parquet(tmp_path / "training/data" / f"{name}.parquet")
    (tmp_path / "training/infos.json").write_text("{}")
    assert load_stories([str(tmp_path / "training")], "train")["text"] == stories[:5]
    assert "the files of train, without data/validation-0-of-1.parquet, infos.json\n" in capsys.readouterr().out
    assert load_stories([str(tmp_path / "training")], "validation")["text"] == stories[5:]
    Dataset.from_dict({"text": stories}).to_parquet(tmp_path / "training/dragons.parquet")
    with pytest.raises(ValueError, match=r"dragons\.parquet is of no split \(train, .*; name the files to read"):
        load_stories([str(tmp_path / "training")], "train")


def test_a_text_is_parted_as_asked(tmp_path: Path, stories: list[str], capsys: pytest.CaptureFixture):
    path = tmp_path / "stars.txt"
    path.write_text("\n***\n".join(stories))
    assert load_stories([str(path)], "train", story_separator="***")["text"] == stories
    assert load_stories([str(path)], "train", story_separator=r"\n***\n")["text"] == stories
    assert "parted by '***'" in capsys.readouterr().out
    assert len(load_stories([str(path)], "train", story_separator="files")) == 1
    with pytest.raises(ValueError, match=r"stars\.txt: there is no '---' in it"):
        load_stories([str(path)], "train", story_separator="---")


def test_what_is_no_story_is_refused_and_the_option_named(tmp_path: Path, stories: list[str]):
    path = tmp_path / "book.txt"
    path.write_text(" ".join(stories).replace("\n", " ") * 60)
    with pytest.raises(ValueError, match=r"one a line, there would be a story of [\d,]+ words; .*--story_separator"):
        load_stories([str(path)], "train")
    (tmp_path / "other.txt").write_text("A hen had a hat.")
    with pytest.raises(ValueError, match=r"a story of [\d,]+ words; .*--story_separator"):
        load_stories([str(tmp_path)], "train")
    words = stories[0].split()
    path.write_text("\n".join(" ".join(words[at : at + 9]) for at in range(0, len(words), 9)))  # wrapped
    with pytest.raises(ValueError, match=r"that do not end a sentence; .*--story_separator: 'blank lines'"):
        load_stories([str(path)], "train")


def test_a_column_of_another_name(tmp_path: Path, stories: list[str], capsys: pytest.CaptureFixture):
    path, usual = tmp_path / "told.jsonl", tmp_path / "usual.jsonl"
    path.write_text("".join(json.dumps({"id": n, "story": s}) + "\n" for n, s in enumerate(stories)))
    with pytest.raises(ValueError, match=r'no column "text", found \[\'id\', \'story\'\]; .*--text_column'):
        load_stories([str(path)], "train")
    assert load_stories([str(path)], "train", text_column="story")["text"] == stories
    assert "from column 'story'" in capsys.readouterr().out
    WRITERS["a.jsonl"](usual, stories)
    assert load_stories([str(usual)], "validation", text_column="story")["text"] == stories
    assert "from column 'text', there is no 'story'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "kind"),
    [(7, "int64"), (0.5, "float64"), (["A hen."], "lists or objects"), ({"en": "A hen."}, "lists or objects")],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_that_is_no_text_is_refused(tmp_path: Path, value: object, kind: str, streaming: bool):
    path = tmp_path / "typed.parquet"
    Dataset.from_dict({"told": [value, value]}).to_parquet(path)
    with pytest.raises(ValueError, match=f"{path}: column 'told' holds {kind}, expected texts"):
        open_source(str(path), "train", streaming, "told")


@pytest.mark.parametrize(
    ("kinds", "taken", "said"),
    [
        (["story", "head", "tail", None], ["story", "head", "tail", "story"], ""),
        (["fable", "poem", "story", None], ["story"] * 4, "column 'kind' (fable, poem) is not one of"),
        ([1, 2, 3, 4], ["story"] * 4, "column 'kind' (no text) is not one of"),
    ],
)
def test_kind_is_read_where_it_means_ours(tmp_path: Path, stories: list[str], capsys, kinds, taken, said: str):
    path = tmp_path / "kinds.parquet"
    Dataset.from_dict({"text": stories[:4], "kind": kinds}).to_parquet(path)
    loaded = load_stories([str(path)], "train")
    assert loaded["kind"] == taken and loaded["text"] == stories[:4]
    out = capsys.readouterr().out
    assert said in out if said else not out


def test_a_held_out_share_hangs_on_the_texts_alone(stories: list[str]):
    dataset = Dataset.from_dict({"text": stories, "kind": ["story"] * len(stories)})
    held_out = hold_out(dataset, 0.25)
    assert len(held_out) == round(0.25 * len(stories))
    assert set(hold_out(dataset.select(range(len(stories) - 1, -1, -1)), 0.25)["text"]) == set(held_out["text"])
    assert len(hold_out(dataset, 0.001)) == 1
    assert len(without_stories(dataset, held_out)) == len(stories) - len(held_out)
    with pytest.raises(ValueError, match="leaves none to train on"):
        hold_out(dataset.select([0]), 0.05)


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
        "blank.jsonl": (b'{"text": "  "}\n', "no stories"),
        "bells.jsonl": (b'{"text": "\\u0007"}\n', "no stories"),
        "stories.doc": (b"x", "expected a file ending in"), "*.csv": (None, "no file matches"),
        "tails.jsonl": (b'{"text": "x", "kind": "tail"}\n{"text": "y", "kind": "odd"}\n', "odd"),
    }  # fmt: skip
    for name, (content, message) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            load_stories([str(path)], "train")
        assert name in str(error.value)


def test_own_stories_are_whole(stories: list[str]):
    assert load_stories([str(STORIES_FILE)], "train")["text"] == stories

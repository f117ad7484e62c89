"""Where stories come from: Hub data sets, files and folders of files, read by `datasets`' own readers.

find the files -> read them -> part texts into stories -> normalise -> drop empty ones, duplicates and held-out ones.
What was found and how it was taken is said in one line a source. `datasets` caches every step by its content, so a
second run starts at once.
"""

import codecs
import csv
import glob
import hashlib
import json
import os
import re
import reprlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import fsspec
import ftfy
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets, load_dataset

DEFAULT_DATASET = "roneneldan/TinyStories"
KINDS = ("story", "head", "tail", "middle")
FORMATS = {
    ".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".txt": "text"
}  # fmt: skip
SPLITS = ("train", "validation", "test")
COMPRESSIONS = (".gz", ".bz2", ".xz")

END_OF_TEXT = "<|endoftext|>"  # between the stories of TinyStories' own .txt files
SEPARATORS = {"blank lines": r"\n[^\S\n]*\n\s*", "lines": r"\n", "files": r"\Z"}
SAID = {"blank lines": "parted by blank lines", "lines": "one a line", "files": "one a file"}
SENTENCE_END = re.compile(r"""[.!?…]["'”’»)*_]*\s*\Z""")
FINGERPRINTED_BYTES = 1_000_000  # of a file that is streamed: to read all of it would take as long as to train on it
LONGEST_STORY = 5000  # words, five times the longest of TinyStories; more is many stories read as one


def normalise_story(text: str) -> str:
    r"""The one normalisation, for training, scoring and prompts alike.

    Mojibake is repaired and curly quotes are made straight (ftfy); blanks at line ends and runs of blanks become one
    blank; paragraphs, parted by "\n\n" in TinyStories V1 and by "\n" in V2, are parted by one "\n".
    """
    text = re.sub(r"â€(?=\s|$)", '"', text)  # a closing quote whose last byte was lost before the data was published
    text = ftfy.fix_text(text)
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(r" ?\n[\n ]*", "\n", text).strip()


def load_stories(
    sources: list[str], split: str, text_column: str = "text", story_separator: str | None = None
) -> Dataset:
    """Load and normalise the stories of some sources, without empty ones and duplicates.

    Args:
        sources: Hub data set names, files (`FORMATS`, compressed or not), folders of such files, or patterns (`*.txt`).
            A column `kind` (story, head, tail, middle) marks text without its beginning or end.
        split: "train" or "validation"; picks the split of a Hub data set and serves for messages.
        text_column: the column of the stories, in tables that have it; in others it is `text`.
        story_separator: what parts the stories of .txt files: "blank lines", "lines", "files" (each is one story), or
            any other text as it stands. None: found for each source, see `find_separator`.

    Returns:
        A data set with columns `text` and `kind`.

    Raises:
        FileNotFoundError, ValueError: a source is missing, empty or malformed; the message names it.
    """
    stories = concatenate_datasets([_load_source(source, split, text_column, story_separator) for source in sources])
    stories = stories.map(_normalise_batch, batched=True, desc=f"Normalising {split}")
    stories = _without(stories, seen=set())
    if not len(stories):
        raise ValueError(f"{', '.join(sources)}: no stories in it")
    return stories


def without_stories(stories: Dataset, others: Dataset) -> Dataset:
    """The stories that are not word for word among `others`: keeps validation out of the training split."""
    return _without(stories, seen={digest(text) for text in others["text"]})


def training_stories(sources: list[str], stories: Dataset, validation: Dataset) -> tuple[Dataset, str]:
    """The stories of some sources that may be trained on, and how many may not, in words for the reader.

    Raises:
        ValueError: none may.
    """
    clean = without_stories(stories, validation)
    left_out = f"{len(stories) - len(clean):,} of {len(stories):,} left out, they stand in the validation split"
    if not len(clean):
        raise ValueError(f"{sources}: no story to train on, {left_out}")
    return clean, left_out


def hold_out(stories: Dataset, share: float) -> Dataset:
    """A share of the stories to validate on, one at least, chosen by their texts alone: the same ones in any order.

    Raises:
        ValueError: nothing would be left to train on.
    """
    count = max(1, round(share * len(stories)))
    if count >= len(stories):
        raise ValueError(f"validation_share {share} of {len(stories)} stories leaves none to train on")
    digests = [digest(text) for text in stories["text"]]
    return stories.select(sorted(sorted(range(len(stories)), key=lambda index: digests[index])[:count]))


def find_files(source: str, split: str = "train") -> list[str]:
    """The files of a source, sorted; none for a name on the Hub. Of a folder those that `files_of_split` gives.

    Raises:
        FileNotFoundError: it names a file, folder or pattern that is not there.
        ValueError: a file cannot be read by its ending, or a folder holds none that can, or several formats, or a
            table of no split beside those of splits.
    """
    path = Path(source).expanduser()
    if not source:
        raise FileNotFoundError("expected a file, folder, pattern or Hub name to read stories from, got ''")
    if path.is_dir():
        files = files_of_split(path, _readable(path), split)
        if not files:
            raise ValueError(f"{source}: no file in this folder ends in {_endings()}")
    elif path.exists():
        files = [str(path)]
    elif glob.has_magic(source):
        files = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
        if not files:
            raise FileNotFoundError(f"{source}: no file matches")
    elif file_format(path) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise FileNotFoundError(f"{source}: no such file")
    else:
        return []
    formats = {file: file_format(Path(file)) for file in files}
    for file, ending in formats.items():
        if ending is None:
            raise ValueError(f"{file}: expected a file ending in {_endings()}")
    if len(found := sorted(set(map(str, formats.values())))) > 1:
        raise ValueError(f"{source}: holds {' and '.join(found)} files; name those to read, as {source}/*{found[0]}")
    return files


def files_of_split(folder: Path, files: list[str], split: str) -> list[str]:
    """Of tables whose names say which split they are (a data set's copy from the Hub), those of one; else all files.

    Raises:
        ValueError: one of the tables is of no split while others are.
    """
    names = {file: os.path.relpath(file, folder) for file in files}
    named = {s: [file for file in files if re.search(rf"(?<![a-z]){s}(?![a-z])", names[file])] for s in SPLITS}
    if sum(map(bool, named.values())) < 2 or not named[split] or file_format(Path(files[0])) == ".txt":
        return files
    first = named[split][0]
    for file in files:
        alike = file_format(Path(file)) == file_format(Path(first))  # else it is about the data, as dataset_infos.json
        if alike and not any(file in of_one for of_one in named.values()):
            raise ValueError(
                f"{folder}: {names[file]} is of no split ({', '.join(SPLITS)}), while {names[first]} is of {split}; "
                f"name the files to read, as {folder}/*{Path(file).suffix}"
            )
    return named[split]


def _readable(folder: Path) -> list[str]:
    return sorted(str(file) for file in folder.rglob("*") if file.is_file() and file_format(file))


def file_format(path: Path) -> str | None:
    """The ending in `FORMATS` that says how a file is read, in any case and before that of a compression, or None."""
    endings = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(endings) and endings[-1] in COMPRESSIONS
    ending = endings[-1 - compressed] if len(endings) > compressed else None
    return ending if ending in FORMATS and not (compressed and ending == ".parquet") else None  # compressed in itself


def _endings() -> str:
    return f"{', '.join(FORMATS)} (or one of these and {', '.join(COMPRESSIONS)})"


def open_source(
    source: str, split: str, streaming: bool = False, text_column: str = "text"
) -> Dataset | IterableDataset:
    """A Hub data set's split or some files, as `load_dataset` gives them, with a column `text`. Each .txt
    file is a row.

    Raises:
        FileNotFoundError, ValueError: it is missing, empty or malformed; the message names it.
    """
    if files := find_files(source, split):
        path = Path(source).expanduser()
        if left_out := [os.path.relpath(file, path) for file in _readable(path) if file not in files]:
            print(f"{source}: the files of {split}, without {', '.join(left_out[:3])}{', ...' * bool(left_out[3:])}")
        ending = str(file_format(Path(files[0])))
        for file in files:
            if Path(file).stat().st_size == 0:
                raise ValueError(f"{file}: the file is empty")
        try:
            stories = _read_files(files, ending, streaming, text_column)
        except Exception as error:  # datasets wraps what its readers raise in many types
            problem = str(error.__cause__ or error).removeprefix(f"{source}: ")
            raise ValueError(f"{source}: not a readable {ending} file ({problem})") from error
        if ending == ".txt":
            text_column = "text"
    else:
        try:
            stories = load_dataset(source, split=split, streaming=streaming)
        except (OSError, ValueError) as error:
            raise ValueError(f"{source}: no such file or folder, and nothing to read on the Hub ({error})") from error
    columns = stories.column_names or [text_column]
    column = text_column if text_column in columns else "text"
    if column not in columns:
        raise ValueError(f'{source}: no column "{text_column}", found {columns}; name the stories\' with --text_column')
    feature = (stories.features or {}).get(column)  # of some streams nothing is known yet
    held = getattr(feature, "dtype", None) or "lists or objects"
    if feature is not None and not re.search("string|binary|null", held):
        raise ValueError(f"{source}: column {column!r} holds {held}, expected texts; --text_column names another")
    if column != "text":
        stories = stories.select_columns([column, *({"kind"} & set(columns))]).rename_column(column, "text")
        print(f"{source}: stories from column {column!r}")
    elif text_column != "text":
        print(f"{source}: stories from column 'text', there is no {text_column!r}")
    return stories


def _read_files(files: list[str], ending: str, streaming: bool, text_column: str) -> Dataset | IterableDataset:
    """The rows of some files of one format, once what its reader would take amiss without a word is ruled out."""
    options: dict[str, object] = {"sample_by": "document"} if ending == ".txt" else {}
    if FORMATS[ending] == "csv":
        bare = ending == ".tsv" and has_bare_quotes(files[0])
        options = {"sep": "\t" if ending == ".tsv" else ",", "quoting": csv.QUOTE_NONE if bare else csv.QUOTE_MINIMAL}
        for file in files:
            check_fields(file, "\t" if ending == ".tsv" else ",", bare)
    if FORMATS[ending] == "json" and (columns := columns_with_nan(files, text_column)):
        dataset = IterableDataset if streaming else Dataset
        stamped = [(file, Path(file).stat().st_mtime_ns) for file in files]  # the cache knows a file by what is passed
        features = Features({name: Value("string") for name in columns})
        return dataset.from_generator(_text_rows, features, gen_kwargs={"files": stamped, "columns": tuple(columns)})
    return load_dataset(FORMATS[ending], data_files=files, split="train", streaming=streaming, **options)


def check_fields(file: str, separator: str, bare_quotes: bool) -> None:
    """Refuse a table with a row longer than its header: pandas takes its first fields for the names of rows, and a
    story with a comma and no quotes around it would lose its first words.

    Raises:
        ValueError: there is such a row; the message names its line.
    """
    csv.field_size_limit(sys.maxsize)  # else a text of more than 128 KiB is an error
    with fsspec.open(file, "rt", compression="infer", encoding="utf-8-sig", errors="replace", newline="") as lines:
        rows = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE if bare_quotes else csv.QUOTE_MINIMAL)
        width, line = 0, 1
        for row in rows:
            width = width or len(row)
            if len(row) > width:
                name = "tab" if separator == "\t" else "comma"
                raise ValueError(
                    f"{file}: line {line} has {len(row)} fields, the header has {width}; expected a {name} between "
                    f'fields only, and texts that hold a {name} in double quotes: "..."'
                )
            line = rows.line_num + 1


def columns_with_nan(files: list[str], text_column: str) -> list[str]:
    """The columns to read of JSON files in which a text or kind is NaN, as Python writes a blank; else none.

    Where a column holds more than strings and null, `datasets` gives all of it as JSON source, quotes and all.

    Raises:
        ValueError: a text is neither a string nor missing; the message names its file and row.
    """
    columns: set[str] = set()
    nan = False
    for file in files:
        try:
            for number, row in _json_rows(file):
                text = row[text_column] if text_column in row else row.get("text")
                if text is not None and not isinstance(text, str) and text == text:
                    raise ValueError(f"{file}: row {number} holds {reprlib.repr(text)}, expected a text in quotes")
                found = {text_column, "text", "kind"} & row.keys()
                columns |= found
                nan = nan or any(row[name] != row[name] for name in found)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return []  # its reader reads it another way, or says what is wrong
    return sorted(columns) if nan else []


def _json_rows(file: str) -> Iterator[tuple[int, dict[str, object]]]:
    """The rows of a JSON file, one a line or all in a list, each with its number from 1 (of its line, if so)."""
    with fsspec.open(file, "rb", compression="infer") as lines:
        is_list = lines.read(1000).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
        lines.seek(0)
        rows = json.loads(lines.read()) if is_list else (json.loads(line) if line.strip() else {} for line in lines)
        for number, row in enumerate(rows, start=1):
            yield number, row if isinstance(row, dict) else {"text": row}


def _text_rows(files: list[tuple[str, int]], columns: Sequence[str]) -> Iterator[dict[str, str | None]]:
    """Rows of JSON files, with null for what is no string; `files` is a list, as `datasets` parts only lists."""
    for file, _ in files:
        for _, row in _json_rows(file):
            yield {name: value if isinstance(value := row.get(name), str) else None for name in columns}


def has_bare_quotes(path: str) -> bool:
    """Whether quotes in a .tsv file are part of the text, since a field goes on after one; read as a table program's,
    they would vanish."""
    with fsspec.open(path, "rt", compression="infer", encoding="utf-8", errors="replace") as file:
        return bool(re.search(r'(?:^|\t)"[^"\t\n]*"[^"\t\n]', file.read(1_000_000), flags=re.MULTILINE))


def _load_source(source: str, split: str, text_column: str, separator: str | None) -> Dataset:
    stories, said = open_source(source, split, text_column=text_column), []
    files = find_files(source)
    if files and file_format(Path(files[0])) == ".txt":
        if separator is None:
            separator = find_separator(source, stories["text"])
        elif separator not in SEPARATORS and not any(len(split_text(text, separator)) > 1 for text in stories["text"]):
            raise ValueError(f"{source}: there is no {separator!r} in it to part its stories at")
        stories = stories.map(_split_texts, batched=True, batch_size=1, fn_kwargs={"separator": separator})
        said.append(SAID.get(separator, f"parted by {separator!r}"))
    stories = stories.cast_column("text", Value("string"))
    if not any(text and text.strip() for text in stories["text"]):
        raise ValueError(f"{source}: no stories in it")
    if "kind" in stories.column_names:
        text_like = getattr(stories.features["kind"], "dtype", None) in ("string", "large_string", "null")
        foreign = foreign_kinds(source, stories.unique("kind")) if text_like else ["no text"]
        if foreign:
            stories = stories.remove_columns("kind")
            values = ", ".join(foreign[:3])
            said.append(f"all taken as whole: column 'kind' ({values}) is not one of {', '.join(KINDS)}")
    if "kind" not in stories.column_names:
        stories = stories.add_column("kind", ["story"] * len(stories))
    if said:
        print(f"{source}: {len(stories):,} stories, {', '.join(said)}")
    return stories.select_columns(["text", "kind"]).cast(Features(text=Value("string"), kind=Value("string")))


def foreign_kinds(source: str, values: Sequence[object]) -> list[str]:
    """The values of a column `kind` that are not ours, if it means something else (a genre, say); none if it is ours.

    Raises:
        ValueError: it is ours (a head, tail or middle is in it), but some values are not.
    """
    unknown = sorted({str(value) for value in values if value is not None} - set(KINDS))
    if unknown and set(KINDS[1:]) & set(values):
        raise ValueError(f'{source}: column "kind" holds {unknown}, expected {KINDS}')
    return unknown


def find_separator(source: str, texts: Sequence[str]) -> str:
    """What parts the stories of .txt files.

    `<|endoftext|>` where it stands in one; nothing, each file being a story, where there are several of a story's
    length; else blank lines where there are some; else lines.

    Raises:
        ValueError: parted so, a text is far longer than a story, or most stop within a sentence (lines of a set width).
    """
    if any(END_OF_TEXT in text for text in texts):
        separator = END_OF_TEXT
    elif len(texts) > 1 and max(_num_words(text) for text in texts) <= LONGEST_STORY:
        separator = "files"
    elif any(re.search(SEPARATORS["blank lines"], text.strip()) for text in texts):
        separator = "blank lines"
    else:
        separator = "lines"
    stories = [story for text in texts for story in split_text(text, separator) if story.strip()]
    longest = max(map(_num_words, stories), default=0)
    ended = sum(bool(SENTENCE_END.search(story)) for story in stories)
    problem = ""
    if longest > LONGEST_STORY:
        problem = f"a story of {longest:,} words"
    elif separator in ("lines", "blank lines") and 2 * ended < len(stories):
        problem = f"{len(stories) - ended:,} of {len(stories):,} stories that do not end a sentence"
    if problem:
        raise ValueError(
            f"{source}: {SAID.get(separator, separator)}, there would be {problem}; say what parts the stories "
            f"with --story_separator: {', '.join(map(repr, SEPARATORS))}, or the text that stands between two"
        )
    return separator


def _num_words(text: str) -> int:
    return len(text.split())


def split_text(text: str, separator: str) -> list[str]:
    r"""The stories of a text, empty ones too; `separator` is a name in `SEPARATORS` or the text between two stories, in
    which `\n` may stand for a line's end."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if separator in SEPARATORS:
        return re.split(SEPARATORS[separator], text)
    return text.split(separator.replace("\\n", "\n"))


def _split_texts(batch: dict[str, list], separator: str) -> dict[str, list]:
    return {"text": [story for text in batch["text"] for story in split_text(text, separator) if story.strip()]}


def _normalise_batch(batch: dict[str, list]) -> dict[str, list]:
    texts = [normalise_story(text or "") for text in batch["text"]]
    return {"text": texts, "kind": [kind or "story" for kind in batch["kind"]]}


def digest(text: str) -> bytes:
    """Of a story, 16 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def fingerprint(texts: Iterable[str]) -> str:
    """Of some texts in their order."""
    return hashlib.blake2b(b"".join(map(digest, texts)), digest_size=16).hexdigest()


def files_fingerprint(sources: list[str]) -> str:
    """Of the names, sizes and beginnings of the files to train on; what is on the Hub is not looked at."""
    known = []
    for source in sources:
        for file in map(Path, find_files(source)):
            with file.open("rb") as opened:
                beginning = hashlib.blake2b(opened.read(FINGERPRINTED_BYTES), digest_size=16).hexdigest()
            known.append(f"{file.name} {file.stat().st_size} {beginning}")
    return fingerprint(known)


def _without(stories: Dataset, seen: set[bytes]) -> Dataset:
    keep = []
    for index, text in enumerate(text for batch in stories.iter(1000) for text in batch["text"]):
        text_digest = digest(text)
        if text and text_digest not in seen:
            seen.add(text_digest)
            keep.append(index)
    return stories.select(keep)

"""Where stories come from: Hub data sets, files and folders of files, read by `datasets`' own readers.

find the files -> read them -> part texts into stories -> normalise -> drop empty ones, duplicates and held-out ones.
What was found and how it was taken is said in one line a source. `datasets` caches every step by its content, so a
second run starts at once.
"""

import csv
import glob
import hashlib
import os
import re
from collections.abc import Sequence
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
    """The files of a source, sorted; none for a name on the Hub. Of a folder of tables whose names say which split they
    are (a data set's copy from the Hub), those of `split`.

    Raises:
        FileNotFoundError: it names a file, folder or pattern that is not there.
        ValueError: a file cannot be read by its ending, or a folder holds none that can, or several formats.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(str(file) for file in path.rglob("*") if file.is_file() and file_format(file))
        if not files:
            raise ValueError(f"{source}: no file in this folder ends in {_endings()}")
        named = {
            name: [file for file in files if re.search(rf"(?<![a-z]){name}(?![a-z])", os.path.relpath(file, path))]
            for name in SPLITS
        }
        if file_format(Path(files[0])) != ".txt" and sum(map(bool, named.values())) > 1 and named.get(split):
            files = named[split]
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
        ending = str(file_format(Path(files[0])))
        for file in files:
            if Path(file).stat().st_size == 0:
                raise ValueError(f"{file}: the file is empty")
        options: dict[str, object] = {"sample_by": "document"} if ending == ".txt" else {}
        if ending == ".tsv":
            options = {"sep": "\t", "quoting": csv.QUOTE_NONE if has_bare_quotes(files[0]) else csv.QUOTE_MINIMAL}
        try:
            stories = load_dataset(FORMATS[ending], data_files=files, split="train", streaming=streaming, **options)
        except Exception as error:  # datasets wraps what its readers raise in many types
            raise ValueError(f"{source}: not a readable {ending} file ({error.__cause__ or error})") from error
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
    if column != "text":
        stories = stories.select_columns([column, *({"kind"} & set(columns))]).rename_column(column, "text")
        print(f"{source}: stories from column {column!r}")
    elif text_column != "text":
        print(f"{source}: stories from column 'text', there is no {text_column!r}")
    return stories


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
    """A story's fingerprint, 16 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _without(stories: Dataset, seen: set[bytes]) -> Dataset:
    keep = []
    for index, text in enumerate(text for batch in stories.iter(1000) for text in batch["text"]):
        text_digest = digest(text)
        if text and text_digest not in seen:
            seen.add(text_digest)
            keep.append(index)
    return stories.select(keep)

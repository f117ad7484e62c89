"""A story with all that is needed to tell it again: what a shelf keeps, a link carries and a page shows.

A tale is told in steps: the first from the reader's words, each further one from a part of what was told before.
Whatever comes from outside (a link, a reader's browser, an opened file) is read here, field by field; anything that is
not exactly a tale is refused.
"""

import hashlib
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from engine import MAX_DRAFTS

MODELS = ("modern", "classic")
LENGTHS = ("short", "medium", "long")
MAX_START, MAX_END, MAX_STORY, MAX_STEPS = 2000, 200, 12_000, 8  # characters, and steps
SENTENCE = re.compile(r"""\s*\S.*?(?:[.!?]["'”’]{0,2}(?=\s+[^\sa-z])|$)""", re.MULTILINE)


class TaleError(ValueError):
    """What was read is not a tale; the message says where."""


@dataclass(frozen=True)
class Step:
    """One telling: the words it starts with, or how many characters of the tale so far it goes on from."""

    start: str | None
    keep: int | None
    end: str | None
    max_words: int
    seed: int
    include: tuple[str, ...] = ()
    length: str | None = None
    stop_at_first: bool = False
    temperature: float = 0.5
    top_p: float = 0.95
    num_candidates: int = 1

    def __post_init__(self) -> None:
        """
        Raises:
            TaleError: some words are longer than a shelf or a link keeps.
        """
        for name, words, most in (("start", self.start, MAX_START), ("end", self.end, MAX_END)):
            if len(words or "") > most:
                raise TaleError(f"{name} has more than {most} characters")
        if any(len(word) > MAX_END for word in self.include):
            raise TaleError(f"include has a word of more than {MAX_END} characters")

    def wishes(self, told: str) -> dict[str, Any]:
        """Keyword arguments of the pipeline; `told` is the tale so far."""
        wishes = asdict(self)
        keep = wishes.pop("keep")
        if keep is not None:
            del wishes["start"]
            wishes["continue_from"] = told[:keep]
        return wishes


@dataclass(frozen=True)
class Tale:
    """A story that was told."""

    text: str
    steps: tuple[Step, ...]
    model: str
    revision: str
    finish_reason: str
    seconds: float
    told: str  # day, as 2026-11-27
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", checksum(self.text))

    @property
    def start(self) -> str:
        """The first words, as they stand in the text."""
        return self.text[: len((self.steps[0].start or "").strip())]

    @property
    def end(self) -> str | None:
        return self.steps[-1].end

    @property
    def num_words(self) -> int:
        return len(self.text.split())

    @property
    def title(self) -> str:
        """The first words, as many as name the story on a shelf."""
        words = self.text.split()
        return " ".join(words[:6]) + (" …" if len(words) > 6 else "")

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        del record["key"]
        return record


def checksum(text: str) -> str:
    """Ten hexadecimal digits by which a story is known again."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def sentences(text: str) -> list[tuple[int, int]]:
    """Where each sentence begins and ends, blanks before it left out; a paragraph ends one too."""
    spans = []
    for match in SENTENCE.finditer(text):
        begin = match.start() + len(match.group()) - len(match.group().lstrip())
        spans.append((begin, match.end()))
    return spans


def parse_step(data: Any, first: bool) -> Step:
    """
    Raises:
        TaleError: a field is missing, unknown, of another type, or outside its bounds.
    """
    known = {"num_candidates": 1} | data if isinstance(data, dict) else data  # kept before drafts competed
    fields = _record(known, Step, "a step")
    if first:
        start, keep = _text(fields, "start", MAX_START), _nothing(fields, "keep")
    else:
        start, keep = _nothing(fields, "start"), _number(fields, "keep", 1, MAX_STORY)
    include = fields["include"]
    if not isinstance(include, (list, tuple)) or len(include) > 3:
        raise TaleError("include is no list of up to three words")
    return Step(
        start=start,
        keep=keep,
        end=None if fields["end"] is None else _text(fields, "end", MAX_END),
        max_words=_number(fields, "max_words", 1, 1000),
        seed=_number(fields, "seed", 0, 2**40),
        include=tuple(_text({"include": word}, "include", MAX_END) for word in include),
        length=None if fields["length"] is None else _one_of(fields, "length", LENGTHS),
        stop_at_first=_one_of(fields, "stop_at_first", (True, False)),
        temperature=_fraction(fields, "temperature", 0, 2),
        top_p=_fraction(fields, "top_p", 0.01, 1),
        num_candidates=_number(fields, "num_candidates", 1, MAX_DRAFTS),
    )


def parse_steps(data: Any) -> tuple[Step, ...]:
    """
    Raises:
        TaleError: as in `parse_step`, or none, or too many of them.
    """
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_STEPS:
        raise TaleError(f"steps is no list of 1 to {MAX_STEPS}")
    return tuple(parse_step(step, first=number == 0) for number, step in enumerate(data))


def parse_tale(data: Any) -> Tale:
    """
    Raises:
        TaleError: as in `parse_steps`, for each field of the tale.
    """
    fields = _record(data, Tale, "a tale")
    return Tale(
        text=_text(fields, "text", MAX_STORY),
        steps=parse_steps(fields["steps"]),
        model=_one_of(fields, "model", MODELS),
        revision=_text(fields, "revision", 100, empty=True),
        finish_reason=_one_of(fields, "finish_reason", ("ending", "eos", "length")),
        seconds=_fraction(fields, "seconds", 0, 3600),
        told=_matching(fields, "told", r"\d{4}-\d\d-\d\d"),
    )


def _record(data: Any, kind: type, name: str) -> dict[str, Any]:
    wanted = {field for field, spec in kind.__dataclass_fields__.items() if spec.init}  # type: ignore[attr-defined]
    if not isinstance(data, dict) or set(data) != wanted:
        raise TaleError(f"{name} has other fields than {', '.join(sorted(wanted))}")
    return data


def _text(fields: dict[str, Any], name: str, longest: int, empty: bool = False) -> str:
    value = fields[name]
    if not isinstance(value, str) or len(value) > longest or not (empty or value.strip()):
        raise TaleError(f"{name} is no text of 1 to {longest} characters")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise TaleError(f"{name} holds half a character")
    return value


def _matching(fields: dict[str, Any], name: str, pattern: str) -> str:
    value = _text(fields, name, 100)
    if not re.fullmatch(pattern, value, re.ASCII):
        raise TaleError(f"{name} is written in another way than expected")
    return value


def _number(fields: dict[str, Any], name: str, least: int, most: int) -> int:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise TaleError(f"{name} is no whole number from {least} to {most}")
    return value


def _fraction(fields: dict[str, Any], name: str, least: float, most: float) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise TaleError(f"{name} is no number from {least} to {most}")
    return float(value)


def _one_of(fields: dict[str, Any], name: str, accepted: tuple) -> Any:
    value = fields[name]
    if type(value) is not type(accepted[0]) or value not in accepted:
        raise TaleError(f"{name} is none of {', '.join(map(str, accepted))}")
    return value


def _nothing(fields: dict[str, Any], name: str) -> None:
    if fields[name] is not None:
        raise TaleError(f"{name} has no place in this step")

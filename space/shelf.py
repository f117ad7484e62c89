"""The shelf: the reader's stories, kept in the reader's own browser, and as one file that can be opened again."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import streamlit as st
from page import asset
from tale import Tale, TaleError, parse_tale

MOST = 60  # tales, the latest; storage.js holds to it too, and to the order of `latest`
LARGEST_FILE = 1_000_000  # bytes
STORAGE = st.components.v2.component("story_shelf", js=asset("storage.js"))


@dataclass
class Shelf:
    """The tales by their key, oldest first; what was taken off is remembered, so that it does not come back."""

    tales: dict[str, Tale] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)  # texts, by key
    usable: bool = True  # the browser lets the page keep things
    heard: Any = None  # what the browser said last

    def add(self, tale: Tale) -> None:
        """One that has just been told."""
        self.removed.pop(tale.key, None)
        self.tales = latest([*self.tales.values(), tale])

    def add_saved(self, tales: list[Tale]) -> None:
        """Those of a file; they stand before the others of their day, of which none shall make room for them."""
        for tale in tales:
            self.removed.pop(tale.key, None)
        self.tales = latest([*tales, *self.tales.values()])

    def remove(self, *keys: str) -> None:
        for key in keys:
            if key in self.tales:
                self.removed[key] = self.tales.pop(key).text

    def latest_first(self) -> list[Tale]:
        return list(reversed(self.tales.values()))

    def keep_in_browser(self, session: str) -> None:
        """Bring this shelf and the browser's together; a tale in the browser that is not one is passed over."""
        shelf = [tale.to_json() for tale in self.tales.values()]
        data = {"shelf": shelf, "removed": list(self.removed.values()), "session": session}
        result = STORAGE(key="storage", data=data, on_stored_change=lambda: None)
        self.take_in(result.stored)

    def take_in(self, stored: Any) -> None:
        """What the browser has said it keeps."""
        if stored == self.heard or not isinstance(stored, dict) or not isinstance(stored.get("tales"), list):
            return
        self.heard = stored
        self.usable = stored.get("usable") is not False
        kept = []
        for data in stored["tales"][-MOST:]:
            with suppress(TaleError):
                kept.append(parse_tale(data))
        gone = stored.get("gone")  # taken off on another page
        gone = gone if isinstance(gone, list) else []
        both = [*kept, *self.tales.values()]  # those here were told since
        self.tales = latest(tale for tale in both if tale.key not in self.removed and tale.text not in gone)


def latest(tales: Iterable[Tale]) -> dict[str, Tale]:
    """The last MOST of them, by their key: day after day, and those of one day as they come; of two that are the same,
    the second."""
    alone: dict[str, Tale] = {}
    for tale in tales:
        alone.pop(tale.key, None)
        alone[tale.key] = tale
    return {tale.key: tale for tale in sorted(alone.values(), key=lambda tale: tale.told)[-MOST:]}


def to_file(tales: list[Tale]) -> bytes:
    content = {"tiny_stories": 1, "tales": [tale.to_json() for tale in tales]}
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


def from_file(content: bytes) -> list[Tale]:
    """
    Raises:
        TaleError: the file is not, field by field, one that `to_file` could have made.
    """
    if len(content) > LARGEST_FILE:
        raise TaleError(f"the file is larger than {LARGEST_FILE // 1_000_000} MB")
    try:
        data = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TaleError("the file is not a saved shelf") from error
    if not isinstance(data, dict) or set(data) != {"tiny_stories", "tales"} or data["tiny_stories"] != 1:
        raise TaleError("the file is not a saved shelf")
    if not isinstance(data["tales"], list) or len(data["tales"]) > MOST:
        raise TaleError(f"the shelf holds more than {MOST} stories")
    return [parse_tale(tale) for tale in data["tales"]]


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")

"""How the page looks: its cover, its type, the book a story is set in, and what it says when something is amiss."""

import re
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import streamlit as st
from tale import Tale, sentences

STRAIGHT = str.maketrans("“”‘’", "\"\"''")
WEB = Path(__file__).with_name("web")
ENDINGS = {
    "ending": "It ends on your word.",
    "eos": "The model ended it where it liked.",
    "length": "It reached the longest length before an end came.",
}


def asset(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


STYLE = f"<style>{asset('page.css')}</style>"
COVER = st.components.v2.component("story_cover", html=asset("cover.html"), isolate_styles=False)
BOOK = st.components.v2.component(
    "story_book", html=asset("book.html"), css=asset("book.css"), js=asset("book.js"), isolate_styles=False
)


def open_page() -> None:
    st.set_page_config(page_title="Tiny Story Generator", page_icon="📖", layout="centered")
    st.html(STYLE)
    COVER(key="cover")


def foot(model_id: str) -> None:
    """What the model is, what the page keeps, and where the model's own page is if it is on the Hub."""
    hub = "" if Path(model_id).exists() else f"https://huggingface.co/{quote(model_id)}"
    more = f'<p><a href="{hub}" target="_blank" rel="noopener">How the model works, and how good it is</a></p>'
    st.html(
        '<footer class="foot"><p>A small model writes these stories. It has 14 million parameters and has read nothing '
        "but short stories for small children; it makes things up, and at times loses its thread.</p><p>Words that do "
        "not belong in a children’s story are kept out by a list, which cannot judge what a sentence means.</p><p>Your "
        "words and stories are not stored here: the shelf is in your own browser.</p>"
        f"{more if hub else ''}</footer>"
    )


def notice(text: str, good: bool = False) -> None:
    """A message that may repeat a reader's words: as they are, never as Markdown."""
    kind, role = ("notice good", "status") if good else ("notice", "alert")
    st.html(f'<div class="{kind}" role="{role}"><p>{escape(text)}</p></div>')


def line(text: str) -> None:
    st.html(f'<p class="line">{escape(text)}</p>')


def book(
    tale: Tale | None, key: str, reveal: bool = False, choose: bool = False, chosen: int | None = None, **callbacks: Any
) -> Any:
    """A story set as a book's page, or the empty page.

    Args:
        choose: a click on a sentence is told, as `sentence` of the result.
        chosen: number of the sentence to be lit.
    """
    data = {
        "id": f"{tale.key} {key}" if tale else "",
        "paragraphs": paragraphs(tale) if tale else [],
        "label": "The story" if key == "book" else "A version of the story",
        "testid": "story" if key == "book" else "version",
        "reveal": reveal,
        "aloud": key == "book",
        "choose": choose,
        "chosen": chosen,
    }
    return BOOK(key=key, data=data, **callbacks)


def paragraphs(tale: Tale) -> list[list[dict[str, Any]]]:
    """For each paragraph its sentences: their number, and their text in parts, [text, whether it was asked for]."""
    text = tale.text
    asked = [(0, len(tale.start))]
    if tale.end and tale.finish_reason == "ending" and (place := ending_place(text, tale.end)):
        asked.append(place)
    result: list[list[dict[str, Any]]] = [[]]
    reached = 0
    for number, (begin, end) in enumerate(sentences(text)):
        if "\n" in text[reached:begin] and result[-1]:
            result.append([])
        parts, at = [], begin if "\n" in text[reached:begin] or number == 0 else reached
        cuts = sorted({at, end, *(cut for span in asked for cut in span if at < cut < end)})
        for left, right in pairwise(cuts):
            parts.append([text[left:right], any(low <= left and right <= high for low, high in asked)])
        result[-1].append({"number": number, "parts": parts})
        reached = end
    return result


def ending_place(text: str, end: str) -> tuple[int, int] | None:
    """Where the asked-for ending stands, without its punctuation and quotes; curly ones are straight in a story."""
    bare = end.translate(STRAIGHT).strip(".!?\"' ")
    found = list(re.finditer(re.escape(bare), text.translate(STRAIGHT), re.IGNORECASE))
    return found[-1].span() if bare and found else None


def facts(tale: Tale) -> None:
    """How the story ended, and by what it can be told again."""
    told = f"{tale.num_words} words in {tale.seconds:.1f} seconds · {tale.model} model · seed {tale.steps[-1].seed}"
    st.html(f'<div class="facts"><p><strong>{ENDINGS[tale.finish_reason]}</strong> {escape(told)}</p></div>')


def in_line(place: Any, before: int) -> None:
    """A reader's place among those who wait."""
    who = "one story is" if before == 1 else f"{before} stories are"
    place.html(f'<div class="notice good" role="status"><p>You are in line: {who} told before yours.</p></div>')


def address() -> str:
    """The page's own, without a query."""
    return (st.context.url or "").split("?")[0].split("#")[0]

"""The page: a reader gives the first words and the last, the model writes the story between them.

streamlit run space/app.py        the model of this clone, or of MODEL_ID (a folder or a Hub name)
"""

import html
import os
from pathlib import Path
from typing import Any

import streamlit as st
from transformers import Pipeline, pipeline

CLONE = Path(__file__).resolve().parent.parent / "modeling"
ENDINGS = {
    "ending": "It ends on your word.",
    "eos": "The model ended it where it liked.",
    "length": "It reached the longest length before an end came.",
}
STYLE = """<style>
.story {background: #fffdf9; border: 1px solid #e6d5bd; border-radius: 14px; padding: 1.6rem 2rem;
        font-size: 1.2rem; line-height: 1.75; min-height: 6rem}
.story p {margin: 0 0 .8rem; font-size: inherit}
.story mark {background: #f7d9a8; color: inherit; border-radius: 5px; padding: .05rem .3rem}
.story .pen {color: #b4532a}
</style>"""


@st.cache_resource(show_spinner="Opening the story book …")
def load(model: str) -> Pipeline:
    """The pipeline, loaded once for all readers, its decoder built."""
    teller = pipeline("story-generation", model=model, trust_remote_code=True)
    teller("Once", max_words=1)  # builds the decoder, so that no reader waits for it
    return teller


def model_name() -> str:
    """MODEL_ID if it is set, else the model beside this page in a clone."""
    if os.environ.get("MODEL_ID"):
        return os.environ["MODEL_ID"]
    if (CLONE / "config.json").is_file():
        return str(CLONE)
    raise OSError("no model beside this page: set MODEL_ID to a Hub name or a folder")


def story_html(text: str, start: str, end: str | None, writing: bool) -> str:
    """The story as paragraphs, the reader's words marked; the ending once it is the last word of a finished story."""
    body, tail = text[len(start) :], ""
    if end and not writing:
        at = body.lower().rfind(end.lower())
        if at >= 0:
            body, tail = body[:at], body[at:]
    marked = f"<mark>{html.escape(start)}</mark>{html.escape(body)}"
    if tail:
        marked += f"<mark>{html.escape(tail[: len(end or '')])}</mark>{html.escape(tail[len(end or '') :])}"
    paragraphs = "".join(f"<p>{part}</p>" for part in marked.split("\n"))
    if writing:
        paragraphs = paragraphs.removesuffix("</p>") + '<span class="pen"> ✎</span></p>'
    return f'<div class="story" data-testid="story">{paragraphs}</div>'


def tell(teller: Pipeline, start: str, end: str, max_words: int) -> None:
    """Write a story into the page as it comes; what is written is kept if the reader clicks away."""
    wishes: dict[str, Any] = {"end": end.strip() or None, "max_words": max_words}
    place = st.empty()
    first, text = "", ""
    try:
        for piece in teller.stream_story(start, **wishes):
            if isinstance(piece, dict):
                st.session_state.result = piece
                break
            first = first or piece
            text += piece
            st.session_state.result = {"story": text, "start": first, "end": None, "finish_reason": None}
            place.html(story_html(text, first, None, writing=True))
    except ValueError as problem:
        st.session_state.result = None
        st.error(f"This story cannot be told: {problem}.")
    place.empty()


def show(result: dict[str, Any]) -> None:
    """A finished story, its ending marked, and how it ended."""
    end = result["end"].rstrip(".!?\"'") if result["end"] else None
    st.html(story_html(result["story"], result["start"], end, writing=False))
    if result["finish_reason"]:
        facts = f"{ENDINGS[result['finish_reason']]} {result['num_words']} words · seed {result['seed']}"
    else:
        facts = "The writing was interrupted."
    st.caption(facts)


def main() -> None:
    """The page."""
    st.set_page_config(page_title="Tiny Story Generator", page_icon="📖", layout="centered")
    st.html(STYLE)
    st.title("Tiny Story Generator")
    st.write("Give the first words and the last. A small model writes the story between them.")
    try:
        teller = load(model_name())
    except (OSError, ValueError) as problem:
        st.error(f"The model could not be loaded: {problem}")
        st.stop()
    with st.form("wishes", border=False):
        left, right = st.columns(2)
        start = left.text_input("The story starts with", "Once upon a time", max_chars=2000, key="start")
        end = right.text_input(
            "and ends with", "happy", max_chars=200, key="end",
            help="A word or a short phrase. Leave it empty to let the model end where it likes.",
        )  # fmt: skip
        max_words = st.slider("Longest length, in words", 20, 300, 120, step=10, key="max_words")
        asked = st.form_submit_button("Tell the story", type="primary", key="tell")
    if asked:
        tell(teller, start, end, max_words)
    if st.session_state.get("result"):
        show(st.session_state.result)


main()

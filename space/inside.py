"""Looking inside a story: how sure the model was of each word, where the ending came from, and the drafts that lost."""

import math
from html import escape
from itertools import takewhile
from typing import Any

import altair
import streamlit as st
from tale import Tale

COLOURS = {"given": "#c98a2b", "sampled": "#b9764f", "planned": "#5e8038", "backwards": "#2f6f9c", "named": "#7a5ea8"}
ORIGINS = {
    "given": "your words", "sampled": "drawn by the model", "planned": "the ending, as it had planned",
    "backwards": "written backwards, from your words", "named": "a ready sentence that names your word",
}  # fmt: skip


def look_inside(tale: Tale, details: dict[str, Any]) -> None:
    """
    Args:
        details: of the tale's last step, as the pipeline gives them, and its score.
    """
    words = details["words"]
    st.markdown("**How sure was the model of each word?** The deeper its colour, the surer. Rest on a word, or "
                "touch it, to see what else it thought of.")  # fmt: skip
    st.html(shaded(words))
    origins = [origin for origin in ORIGINS if any(word["origin"] == origin for word in words)]
    st.html('<div class="key">' + "".join(f'<span class="{o}">{ORIGINS[o]}</span>' for o in origins) + "</div>")
    st.markdown(f"**Where did the ending come from?** {ending(tale, words)}")
    st.altair_chart(sureness(words), alt="How sure the model was of each word, from the first to the last")
    if details["rejected"]:
        drafts = tale.steps[-1].num_candidates
        st.markdown(
            f"**Which drafts lost?** {drafts} drafts were begun. Every few words the half that the model found less "
            "likely gave up and went on from the other half, so the likeliest, which are here, are alike. Shown was "
            "the one whose words after the opening, and whose ending, the model found likeliest."
        )
        ends = [{"story": tale.text, "score": details["score"]}, *details["rejected"]]
        st.altair_chart(contest(ends), alt="How likely the model found each draft")
        for number, draft in enumerate(details["rejected"], 2):
            st.html(f'<div class="lost"><p>{_lines(draft["story"])}</p><p class="line">draft {number}</p></div>')


def shaded(words: list[dict[str, Any]]) -> str:
    """The story as HTML, each word on a ground as dark as the model was sure of it."""
    parts = []
    for word in words:
        text = word["text"]
        blank = text[: len(text) - len(text.lstrip())]
        others = ", ".join(f"{_visible(piece)} {100 * share:.0f} %" for piece, share in word["alternatives"])
        tip = f"{100 * word['probability']:.1f} % · {others}"
        shade = round(36 * word["probability"])
        parts.append(
            f'{_lines(blank)}<span class="{word["origin"]}" title="{escape(tip)}" tabindex="-1" '
            f'style="background: color-mix(in srgb, {COLOURS["sampled"]} {shade}%, transparent)">'
            f"{_lines(text.strip())}</span>"
        )
    return f'<div class="told" dir="auto">{"".join(parts)}</div>'


def ending(tale: Tale, words: list[dict[str, Any]]) -> str:
    """One line about how the story came to its end."""
    closing = list(takewhile(lambda word: word["origin"] == words[-1]["origin"], reversed(words)))
    if words[-1]["origin"] == "backwards":
        return (
            f"The model would not end on your words by itself, so its last {len(closing)} words were written backwards "
            "from them: of several such ways to get there, the one that it found likeliest."
        )
    if words[-1]["origin"] == "named":
        return "The model knows no good sentence for your word. Somebody learns it, in sentences always at hand."
    if any(word["origin"] == "planned" for word in words):
        return "It was told your ending before the first word, and came to it by itself."
    return "It ended where it liked." if tale.finish_reason == "eos" else "It stopped there, without a plan."


def sureness(words: list[dict[str, Any]]) -> altair.Chart:
    rows = [
        {
            "number": number,
            "word": word["text"].strip(),
            "probability": word["probability"],
            "origin": ORIGINS[word["origin"]],
            "instead": ", ".join(f"{_visible(piece)} {100 * share:.0f} %" for piece, share in word["alternatives"]),
        }
        for number, word in enumerate(words, 1)
    ]
    return (
        altair.Chart(altair.Data(values=rows), height=190)
        .mark_bar()
        .encode(
            x=altair.X(
                "number:O", title="word of the story",
                axis=altair.Axis(values=list(range(10, len(rows) + 1, 10)), labelAngle=0, ticks=False),
            ),
            y=altair.Y("probability:Q", title="how sure", axis=altair.Axis(format="%"), scale={"domain": [0, 1]}),
            color=altair.Color(
                "origin:N", title=None, legend=None,
                scale=altair.Scale(domain=list(ORIGINS.values()), range=[COLOURS[origin] for origin in ORIGINS]),
            ),
            tooltip=["word:N", altair.Tooltip("probability:Q", format=".1%"), "instead:N", "origin:N"],
        )
    )  # fmt: skip


def contest(drafts: list[dict[str, Any]]) -> altair.Chart:
    rows = [
        {
            "draft": f"draft {number}" + (", shown" if number == 1 else ""),
            "likelihood": math.exp(draft["score"]),
            "chosen": number == 1,
            "end": draft["story"][-60:],
        }
        for number, draft in enumerate(drafts, 1)
    ]
    return (
        altair.Chart(altair.Data(values=rows), height=30 * len(rows) + 75)
        .mark_bar(cornerRadius=4)
        .encode(
            x=altair.X(
                "likelihood:Q",
                title="how likely a word was (geometric mean), less what an odd ending takes",
                axis=altair.Axis(format="%", tickCount=5),
            ),
            y=altair.Y("draft:N", title=None, sort=None),
            color=altair.condition("datum.chosen", altair.value(COLOURS["planned"]), altair.value("#b9a58a")),
            tooltip=[altair.Tooltip("likelihood:Q", format=".1%"), altair.Tooltip("end:N", title="ends")],
        )
    )


def _visible(piece: str) -> str:
    """A token as a reader can see it: a line break, and the end."""
    return piece.replace("\n", "↵").strip() or "␣"


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")

"""The page: a reader gives the first words and the last, the model writes the story between them.

streamlit run space/app.py        the model of this clone, or of MODEL_ID (a folder or a Hub name)
"""

import page
import shelf
import streamlit as st
from desk import (
    NUM_DRAFTS,
    Desk,
    ask_again,
    ask_first,
    ask_for_more,
    ask_for_shared,
    ask_what_if,
    desk_of,
    in_page_words,
    tell_what_is_asked,
)
from engine import MAX_DRAFTS, Engine, chosen_model
from inside import look_inside
from keep import as_markdown, as_page, as_pdf, as_picture, as_text, file_name, lacking
from share import to_link
from streamlit.delta_generator import DeltaGenerator
from tale import LENGTHS, MODELS, Tale, TaleError, sentences
from wishes import EXAMPLES, by_chance, wished

SAVED = [
    ("Text", as_text, ".txt", "text/plain", "notes"),
    ("Markdown", as_markdown, ".md", "text/markdown", "markdown"),
    ("Page to print", as_page, ".html", "text/html", "print"),
    ("PDF", as_pdf, ".pdf", "application/pdf", "picture_as_pdf"),
    ("Picture", as_picture, ".png", "image/png", "image"),
]


def main() -> None:
    page.open_page()
    try:
        engine = Engine.load(*chosen_model())
    except OSError as problem:
        page.notice(f"The model could not be loaded: {problem}")
        st.stop()
    desk = desk_of(st.session_state)
    ask_for_shared(desk, st.query_params)
    message = write_wishes(desk)
    tell_what_is_asked(desk, engine, lambda before: page.in_line(message, before))
    message.empty()
    show_story(desk)
    if desk.problem:
        with st.container() if desk.below else message:
            page.notice(desk.problem)
    elif desk.news:
        with message:
            page.notice(desk.news, good=True)
    desk.shelf.keep_in_browser(desk.session)  # with the story that was just told
    if desk.tale:
        with st.container(key="actions", horizontal=True):
            go_on(desk, desk.tale)
            keep_and_share(desk.tale)
        with st.container(key="views", horizontal=True):
            side_by_side = len(desk.shelf.tales) > 1 and st.toggle("Compare side by side", key="compare")
            inside = st.toggle("Look inside", key="inside")
        if side_by_side:
            compare(desk, desk.tale)
        if inside:
            show_inside(desk, engine, desk.tale)
    show_shelf(desk)
    page.foot(chosen_model()[0])


def write_wishes(desk: Desk) -> DeltaGenerator:
    """The fields and buttons by which a first story is asked for; a place for a message stands under them."""
    with st.container(key="examples", horizontal=True):
        for name, words in EXAMPLES.items():
            st.button(name, key=f"example {name}", on_click=ask_with, args=(desk, words))
        st.button("Surprise me", key="surprise", icon=":material/casino:", on_click=lambda: ask_with(desk, by_chance()))
    with st.form("wishes", border=False):
        left, right = st.columns(2)
        left.text_input("The story starts with", "Once upon a time", key="start")
        right.text_input("and ends with", "happy", key="end", placeholder="wherever the story likes")
        left, right = st.columns(2)
        left.slider("Longest length, in words", 20, 300, 120, step=10, key="max_words")
        right.form_submit_button(
            "Tell the story", type="primary", key="tell", icon=":material/auto_stories:", width="stretch",
            on_click=ask, args=(desk,),  # as a callback: what it returns is lost if another click stops the script here
        )  # fmt: skip
        message = st.empty()
        with st.expander("More wishes", icon=":material/tune:"):
            more_wishes()
    return message


def ask_with(desk: Desk, words: dict[str, str]) -> None:
    """Put an example's words, or some by chance, into the fields, and ask for their story."""
    st.session_state.update(words)
    ask(desk)


def ask(desk: Desk) -> None:
    try:
        ask_first(desk, wished(st.session_state))
    except ValueError as problem:
        desk.refuse(in_page_words(problem))


def more_wishes() -> None:
    st.text_input(
        "Words to include", key="include", placeholder="volcano, umbrella",
        help="Up to three, with commas between them; they come as they are or inflected.",
    )  # fmt: skip
    left, right = st.columns(2)
    left.selectbox("Length", ["as it comes", *LENGTHS], key="length", filter_mode=None)
    right.selectbox(
        "Model",
        MODELS,
        key="model",
        filter_mode=None,
        help="Modern is the better writer; classic the original architecture.",
    )
    left, right = st.columns(2)
    left.select_slider("Drafts that compete", [1, 4, NUM_DRAFTS, 12, MAX_DRAFTS], NUM_DRAFTS, key="num_drafts")
    right.text_input("Seed", key="seed", placeholder="by chance", help="The same wishes and seed, the same story.")
    left, right = st.columns(2)
    left.slider("Temperature", 0.0, 1.5, 0.5, step=0.05, key="temperature", help="Higher is bolder.")
    right.slider("Top-p", 0.5, 1.0, 0.95, step=0.01, key="top_p", help="Lower leaves unlikely words out.")
    st.checkbox(
        "Stop where the ending is first written", key="stop_at_first", help="As the original did, in mid-sentence too."
    )


def show_story(desk: Desk) -> None:
    page.book(
        desk.tale, "book", reveal=desk.fresh, choose=True, chosen=desk.chosen,
        on_sentence_change=lambda: choose_sentence(desk),
    )  # fmt: skip
    if desk.tale:
        page.facts(desk.tale)


def choose_sentence(desk: Desk) -> None:
    """A click on a sentence of the story opens "What if" there."""
    number = st.session_state["book"].sentence
    if desk.tale and isinstance(number, int) and 0 <= number < len(sentences(desk.tale.text)):
        light(desk, number)
        st.session_state[f"from {desk.tale.key}"] = number + 1
        st.session_state["branch"] = True


def go_on(desk: Desk, tale: Tale) -> None:
    st.button("Another version", key="another", icon=":material/refresh:", on_click=ask_again, args=(desk,))
    with (
        st.popover("Go on", icon=":material/edit:", key="more", on_change="rerun"),
        st.form("go_on", border=False),
    ):
        st.text_input("The story goes on, and ends with", key="more_end", placeholder="moon")
        st.slider("Words more, at most", 20, 200, 80, step=10, key="more_words")
        st.form_submit_button("Continue the story", type="primary", key="tell_more", on_click=more, args=(desk,))
    with st.popover("What if …", icon=":material/call_split:", key="branch", on_change="rerun"):
        what_if(desk, tale)


def what_if(desk: Desk, tale: Tale) -> None:
    """The sentence that is chosen here, or by a click on it, is lit in the book."""
    spans, chosen = sentences(tale.text), 1
    if len(spans) > 1:
        chosen = st.slider(
            "It stays as it is up to sentence", 1, len(spans), key=f"from {tale.key}",
            on_change=lambda: light(desk, st.session_state[f"from {tale.key}"] - 1),
        )  # fmt: skip
    page.line(tale.text[slice(*spans[chosen - 1])])
    with st.form("what_if", border=False):
        st.text_input("and then goes on otherwise, ending with", key="branch_end", placeholder="the same ending")
        st.form_submit_button(
            "Tell it otherwise", type="primary", key="tell_branch", on_click=branch, args=(desk, tale)
        )


def light(desk: Desk, sentence: int) -> None:
    desk.chosen = sentence


def more(desk: Desk) -> None:
    ask_for_more(desk, st.session_state["more_end"], st.session_state["more_words"])
    put_away(desk, "more")


def branch(desk: Desk, tale: Tale) -> None:
    ask_what_if(desk, st.session_state.get(f"from {tale.key}", 1) - 1, st.session_state["branch_end"])
    put_away(desk, "branch")


def put_away(desk: Desk, popover: str) -> None:
    """Close it, and empty its field unless what stands there was refused."""
    st.session_state[popover] = False
    if desk.asked:
        st.session_state[f"{popover}_end"] = ""


def keep_and_share(tale: Tale) -> None:
    with st.popover("Keep", icon=":material/download:", key="keep"):
        for label, write, ending, kind, icon in SAVED:
            st.download_button(
                label, lambda write=write: write(tale), file_name(tale, ending), kind, key=f"keep {ending}",
                on_click="ignore", icon=f":material/{icon}:", width="stretch",
            )  # fmt: skip
        if letters := lacking(tale):
            page.line(f"PDF and picture come without {letters}, which their font lacks; the others have all.")
    with st.popover("Share", icon=":material/link:", key="share"):
        st.write("Who opens this link sees the very same story, told anew.")
        st.code(f"{page.address()}?story={to_link(tale)}", language=None, wrap_lines=True)
        st.write("It carries the wishes, the words you typed among them, and the seed; not the story itself.")


def compare(desk: Desk, tale: Tale) -> None:
    """Two stories of the shelf: the one on the page and the one before it, or others."""
    tales = {other.key: other for other in desk.shelf.latest_first()}
    keys = list(tales)
    before = desk.previous if desk.previous in tales else next(key for key in keys if key != tale.key)
    sides = (("First", before), ("Second", tale.key))
    for column, (side, first) in zip(st.columns(2), sides, strict=True):
        with column:
            chosen = st.selectbox(
                side, keys, index=keys.index(first) if first in tales else 0, key=f"{side} {before} {tale.key}",
                filter_mode=None, format_func=lambda key: shelf_line(tales[key]) if key in tales else "",
            )  # fmt: skip
            page.book(tales[chosen], side.lower())
            page.facts(tales[chosen])


def show_inside(desk: Desk, engine: Engine, tale: Tale) -> None:
    place = st.empty()
    details = desk.details(engine, tale, lambda before: page.in_line(place, before))
    place.empty()
    if isinstance(details, str):
        page.notice(details)
    elif details:
        look_inside(tale, details)
    else:
        page.notice("Another version of the model told this story: how it came about can no longer be shown.")


def show_shelf(desk: Desk) -> None:
    tales = desk.shelf.latest_first()
    title = f"Your shelf: {len(tales)} {'story' if len(tales) == 1 else 'stories'}"
    with st.expander(title, icon=":material/shelves:", key="shelf"):
        lasts = (
            "Kept in this browser" if desk.shelf.usable else "This browser keeps nothing, so save the shelf as a file"
        )
        page.line(f"{lasts}. The latest {shelf.MOST} stories stay.")
        for tale in tales:
            with st.container(key=f"shelf {tale.key}", horizontal=True, vertical_alignment="center"):
                st.text(shelf_line(tale), width="stretch")
                st.button("Open", key=f"open {tale.key}", on_click=desk.open, args=(tale,))
                st.button("Take off", key=f"remove {tale.key}", on_click=desk.shelf.remove, args=(tale.key,))
        if tales:
            st.download_button(
                "Save the shelf as a file", lambda: shelf.to_file(list(desk.shelf.tales.values())), "tiny-stories.json",
                "application/json", key="save_shelf", on_click="ignore", icon=":material/download:",
            )  # fmt: skip
        st.file_uploader(  # a new one once a file is opened, without that file's name
            "Open a saved shelf", "json", key=f"shelf_file {desk.opened}", max_upload_size=1,
            on_change=lambda: open_shelf(desk),
        )  # fmt: skip
        if desk.shelf_problem:
            page.notice(desk.shelf_problem)


def open_shelf(desk: Desk) -> None:
    desk.shelf_problem = None
    if opened := st.session_state[f"shelf_file {desk.opened}"]:
        try:
            saved = shelf.from_file(opened.getvalue())
            desk.shelf.add_saved(saved)
            desk.opened += 1
            if missing := len({tale.key for tale in saved} - desk.shelf.tales.keys()):
                desk.shelf_problem = (
                    f"{missing} of its stories found no room: the shelf keeps the latest {shelf.MOST}. Take some off, "
                    "and open the file again."
                )
        except TaleError as problem:
            desk.shelf_problem = f"This file could not be opened, it is not as this page saved it: {problem}."


def shelf_line(tale: Tale) -> str:
    ending = tale.text.split()[-1]
    return f"{tale.title} {ending}" if tale.num_words > 7 else tale.title


main()

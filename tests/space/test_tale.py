"""What comes from outside, a link, a shelf's file, the browser's storage, is taken exactly or not at all."""

import base64
import json
import sys
import zlib
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "space"))
from page import ending_place
from share import from_link, to_link
from shelf import MOST, Shelf, from_file, to_file
from tale import Step, Tale, TaleError, checksum, parse_tale, sentences

FIRST = Step(start="the little dragon", keep=None, end="home", max_words=120, seed=7, include=("volcano",))
NEXT = Step(start=None, keep=21, end="moon", max_words=80, seed=2**31 - 1, temperature=0.55, top_p=0.9)
TALE = Tale(
    text='The little dragon ran. "Go!" he said.\nThey came home.', steps=(FIRST, NEXT), model="modern", revision="abc",
    finish_reason="ending", seconds=0.21, told="2026-11-27",
)  # fmt: skip
ODD = ["<img src=x onerror=alert(1)>", "![x](https://example.org/x.png)", "$\\LaTeX$", "Zoë 🐉", "שלום", "a\x00b"]


@pytest.mark.parametrize("text", [TALE.text, *ODD])
def test_a_shelf_and_a_link_come_back_as_they_were(text: str):
    tale = replace(TALE, text=text, steps=(replace(FIRST, start=text, end=text[:20]), NEXT))
    assert from_file(to_file([tale, TALE])) == [tale, TALE]
    shared = from_link(to_link(tale))
    assert (shared.steps, shared.model, shared.revision) == (tale.steps, tale.model, tale.revision)
    assert shared.checksum == checksum(text) != checksum(text + ".")


BAD = [
    ("text", ""), ("text", 3), ("text", "x" * 13_000), ("text", "\ud800"), ("steps", []), ("steps", [{}] * 9),
    ("model", "gpt"), ("model", ["modern"]), ("finish_reason", None), ("seconds", -1), ("seconds", True),
    ("told", "yesterday"), ("told", "2026-11-2७"), ("revision", None), ("extra", 1),
]  # fmt: skip
BAD_STEPS = [
    ("seed", -1), ("seed", 1.5), ("seed", True), ("seed", 2**60), ("max_words", 0), ("max_words", "120"), ("end", ""),
    ("include", ["a"] * 4), ("include", "abc"), ("include", [1]), ("length", "huge"), ("temperature", float("nan")),
    ("temperature", 99), ("top_p", 0), ("stop_at_first", 1), ("keep", 4), ("start", None), ("extra", 1),
    ("num_candidates", 0), ("num_candidates", 17),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_tale_with_anything_wrong_is_refused(name: str, value: object):
    data = json.loads(to_file([TALE]))["tales"][0]
    assert parse_tale(data) == TALE
    with pytest.raises(TaleError):
        parse_tale(data | {name: value})
    with pytest.raises(TaleError):
        parse_tale({field: data[field] for field in data if field != "text"})


def test_a_shelf_from_before_drafts_competed_is_read():
    data = json.loads(to_file([TALE]))["tales"][0]
    for step in data["steps"]:
        del step["num_candidates"]
    assert parse_tale(data) == TALE


@pytest.mark.parametrize(("name", "value"), BAD_STEPS)
def test_a_step_with_anything_wrong_is_refused(name: str, value: object):
    data = json.loads(to_file([TALE]))["tales"][0]
    first, following = data["steps"]
    with pytest.raises(TaleError):
        parse_tale(data | {"steps": [first | {name: value}, following]})


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b"\xff\xfe", b'{"tiny_stories": 2, "tales": []}', b"[" * 100_000])
def test_a_file_that_is_no_shelf_is_refused(value: bytes):
    with pytest.raises(TaleError):
        from_file(value)


def test_a_shelf_too_large_is_refused():
    with pytest.raises(TaleError, match="MB"):
        from_file(b" " * 1_000_001)
    with pytest.raises(TaleError, match="more than"):
        from_file(to_file([TALE] * (MOST + 1)))


def pack(content: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.compress(content)).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "value",
    ["", "abc", "<script>", to_link(TALE)[:-8], to_link(TALE) + "AAAA", "A" * 7000, pack(b"null"), pack(b"{}"),
     pack(b'{"steps":[[]],"model":"modern","revision":"","checksum":"0123456789"}'), pack(b" " * 10_000_000),
     pack(b"[" * 30_000)],
)  # fmt: skip
def test_a_broken_link_is_refused(value: str):
    with pytest.raises(TaleError):
        from_link(value)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_no_link_breaks_the_page(value: str):
    try:
        from_link(value)
    except TaleError:
        return
    pytest.fail("chance made a link")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='ab .!?"\n\t”🐉', max_size=60))
def test_sentences_hold_every_word_once_and_in_order(text: str):
    spans = sentences(text)
    assert "".join(text[begin:end] for begin, end in spans).split() or not text.strip()
    assert "".join("".join(text[begin:end] for begin, end in spans).split()) == "".join(text.split())
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_a_sentence_ends_where_a_reader_ends_it():
    text = TALE.text
    assert [text[a:b] for a, b in sentences(text)] == ["The little dragon ran.", '"Go!" he said.', "They came home."]


def test_the_browser_and_the_page_agree_on_a_shelf():
    older = replace(TALE, text="Older.")
    shelf = Shelf()
    shelf.add(TALE)
    shelf.take_in({"tales": [older.to_json() | {"steps": [{}]}, older.to_json(), "x"], "usable": True})
    assert list(shelf.tales) == [TALE.key]  # a record that JSON has not been through holds tuples: refused
    shelf.take_in({"tales": json.loads(json.dumps([older.to_json()])), "usable": True})
    assert [tale.text for tale in shelf.latest_first()] == [TALE.text, "Older."]
    shelf.remove(older.key)
    shelf.take_in({"tales": json.loads(json.dumps([older.to_json(), TALE.to_json()])), "usable": False})
    assert list(shelf.tales) == [TALE.key] and shelf.usable is False
    for number in range(2 * MOST):
        shelf.add(replace(TALE, text=f"Tale {number}."))
    assert len(shelf.tales) == MOST and shelf.latest_first()[0].text == f"Tale {2 * MOST - 1}."


@pytest.mark.parametrize("day", ["2026-11-26", TALE.told])
def test_a_full_shelf_that_is_opened_pushes_out_nothing_told_now(day: str):
    saved = [TALE, *(replace(TALE, text=f"Tale {number}.", told=day) for number in range(1, MOST))]
    now = [TALE, replace(TALE, text="Told now.")]
    shelf = Shelf()
    for tale in now:
        shelf.add(tale)
    shelf.add_saved(from_file(to_file(saved)))
    assert list(shelf.tales.values()) == [*saved[2:], *now]
    shelf.take_in({"tales": json.loads(to_file([*now, *saved[1:]]))["tales"], "usable": True})
    assert list(shelf.tales.values()) == [*saved[2:], *now]


def test_the_latest_tales_stay_whichever_way_they_came():
    shelf = Shelf()
    for number in range(MOST):
        shelf.add(replace(TALE, text=f"Tale {number}."))
    later = replace(TALE, text="Later.", told="2026-11-28")
    shelf.add_saved([later, replace(TALE, text="Earlier.", told="2026-11-26")])
    assert [tale.text for tale in shelf.tales.values()] == [*(f"Tale {number}." for number in range(1, MOST)), "Later."]
    shelf.add(replace(TALE, text="Tale 1.", told="2026-11-28"))
    assert shelf.latest_first()[0].text == "Tale 1." and len(shelf.tales) == MOST  # told again, it is a new one


@pytest.mark.parametrize(
    ("text", "end", "marked"),
    [
        ("He ate ice cream.", "“ice cream”", "ice cream"),
        ("Home at last, they went HOME!", "home", "HOME"),
        ("İstanbul was big and happy.", "happy", "happy"),
        ("It’s Tom's home.", "Tom’s home", "Tom's home"),
    ],
)
def test_the_ending_is_marked_where_it_stands(text: str, end: str, marked: str):
    place = ending_place(text, end)
    assert place and text[slice(*place)] == marked and text[place[1] :].strip(".!") == ""

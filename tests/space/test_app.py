"""The page without a browser: what it says to good and bad wishes."""

import pytest
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT

APP = str(ROOT / "space" / "app.py")


def open_page() -> AppTest:
    page = AppTest.from_file(APP, default_timeout=120).run()
    assert not page.exception
    return page


def ask(page: AppTest, start: str, end: str, max_words: int = 40) -> AppTest:
    page.text_input(key="start").input(start)
    page.text_input(key="end").input(end)
    page.slider(key="max_words").set_value(max_words)
    page = page.button(key="tell").click().run()
    assert not page.exception
    return page


def story_of(page: AppTest) -> str:
    return page.session_state["result"]["story"]


def test_a_story_is_told_and_stays():
    page = ask(open_page(), "the little fox", "home")
    result = page.session_state["result"]
    assert result["story"].startswith("The little fox")
    assert result["story"].rstrip(".!?\"'").lower().endswith("home")
    assert "ends on your word" in page.caption[0].value and f"seed {result['seed']}" in page.caption[0].value
    assert story_of(page.run()) == result["story"]  # a rerun without the button keeps it


def test_without_an_ending_the_page_says_why_it_stopped():
    page = ask(open_page(), "Once upon a time", "", max_words=20)
    assert "longest length" in page.caption[0].value or "model ended it" in page.caption[0].value


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("   ", "happy", "start must hold at least one word"),
        ("She", "?!", "end must hold at least one word"),
        ("word " * 30, "happy", "alone need 31"),
        ("x" * 2000, "happy", "room for"),
    ],
)
def test_bad_wishes_get_a_clear_message(start: str, end: str, message: str):
    page = ask(open_page(), start, end, max_words=30)
    assert message in page.error[0].value
    assert page.session_state["result"] is None


def test_markup_typed_by_the_reader_is_text():
    page = ask(open_page(), "<b>Tom</b> & <script>", "home")
    shown = "".join(element.proto.body for element in page.get("html"))
    assert "<mark>&lt;b&gt;Tom&lt;/b&gt; &amp; &lt;script&gt;</mark>" in shown


def test_a_missing_model_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("MODEL_ID", str(tmp_path))
    page = open_page()
    assert "could not be loaded" in page.error[0].value and not page.text_input

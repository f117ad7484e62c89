"""The page without a browser: what it says to good and bad wishes, and that nothing told is lost."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT

APP = str(ROOT / "space" / "app.py")


def open_page(**query: str) -> AppTest:
    page = AppTest.from_file(APP, default_timeout=240)
    for name, value in query.items():
        page.query_params[name] = value
    page = page.run()
    assert not page.exception
    return page


def ask(page: AppTest, start: str, end: str, max_words: int = 40, **more: object) -> AppTest:
    page.text_input(key="start").input(start)
    page.text_input(key="end").input(end)
    page.slider(key="max_words").set_value(max_words)
    for name, value in more.items():
        page.session_state[name] = value
    page = page.button(key="tell").click().run()
    assert not page.exception
    return page


def desk(page: AppTest):
    return page.session_state["desk"]


def test_a_story_is_told_and_stays():
    page = ask(open_page(), "the little fox", "home", seed="7")
    tale = desk(page).tale
    assert tale.text.startswith("The little fox") and tale.num_words <= 40
    assert tale.text.rstrip(".!?\"'").lower().endswith("home")
    shown = " ".join(element.proto.body for element in page.get("html"))
    assert "It ends on your word." in shown and f"seed {tale.steps[-1].seed}" in shown
    page.run()
    assert desk(page).tale == tale and list(desk(page).shelf.tales) == [tale.key]


def test_a_story_goes_on_and_is_told_otherwise():
    page = ask(open_page(), "The little fox", "home", seed="7")
    first = desk(page).tale
    page.text_input(key="more_end").input("word " * 50)
    page.button(key="tell_more").click().run()
    assert "its ending has more than 200 characters" in desk(page).problem and desk(page).tale == first
    assert page.text_input(key="more_end").value == "word " * 50
    page.text_input(key="more_end").input("moon")
    page.button(key="tell_more").click().run()
    assert page.text_input(key="more_end").value == ""
    longer = desk(page).tale
    assert longer.text.startswith(first.text) and longer.text.rstrip(".!?\"'").lower().endswith("moon")
    assert [step.end for step in longer.steps] == ["home", "moon"]

    page.slider(key=f"from {longer.key}").set_value(2).run()
    assert desk(page).chosen == 1
    page.text_input(key="branch_end").input("sea")
    page.button(key="tell_branch").click().run()
    other = desk(page).tale
    kept = other.text[: other.steps[-1].keep]
    assert longer.text.startswith(kept) and kept.rstrip()[-1] in '.!?"'
    assert other.text.rstrip(".!?\"'").lower().endswith("sea") and len(desk(page).shelf.tales) == 3
    assert page.text_input(key="branch_end").value == ""

    page.toggle(key="compare").set_value(True).run()
    page.toggle(key="inside").set_value(True).run()
    assert not page.exception and desk(page).known[other.key]["words"]
    assert 1 <= len(desk(page).known[other.key]["rejected"]) < other.steps[-1].num_candidates == 8


def test_a_shared_link_tells_the_very_same_story():
    page = ask(open_page(), "The little fox", "home", seed="11", num_drafts=8, include="volcano")
    page.text_input(key="more_end").input("moon")
    page.button(key="tell_more").click().run()
    tale = desk(page).tale
    link = page.code[0].value.split("?story=")[1]
    other = open_page(story=link)
    assert desk(other).tale.text == tale.text and "just as it was" in desk(other).news
    assert desk(open_page(story=link[:-9])).problem == "This link cannot be opened: the link is broken."
    import share  # the page has put its folder on the path

    unfit = replace(tale, steps=(replace(tale.steps[0], end="shit"),))
    assert desk(open_page(story=share.to_link(unfit))).problem.startswith("This link asks for words")


def test_letters_that_no_font_has_are_said():
    page = ask(open_page(), "The 🐉 said", "home", max_words=20)
    assert any("come without 🐉" in element.proto.body for element in page.get("html"))


def test_without_an_ending_the_page_says_why_it_stopped():
    page = ask(open_page(), "Once upon a time", "", max_words=20)
    assert desk(page).tale.finish_reason in ("length", "eos")


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("   ", "happy", "it needs a word or more to start with"),
        ("She", "?!", "its ending needs at least one word"),
        ("word " * 30, "happy", "alone need 31 words, and the longest length is 30"),
        ("ab" * 1000, "happy", "its start is too long"),
        ("She said no. " * 200, "happy", "its start has more than 2000 characters"),
        ("She", "word " * 50, "its ending has more than 200 characters"),
        ("She", "shit", "do not belong in a children’s story"),
    ],
)
def test_bad_wishes_get_a_clear_message(start: str, end: str, message: str):
    page = ask(open_page(), start, end, max_words=30)
    alerts = [element.proto.body for element in page.get("html") if 'role="alert"' in element.proto.body]
    assert len(alerts) == 1 and message in alerts[0]
    assert desk(page).tale is None and not page.error


def test_a_story_with_an_unfit_word_is_never_shown(monkeypatch: pytest.MonkeyPatch):
    page = open_page()
    import gentle  # the page has put its folder on the path

    told: list[str] = []

    def picky(*texts: str | None) -> bool:
        told.extend(text for text in texts if text and len(text) > 60)
        return bool(told) and any(text == told[0] for text in texts)

    monkeypatch.setattr("desk.unfit", picky)
    assert gentle.unfit
    page = ask(page, "The little fox", "home", max_words=80, seed="3", num_drafts=8)
    assert len(told) == 2 and desk(page).tale.text == told[1]
    assert desk(page).tale.steps[-1].seed == 4


def test_a_lost_draft_with_an_unfit_word_is_not_shown_either(monkeypatch: pytest.MonkeyPatch):
    page = ask(open_page(), "The little fox", "home", max_words=80, seed="3", num_drafts=8)
    tale = desk(page).tale
    monkeypatch.setattr("desk.unfit", lambda *texts: any(text and text != tale.text for text in texts))
    page.toggle(key="inside").set_value(True).run()
    assert desk(page).known[tale.key]["rejected"] == []


@pytest.mark.parametrize(
    ("kind", "problem", "message"),
    [
        ("Busy", "No room.", "<p>No room.</p>"),
        ("TooSlow", "No story came.", "<p>No story came.</p>"),
        (None, "the start has 900 tokens", "This story cannot be told: its start is too long"),
    ],
)
def test_a_look_inside_waits_in_line_and_says_what_is_in_its_way(
    monkeypatch: pytest.MonkeyPatch, kind: str | None, problem: str, message: str
):
    page = ask(open_page(), "The little fox", "home", seed="3")
    import engine  # the page has put its folder on the path
    from page import in_line

    tale, places = desk(page).tale, []

    def wait_and_fail(_: engine.Engine, wishes: dict, on_place: Callable[[int], None], subfolder: str):
        on_place(2)
        raise getattr(engine, kind)(problem) if kind else ValueError(problem)

    with monkeypatch.context() as patch:
        patch.setattr("page.in_line", lambda place, before: (places.append(before), in_line(place, before)))
        patch.setattr(engine.Engine, "tell", wait_and_fail)
        page.toggle(key="inside").set_value(True).run()
    said = " ".join(element.proto.body for element in page.get("html"))
    assert not page.exception and said.count('role="alert"') == 1 and message in said
    assert places == [2] and "You are in line" not in said  # the notice has taken that line's place
    assert desk(page).tale == tale and not desk(page).known
    page.run()
    assert desk(page).known[tale.key]["words"] and page.get("vega_lite_chart")


def test_a_story_the_model_tells_otherwise_now_cannot_be_looked_into():
    page = ask(open_page(), "The little fox", "home", seed="3")
    desk(page).known[desk(page).tale.key] = {}
    page.toggle(key="inside").set_value(True).run()
    assert "Another version of the model told this story" in " ".join(e.proto.body for e in page.get("html"))


def test_a_long_line_makes_for_fewer_drafts(monkeypatch: pytest.MonkeyPatch):
    page = open_page()
    import engine  # the page has put its folder on the path
    import share

    told = []
    for readers in (0, 1, 2, 9):
        monkeypatch.setattr(engine.Engine, "readers", readers)
        page = ask(page, "The little fox", "home", seed="3")
        told.append(desk(page).tale)
    assert [tale.steps[-1].num_candidates for tale in told] == [8, 4, 1, 1]
    assert told[0].text != told[2].text == told[3].text
    # Told again for a look inside, or from a link, a story has as many drafts as it had.
    page.toggle(key="inside").set_value(True).run()
    assert desk(page).known[told[3].key]["rejected"] == []
    other = desk(open_page(story=share.to_link(told[0])))
    assert other.tale.text == told[0].text and "just as it was" in other.news
    monkeypatch.setattr(engine.Engine, "readers", 0)
    page.button(key="another").click().run()
    assert desk(page).tale.steps[-1].num_candidates == 8  # for the line is gone


def test_a_wrong_seed_is_said():
    page = ask(open_page(), "She", "home", seed="seven")
    assert "a seed is a whole number" in desk(page).problem and desk(page).tale is None


def test_a_missing_model_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("MODEL_ID", str(tmp_path))
    page = open_page()
    alerts = [element.proto.body for element in page.get("html") if 'role="alert"' in element.proto.body]
    assert "could not be loaded" in alerts[0] and not page.text_input

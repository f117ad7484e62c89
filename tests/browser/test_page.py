"""A real browser opens the page, types, clicks, waits, and reads the story."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.chromium import find_chromium
from tests.conftest import ROOT

SCREENSHOT = ROOT / "build" / "page.png"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FLAGS += ["--no-first-run", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT / "space", stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=1)
                break
            except OSError:
                assert server.poll() is None, "the page's server stopped"
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    browser_path = find_chromium()
    assert browser_path, "no Chromium: run `make chromium`, or set CHROMIUM to the path of one"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1000, "height": 1100})
        page.set_default_timeout(120_000)
        page.goto(address)
        yield page
        browser.close()


def ask(page: Page, start: str, end: str) -> None:
    page.get_by_role("textbox", name="The story starts with").fill(start)
    page.get_by_role("textbox", name="and ends with").fill(end)
    page.get_by_role("button", name="Tell the story").click()


def test_a_story_starts_and_ends_as_asked(page: Page):
    ask(page, "The little dragon", "home")
    expect(page.get_by_text("It ends on your word.")).to_be_visible(timeout=120_000)
    story = page.get_by_test_id("story")
    expect(story).to_have_count(1)
    words = story.inner_text().split()
    assert words[:3] == ["The", "little", "dragon"]
    assert words[-1].strip(".!?\"'").lower() == "home"
    marks = story.locator("mark").all_inner_texts()
    assert [mark.lower() for mark in marks] == ["the little dragon", "home"]
    SCREENSHOT.parent.mkdir(exist_ok=True)
    page.screenshot(path=os.fspath(SCREENSHOT))


# In the page itself, which sees every change however slow the machine is.
WATCH_THE_STORY = """() => {
    window.lengths = new Set()
    window.written = false
    new MutationObserver(() => {
        const story = document.querySelector('[data-testid="story"]')
        if (story) window.lengths.add(story.innerText.length)
        window.written ||= document.querySelector('.pen') !== null
    }).observe(document.body, {subtree: true, childList: true, characterData: true})
}"""


def test_the_story_streams_in(page: Page):
    page.get_by_role("slider").press("End")  # the longest: a short story is written between two looks of the browser
    page.evaluate(WATCH_THE_STORY)
    ask(page, "Once upon a time", "friends")
    page.wait_for_function("window.written && !document.querySelector('.pen')")
    expect(page.get_by_text("It ends on your word.")).to_be_visible()
    assert page.evaluate("window.lengths.size") > 3, "the story appeared at once"


def test_a_bad_wish_gets_a_message(page: Page):
    ask(page, "She", "...")
    expect(page.get_by_text("end must hold at least one word")).to_be_visible()
    ask(page, "", "happy")
    expect(page.get_by_text("start must hold at least one word")).to_be_visible()

"""A real browser opens the page, types, clicks, reads, reloads, and loses nothing."""

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.serving import TIMEOUT, ask, serve, visit
from tests.conftest import ROOT

SCREENSHOT = ROOT / "build" / "page.png"
ANOTHER = "before => ![before, undefined].includes(document.querySelector('[data-testid=story]')?.innerText)"
# Words that come to be, and the look of each, as the page itself sees it.
WATCH = """() => {
    window.lengths = []
    new MutationObserver(() => {
        const story = document.querySelector('[data-testid="story"]')
        if (story && window.lengths.at(-1) !== story.textContent.length) window.lengths.push(story.textContent.length)
    }).observe(document.body, {subtree: true, childList: true, characterData: true})
}"""
VOICE = """
    window.said = []
    const voice = {lang: 'en-US', name: 'Test', default: true, localService: true, voiceURI: 'test'}
    window.SpeechSynthesisUtterance = class { constructor(text) { this.text = text } }
    Object.defineProperty(window, 'speechSynthesis', {value: {
        getVoices: () => [voice], cancel: () => said.push('cancel'), pause: () => said.push('pause'),
        resume: () => said.push('resume'), speak: (words) => { window.speaking = words; said.push('speak') },
    }})
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serve() as url:
        yield url


@pytest.fixture(scope="module")
def page(address: str, browser: Browser) -> Page:
    return visit(browser, address, viewport={"width": 1000, "height": 1100})


def told(page: Page, start: str, end: str) -> str:
    story = page.get_by_test_id("story")
    before = story.inner_text() if story.count() else None
    ask(page, start, end)
    page.wait_for_function(ANOTHER, arg=before)
    return story.inner_text()


def test_a_story_starts_and_ends_as_asked_and_is_whole_at_once(page: Page):
    page.evaluate(WATCH)
    ask(page, "The little dragon", "home")
    expect(page.get_by_text("It ends on your word.")).to_be_visible()
    story = page.get_by_test_id("story")
    expect(story).to_have_count(1)
    assert page.evaluate("window.lengths.length") == 1, "the story came in pieces"
    words = story.inner_text().split()
    assert words[:3] == ["The", "little", "dragon"]
    assert words[-1].strip(".!?\"'").lower() == "home"
    assert [mark.lower() for mark in story.locator("mark").all_inner_texts()] == ["the little dragon", "home"]
    SCREENSHOT.parent.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOT)


def test_the_story_is_revealed_word_by_word_unless_motion_is_unwanted(address: str, browser: Browser):
    look = "[...document.querySelectorAll('.word')].map(word => getComputedStyle(word).animationName)"
    for motion, name in (("no-preference", "appear"), ("reduce", "none")):
        page = visit(browser, address, reduced_motion=motion)
        page.clock.install()
        page.evaluate("""(look) => new MutationObserver(() => {
            if (!window.looks && document.querySelector('.word')) window.looks = eval(look)
        }).observe(document.body, {subtree: true, childList: true})""", look)  # fmt: skip
        told(page, "Once upon a time", "friends")
        assert set(page.evaluate("window.looks")) == {name}
        page.clock.fast_forward("01:00")
        page.wait_for_function("!document.querySelector('.revealing')")
        assert set(page.evaluate(look)) == {"none"}
        page.context.close()


def test_a_bad_wish_gets_a_message(page: Page):
    ask(page, "She", "...")
    expect(page.get_by_text("its ending needs at least one word")).to_be_visible()
    ask(page, "", "happy")
    expect(page.get_by_text("it needs a word or more to start with")).to_be_visible()


def test_the_shelf_outlives_a_reload_and_comes_back_from_a_file(address: str, browser: Browser, tmp_path):
    page = visit(browser, address)
    texts = [told(page, "The little dragon", "home"), told(page, "A tiny mouse", "moon")]
    page.wait_for_function("JSON.parse(localStorage['tiny-stories-shelf'] ?? '[]').length === 2")  # after the book
    page.reload()
    page.get_by_text("Your shelf: 2 stories").click()
    page.get_by_role("button", name="Open").nth(1).click()
    expect(page.get_by_test_id("story")).to_have_text(re.compile("^The little dragon"))
    assert page.get_by_test_id("story").inner_text().split() == texts[0].split()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the shelf as a file").click()
    download.value.save_as(tmp_path / "shelf.json")
    assert len(json.loads((tmp_path / "shelf.json").read_text())["tales"]) == 2
    page.get_by_role("button", name="Take off").first.click()
    page.get_by_text("Your shelf: 1 story").wait_for()
    page.reload()
    page.get_by_text("Your shelf: 1 story").click()
    page.locator("input[type=file]").set_input_files(tmp_path / "shelf.json")
    expect(page.get_by_text("Your shelf: 2 stories")).to_be_visible()
    saved = json.loads((tmp_path / "shelf.json").read_text())
    full = [saved["tales"][0] | {"text": f"Tale {number}."} for number in range(60)]
    (tmp_path / "full.json").write_text(json.dumps(saved | {"tales": full}))
    page.locator("input[type=file]").set_input_files(tmp_path / "full.json")
    expect(page.get_by_text("Your shelf: 60 stories")).to_be_visible()
    page.wait_for_function("JSON.parse(localStorage['tiny-stories-shelf']).length === 60")
    latest = page.evaluate("JSON.parse(localStorage['tiny-stories-shelf']).slice(-2).map(tale => tale.text)")
    assert set(latest) == {tale["text"] for tale in saved["tales"]}  # the opened ones stand before them
    page.context.close()


def test_what_one_page_takes_off_the_shelf_another_does_not_put_back(address: str, browser: Browser):
    page = visit(browser, address)
    told(page, "The little dragon", "home")
    told(page, "A tiny mouse", "moon")
    page.wait_for_function("JSON.parse(localStorage['tiny-stories-shelf'] ?? '[]').length === 2")
    other = page.context.new_page()
    other.goto(address)
    other.get_by_text("Your shelf: 2 stories").click()
    other.get_by_role("button", name="Take off").last.click()
    other.get_by_text("Your shelf: 1 story").wait_for()
    other.wait_for_function("JSON.parse(localStorage['tiny-stories-shelf']).length === 1")
    told(page, "One day", "sea")
    expect(page.get_by_text("Your shelf: 2 stories")).to_be_visible()
    page.wait_for_function("JSON.parse(localStorage['tiny-stories-shelf']).length === 2")
    kept = page.evaluate("JSON.parse(localStorage['tiny-stories-shelf']).map(tale => tale.text.slice(0, 6))")
    assert kept == ["A tiny", "One da"]
    page.evaluate("localStorage.clear()")  # what is here stays here
    told(page, "The old robot", "stars")
    expect(page.get_by_text("Your shelf: 3 stories")).to_be_visible()
    page.wait_for_function("JSON.parse(localStorage['tiny-stories-shelf'] ?? '[]').length === 3")
    page.context.close()


def test_a_click_while_a_story_is_told_loses_nothing(address: str, browser: Browser):
    page = visit(browser, address)
    ask(page, "The little dragon", "home")
    page.locator("[data-test-script-state=running]").wait_for()
    page.wait_for_timeout(200)  # until the story is being told: a wish that comes before takes the place of this one
    page.get_by_role("button", name="A lost balloon").click()  # stops the script that tells the story
    expect(page.get_by_test_id("story")).to_have_text(re.compile("^Lily had a red balloon"))
    story = page.get_by_test_id("story").inner_text()
    expect(page.get_by_text("Your shelf: 2 stories")).to_be_visible()
    page.get_by_text("Look inside").click()
    page.locator(".told").wait_for()
    assert page.get_by_test_id("story").inner_text() == story
    page.context.close()


def test_a_clicked_sentence_opens_what_if(page: Page):
    text = told(page, "The little fox", "home")
    page.wait_for_function("!document.querySelector('.revealing')")
    page.locator(".sentence").nth(1).click()
    expect(page.get_by_role("slider", name="It stays as it is up to sentence")).to_have_value("2")
    page.get_by_role("textbox", name="and then goes on otherwise, ending with").fill("sea")
    page.get_by_role("button", name="Tell it otherwise", exact=True).click()
    page.wait_for_function(ANOTHER, arg=text)
    branched = page.get_by_test_id("story").inner_text()
    assert branched.split()[:6] == text.split()[:6] and branched.strip(".!?\"'").lower().endswith("sea")


def test_reading_aloud_lights_the_word_that_is_spoken(address: str, browser: Browser):
    page = browser.new_context().new_page()
    page.set_default_timeout(TIMEOUT)
    page.add_init_script(VOICE)
    page.goto(address)
    story = told(page, "The little dragon", "home")
    page.get_by_role("button", name="Read aloud").click()
    assert page.evaluate("speaking.text").split() == story.split()
    page.evaluate("speaking.onboundary({name: 'word', charIndex: speaking.text.indexOf(' dragon') + 1})")
    assert page.locator(".spoken").all_inner_texts() == ["dragon"]
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Go on reading").click()
    page.get_by_role("button", name="Stop").click()
    assert page.locator(".spoken").count() == 0 and page.get_by_role("button", name="Read aloud").is_visible()
    assert page.evaluate("said.slice(-4)") == ["speak", "pause", "resume", "cancel"]
    page.context.close()


def test_without_a_voice_nothing_offers_to_read(page: Page):
    told(page, "The old robot", "stars")
    assert not page.get_by_role("button", name="Read aloud").is_visible()

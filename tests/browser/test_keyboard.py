"""The page by keyboard alone: all is reached in the order in which it stands, seen when reached, and left again."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.serving import TIMEOUT
from tests.browser.test_page import ANOTHER, VOICE

MOST_STOPS = 80
# What has the focus: its name, where it stands in the whole page, and whether an outline shows it. Streamlit hides the
# input of a slider or switch, so that the outline may be on what stands around it.
FOCUSED = """async () => {
    const here = document.activeElement
    if (!here || here === document.body) return null
    const label = here.getAttribute('aria-label') ?? here.labels?.[0]?.innerText ?? here.innerText
    const ring = (node) => { const style = getComputedStyle(node)
        return style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2 }
    const around = []
    for (let node = here; node && around.length < 5; node = node.parentElement) around.push(node)
    await Promise.allSettled(around.flatMap((node) => node.getAnimations()).map((fading) => fading.finished))
    const outlined = around.find(ring)
    const box = (outlined ?? here).getBoundingClientRect()
    const words = label.split('\\n').filter((part) => part && !/^[a-z_]+$/.test(part)) // without the icons' names
    return {
        name: here.matches('main') ? 'main' : words[0] ?? label,
        number: [...document.querySelectorAll('*')].indexOf(here), outlined: Boolean(outlined),
        inside: box.right > 0 && box.bottom > 0 && box.left < innerWidth && box.top < innerHeight,
    }
}"""

# What a mouse could use; the arrow of a selectbox and the field behind "Upload" do what stands beside them does.
CONTROLS = """() => [...document.querySelectorAll('*')].flatMap((node, number) =>
    node.matches('main :is(button, summary, input, textarea, select, a)') && node.checkVisibility()
    && !node.matches('.stSelectbox button, input[type=file]') ? [{number, html: node.outerHTML.slice(0, 200)}] : [])"""


@pytest.fixture
def page(address: str, browser: Browser) -> Iterator[Page]:
    page = browser.new_context(reduced_motion="reduce", viewport={"width": 1120, "height": 900}).new_page()
    page.set_default_timeout(TIMEOUT)
    page.add_init_script(VOICE)
    page.goto(address)
    page.get_by_text("Your shelf: 0 stories").wait_for()
    # Parts that are loaded later must stand there before a walk around the page begins.
    page.get_by_role("textbox", name="and ends with").wait_for()
    page.get_by_role("slider", name="Longest length, in words").wait_for()
    yield page
    page.context.close()


def go_to(page: Page, name: str, key: str = "Tab") -> None:
    """Press Tab until what has this name has the focus."""
    seen = []
    for _ in range(MOST_STOPS):
        page.keyboard.press(key)
        focused = page.evaluate(FOCUSED)
        seen.append(focused and focused["name"])
        if focused and focused["name"] == name:
            return
    raise AssertionError(f"{key} never reaches {name!r}, only {seen}")


def stops(page: Page, key: str = "Tab") -> list[dict]:
    """Everything that Tab reaches on its way once around the page, from the first in the document on."""
    found: list[dict] = []
    for _ in range(MOST_STOPS):
        page.keyboard.press(key)
        focused = page.evaluate(FOCUSED)
        if focused and found and focused["number"] == found[0]["number"]:
            first = found.index(min(found, key=lambda stop: stop["number"]))
            return found[first:] + found[:first]
        if focused:
            found.append(focused)
    raise AssertionError(f"{key} does not come around: {[stop['name'] for stop in found]}")


def write(page: Page, name: str, text: str) -> None:
    go_to(page, name)
    page.keyboard.press("Control+a")
    page.keyboard.type(text)


def press(page: Page, name: str, key: str = "Enter") -> None:
    go_to(page, name)
    page.keyboard.press(key)


def told(page: Page) -> str:
    story = page.get_by_test_id("story")
    return story.inner_text() if story.count() else ""


def wait_for_another(page: Page, before: str) -> str:
    page.wait_for_function(ANOTHER, arg=before)
    return told(page)


def test_a_reader_without_a_mouse_does_everything(page: Page):
    write(page, "The story starts with", "The little dragon")
    write(page, "and ends with", "home")
    go_to(page, "Longest length, in words")
    page.keyboard.press("ArrowLeft")
    press(page, "More wishes", "Space")
    write(page, "Words to include", "cake")
    go_to(page, "Tell the story", "Shift+Tab")
    page.keyboard.press("Space")
    first = wait_for_another(page, "")
    assert first.startswith("The little dragon") and "cake" in first.lower()
    assert first.rstrip(".!?\"'").lower().endswith("home") and len(first.split()) <= 110
    expect(page.get_by_role("button", name="Tell the story")).to_be_focused()

    press(page, "Read aloud")
    assert page.evaluate("said.at(-1)") == "speak" and page.evaluate(FOCUSED)["name"] == "Pause"
    press(page, "Stop", "Space")
    assert page.evaluate("said.at(-1)") == "cancel" and page.evaluate(FOCUSED)["name"] == "Read aloud"

    press(page, "Another version")
    second = wait_for_another(page, first)
    expect(page.get_by_text("Your shelf: 2 stories")).to_be_visible()

    press(page, "Go on")
    write(page, "The story goes on, and ends with", "moon")
    page.keyboard.press("Enter")
    third = wait_for_another(page, second)
    assert third.startswith(second) and third.rstrip(".!?\"'").lower().endswith("moon")

    press(page, "What if …")
    go_to(page, "It stays as it is up to sentence")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".sentence.chosen")).to_have_attribute("data-number", "1")
    write(page, "and then goes on otherwise, ending with", "sea")
    page.keyboard.press("Enter")
    fourth = wait_for_another(page, third)
    assert fourth.split()[:6] == third.split()[:6] and fourth.rstrip(".!?\"'").lower().endswith("sea")

    press(page, "Keep")
    go_to(page, "Text")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename.endswith(".txt")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Text", exact=True)).to_have_count(0)
    expect(page.get_by_role("button", name="Keep")).to_be_focused()

    press(page, "Look inside", "Space")
    page.locator(".told").wait_for()
    press(page, "Your shelf: 4 stories")
    press(page, "Open")
    assert told(page)


@pytest.mark.slow
def test_tab_reaches_all_in_order_seen_and_without_a_trap(page: Page):
    """Before a story, and with one and all that unfolds unfolded; forwards, and backwards the same."""
    for state in ("empty", "unfolded"):
        if state == "unfolded":
            press(page, "Surprise me")
            first = wait_for_another(page, "")
            press(page, "Another version")
            wait_for_another(page, first)
            for name in ("More wishes", "Look inside", "Compare side by side", "Your shelf: 2 stories"):
                press(page, name, "Space")
            page.get_by_test_id("version").nth(1).wait_for()
            page.locator(".told").wait_for()
        page.wait_for_timeout(3000)  # until nothing is drawn anew: the walk counts elements
        forwards = stops(page)
        numbers = [stop["number"] for stop in forwards]
        assert numbers == sorted(numbers), [stop["name"] for stop in forwards]
        assert [stop["name"] for stop in forwards if not stop["outlined"]] == []
        assert [stop["name"] for stop in forwards if not stop["inside"]] == []
        controls = {control["number"]: control["html"] for control in page.evaluate(CONTROLS)}
        assert len(controls) > 8 and [controls[number] for number in controls.keys() - set(numbers)] == []
        backwards = [stop["number"] for stop in stops(page, "Shift+Tab")]
        assert [backwards[0], *backwards[:0:-1]] == numbers

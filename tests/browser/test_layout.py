"""The page on every screen and on paper: nothing cut, nothing upon another, nothing small; in print only the story."""

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.serving import ask, visit
from tests.browser.test_page import ANOTHER

WIDTHS = (360, 414, 768, 1024, 1280, 1440, 1920)
SMALLEST = 12  # CSS pixels of a letter
# What is wrong with the layout, in words; hidden inputs (opacity 0, behind a switch or an upload) are no controls here.
FAULTS = """(smallest) => {
    const faults = [], name = (node) => `${node.tagName.toLowerCase()} ${(node.getAttribute('aria-label')
        ?? node.innerText ?? '').replace(/\\s+/g, ' ').slice(0, 40)}`
    const scroller = document.querySelector('[data-testid="stMain"]')
    for (const whole of [document.scrollingElement, scroller]) {
        if (whole.scrollWidth > innerWidth) faults.push(`${name(whole)} is ${whole.scrollWidth} wide`)
    }
    const seen = (node) => node.checkVisibility({opacityProperty: true, visibilityProperty: true})
    const controls = [...document.querySelectorAll('button, summary, input:not([type=file]), a, .stCheckbox label')]
        .filter((node) => seen(node) && !node.matches('.stCheckbox input, .stSlider input, .stApp > div > a'))
        .map((node) => [node, node.getBoundingClientRect()]).filter(([, box]) => box.width && box.height)
    for (const [node, box] of controls) {
        if (box.left < -1 || box.right > innerWidth + 1) faults.push(`${name(node)} is cut by the window`)
        const inner = node.matches('input') ? [] : [node, ...node.querySelectorAll('*')]
        const hides = (part) => part.clientWidth > 1 && getComputedStyle(part).overflowX !== 'visible'
        if (inner.some((part) => part.scrollWidth > part.clientWidth + 1 && hides(part)))
            faults.push(`${name(node)} is cut`)
    }
    controls.forEach(([one, a], i) => controls.slice(i + 1).forEach(([other, b]) => {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left)
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)
        const within = one.contains(other) || other.contains(one) || one.closest('.stSelectbox')?.contains(other)
        if (wide > 1 && high > 1 && !within) faults.push(`${name(one)} lies on ${name(other)}`)
    }))
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
    while (texts.nextNode()) {
        const node = texts.currentNode.parentElement
        if (!texts.currentNode.data.trim() || !seen(node) || node.closest('script, style')) continue
        const size = parseFloat(getComputedStyle(node).fontSize)
        if (size < smallest) faults.push(`${name(node)} has letters of ${size} px`)
    }
    return [...new Set(faults)]
}"""
# What paper would show: the text of every leaf, and pictures.
PRINTED = """() => {
    const seen = (node) => node.checkVisibility({opacityProperty: true, visibilityProperty: true})
        && node.getBoundingClientRect().width > 1
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), shown = []
    while (texts.nextNode()) {
        const node = texts.currentNode.parentElement
        if (texts.currentNode.data.trim() && seen(node) && !node.closest('script, style, noscript')) {
            shown.push(node.closest('[data-testid=story], h1')?.tagName ?? node.outerHTML.slice(0, 200))
        }
    }
    const drawn = [...document.querySelectorAll('button, input, svg, img, canvas, summary')].filter(seen)
    return {shown: [...new Set(shown)], drawn: drawn.map((node) => node.outerHTML.slice(0, 200)),
        paper: getComputedStyle(document.querySelector('.stApp')).backgroundColor}
}"""


def unfold(page: Page) -> None:
    """A second story beside the first, looked inside, with all wishes and the shelf open."""
    before = page.get_by_test_id("story").inner_text()
    page.get_by_role("button", name="Another version").click()
    page.wait_for_function(ANOTHER, arg=before)
    for name in ("More wishes", "Look inside", "Compare side by side", "Your shelf: 2 stories"):
        page.get_by_text(name, exact=True).click()
    page.locator(".told").wait_for()
    page.get_by_test_id("version").nth(1).wait_for()
    page.wait_for_timeout(1500)  # until the charts stand


def faults(page: Page, widths: tuple[int, ...]) -> dict[int, list[str]]:
    """At each width, as far as there are any that stay: on a busy machine the page takes seconds to settle. Until the
    icons' font is there, their names stand in their places."""
    page.evaluate("document.fonts.ready.then(() => null)")
    found = {}
    for width in widths:
        page.set_viewport_size({"width": width, "height": 900})
        for _ in range(10):
            page.wait_for_timeout(400)
            found[width] = page.evaluate(FAULTS, SMALLEST)
            if not found[width]:
                break
    return {width: wrong for width, wrong in found.items() if wrong}


@pytest.mark.parametrize(
    ("scheme", "widths"),
    [
        ("light", WIDTHS[:1]),
        pytest.param("light", WIDTHS[1:], marks=pytest.mark.slow),
        pytest.param("dark", WIDTHS, marks=pytest.mark.slow),
    ],
)
def test_every_width_shows_all(address: str, browser: Browser, scheme: str, widths: tuple[int, ...]):
    page = visit(browser, address, color_scheme=scheme, reduced_motion="reduce")
    page.get_by_text("Your shelf: 0 stories").wait_for()
    found = {"empty": faults(page, widths)}
    ask(page, "She", "...")
    page.get_by_role("alert").wait_for()
    found["message"] = faults(page, widths)
    ask(page, "The little dragon", "home")
    expect(page.get_by_text("It ends on your word.")).to_be_visible()
    found["story"] = faults(page, widths)
    unfold(page)
    found["unfolded"] = faults(page, widths)
    page.context.close()
    assert not any(found.values()), found


def test_the_faults_are_found(browser: Browser):
    page = browser.new_page(viewport={"width": 400, "height": 400})
    page.set_content("""<main data-testid="stMain"><div style="width: 500px; height: 1px"></div><button>one</button>
        <button style="margin-left: -1em">two</button><small style="font-size: 9px">small</small>
        <button style="display: block; width: 3em; overflow: hidden; white-space: nowrap">a long name</button>
        </main>""")
    found = " ".join(page.evaluate(FAULTS, SMALLEST))
    page.close()
    for sign in ("500 wide", "lies on", "9 px", "long name is cut"):
        assert sign in found


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_paper_shows_the_story_and_the_pages_name(address: str, browser: Browser, scheme: str):
    page = visit(browser, address, color_scheme=scheme, reduced_motion="reduce")
    ask(page, "The little dragon", "home")
    expect(page.get_by_text("It ends on your word.")).to_be_visible()
    unfold(page)
    page.emulate_media(media="print", color_scheme=scheme)
    printed = page.evaluate(PRINTED)
    page.context.close()
    assert printed == {"shown": ["H1", "ARTICLE"], "drawn": [], "paper": "rgb(255, 255, 255)"}

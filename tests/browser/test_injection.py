"""Whatever a reader types, or a shared link brings, stays text: looked at in a real browser's DOM."""

from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.serving import TIMEOUT, ask, visit

ELSEWHERE = "example.org"
STRINGS = {
    "html": '<img src=x onerror="window.broken=1"><script>window.broken=1</script><b>Tom</b>',
    "attribute": '"><svg onload="window.broken=1"><a href="javascript:window.broken=1">x</a>',
    "closing tags": "</mark></p></div></style><iframe srcdoc='<script>parent.broken=1</script>'></iframe>",
    "image": f"![x](https://{ELSEWHERE}/x.png) <img src='https://{ELSEWHERE}/y.png'>",
    "link": f"[click](https://{ELSEWHERE}) https://{ELSEWHERE} [js](javascript:window.broken=1)",
    "markdown": "# Head **bold** _it_ `code` :red[red] :material/home: ~~gone~~ | a | b |",
    "latex": r"$\href{javascript:window.broken=1}{x}$ $$\frac{1}{2}$$",
    "entities": "&lt;b&gt; &#60;script&#62; &amp;amp;",
    "template": "{{7*7}} ${7*7} <%= 7*7 %> %s {0}",
    "directions": "she \u202egnp.exe\u202c and \u2066he\u2069",
}
# What the page itself must never have got from a reader's words; the page's own pictures and links are known by name.
LOOK = """([elsewhere]) => {
    const all = [...document.querySelectorAll('*')]
    const from = (node) => [node.getAttribute('src'), node.getAttribute('href'), node.getAttribute('srcdoc')]
        .filter((value) => value && [elsewhere, 'javascript:', 'broken'].some((sign) => value.includes(sign)))
    return {
        broken: window.broken ?? null,
        foreign: all.flatMap(from),
        handlers: all.filter((node) => node.hasAttribute('onerror') || node.hasAttribute('onload')).length,
        frames: document.querySelectorAll('iframe').length,
        formulas: document.querySelectorAll('.katex').length,
    }
}"""
CLEAN = {"broken": None, "foreign": [], "handlers": 0, "frames": 0, "formulas": 0}


@pytest.fixture(scope="module")
def reader(address: str, browser: Browser) -> Iterator[Page]:
    page = visit(browser, address)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: asked.append(f"https://{ELSEWHERE}/dialog") or dialog.dismiss())
    yield page
    assert [url for url in asked if ELSEWHERE in urlsplit(url).netloc] == []


def is_clean(page: Page) -> None:
    page.wait_for_timeout(300)  # what a picture's error would do comes later
    assert page.evaluate(LOOK, [ELSEWHERE]) == CLEAN


def spoken(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", STRINGS)
def test_in_a_story(reader: Page, name: str):
    """As the story's start, where it is shown, marked, and offered for keeping."""
    words = STRINGS[name]
    before = reader.get_by_test_id("story").inner_text() if reader.get_by_test_id("story").count() else ""
    ask(reader, f"Oh {words} and", "home")
    reader.wait_for_function(
        "before => { const s = document.querySelector('[data-testid=story]'); return s && s.innerText !== before }",
        arg=before,
    )
    expect(reader.get_by_text("It ends on your word.")).to_be_visible(timeout=TIMEOUT)
    story = reader.get_by_test_id("story")
    expect(story).to_have_count(1)
    assert spoken(story.evaluate("node => node.textContent")).startswith(spoken(f"Oh {words} and"))
    assert story.locator("img, script, a, iframe, svg, b, h1, code").count() == 0
    is_clean(reader)


@pytest.mark.parametrize("name", STRINGS)
def test_in_a_message(reader: Page, name: str):
    """Too many words for the length: the page says so, and may repeat them."""
    ask(reader, f"{STRINGS[name]} " + "and on " * 160, f"{STRINGS[name]}"[:150])
    expect(reader.get_by_text("This story cannot be told")).to_be_visible(timeout=TIMEOUT)
    is_clean(reader)


@pytest.mark.parametrize("name", STRINGS)
def test_in_a_link(address: str, reader: Page, name: str):
    """Somebody else's link: as the parameter's whole value, and as other parameters."""
    words = quote(STRINGS[name])
    reader.goto(f"{address}/?story={words}&start={words}&end={words}")
    expect(reader.get_by_text("This link cannot be opened")).to_be_visible(timeout=TIMEOUT)
    is_clean(reader)


@pytest.mark.parametrize(
    "text",
    ["x" * 20_000, "and " * 5_000, "\u200b", "\0\x07", "🐉" * 500],
    ids=["long", "many", "invisible", "control", "emoji"],
)
def test_oversized_or_odd_input_gets_a_story_or_a_friendly_message(reader: Page, text: str):
    ask(reader, text, "home")
    friendly = reader.get_by_text("It ends on your word.").or_(reader.get_by_text("This story cannot be told"))
    expect(friendly.first).to_be_visible(timeout=TIMEOUT)
    assert reader.get_by_test_id("stException").count() == 0
    is_clean(reader)

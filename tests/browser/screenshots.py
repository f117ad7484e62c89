"""The page's main states as pictures, for the README and for eyes: one reader a size and scheme walks through them.

python -m tests.browser.screenshots [--out docs/figures] [--schemes dark] [--sizes phone] [--address http://...]
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.browser.serving import ask, chromium, serve, visit
from tests.conftest import ROOT

SIZES = {"desktop": {"width": 1120, "height": 1040}, "phone": {"width": 390, "height": 844}}
SEED = "7"
ANOTHER_STORY = "before => ![before, undefined].includes(document.querySelector('[data-testid=story]')?.innerText)"


def empty(page: Page) -> None:
    page.get_by_text("Your shelf: 0 stories").wait_for()


def error(page: Page) -> None:
    ask(page, "She", "...")
    page.get_by_role("alert").wait_for()


def story(page: Page) -> None:
    page.get_by_text("More wishes").click()
    page.get_by_role("textbox", name="Seed").fill(SEED)
    page.get_by_text("More wishes").click()
    tell(page, "The little dragon", "home")
    page.mouse.move(5, 5)


def inside(page: Page) -> None:
    page.get_by_text("Look inside").click()
    page.locator("canvas, .vega-embed svg").first.wait_for()
    page.locator(".told").evaluate("told => scrollTo && told.scrollIntoView({block: 'start'})")


def compare(page: Page) -> None:
    page.get_by_text("Look inside").click()
    before = page.get_by_test_id("story").inner_text()
    page.get_by_role("button", name="Another version").click()
    page.wait_for_function(ANOTHER_STORY, arg=before)
    page.get_by_text("Compare side by side").click()
    page.get_by_test_id("version").nth(1).wait_for()
    page.get_by_text("Compare side by side").evaluate("toggle => toggle.scrollIntoView({block: 'start'})")


def shelf(page: Page) -> None:
    page.get_by_text("Compare side by side").click()
    for start, end in (("It rained all day", "rainbow"), ("A tiny mouse", "moon")):
        tell(page, start, end)
    page.get_by_text("Your shelf: 4 stories").click()
    page.get_by_role("button", name="Save the shelf as a file").scroll_into_view_if_needed()


def tell(page: Page, start: str, end: str) -> None:
    story = page.get_by_test_id("story")
    before = story.inner_text() if story.count() else None
    ask(page, start, end)
    page.wait_for_function(ANOTHER_STORY, arg=before)


STATES: dict[str, Callable[[Page], None]] = {
    "empty": empty, "error": error, "story": story, "inside": inside, "compare": compare, "shelf": shelf,
}  # fmt: skip


def walk(browser: Browser, url: str, scheme: str, size: str, folder: Path) -> None:
    page = visit(browser, url, viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce")
    for state, reach in STATES.items():
        reach(page)
        page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
        page.wait_for_timeout(1500)  # fonts, and Streamlit's own fading in
        path = folder / f"page_{state}_{scheme}_{size}.png"
        page.screenshot(path=path)
        print(f"{path.name}: {path.stat().st_size // 1000} KB", flush=True)
    page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", nargs="*", choices=("light", "dark"), default=["light", "dark"])
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--address", help="of a page that runs already")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with nullcontext(arguments.address) if arguments.address else serve() as url, chromium() as browser:
        for scheme in arguments.schemes:
            for size in arguments.sizes:
                walk(browser, url, scheme, size, arguments.out)


if __name__ == "__main__":
    main()

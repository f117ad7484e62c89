"""The page's main states as pictures, for the README and for eyes.

python -m tests.browser.screenshots [--only story] [--out docs/figures]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.browser.serving import ask, chromium, serve, visit
from tests.conftest import ROOT

SIZES = {"desktop": {"width": 1120, "height": 1000}, "phone": {"width": 390, "height": 844}}
SEED = "7"


def empty(page: Page) -> None:
    pass


def story(page: Page) -> None:
    page.get_by_text("More wishes").click()
    page.get_by_role("textbox", name="Seed").fill(SEED)
    page.get_by_text("More wishes").click()
    ask(page, "The little dragon", "home")
    page.get_by_test_id("story").wait_for()
    page.get_by_text("It ends on your word.").wait_for()


def compare(page: Page) -> None:
    story(page)
    first = page.get_by_test_id("story").inner_text()
    page.get_by_role("button", name="Another version").click()
    page.wait_for_function("first => document.querySelector('[data-testid=story]').innerText !== first", arg=first)
    page.get_by_text("Compare side by side").click()
    page.get_by_test_id("version").nth(1).wait_for()


def shelf(page: Page) -> None:
    story(page)
    for start, end in (("Once upon a time", "happy"), ("A tiny mouse", "moon")):
        before = page.get_by_test_id("story").inner_text()
        ask(page, start, end)
        page.wait_for_function("first => document.querySelector('[data-testid=story]').innerText !== first", arg=before)
    page.get_by_text("Your shelf: 3 stories").click()
    page.get_by_role("button", name="Save the shelf as a file").wait_for()
    page.get_by_role("button", name="Save the shelf as a file").scroll_into_view_if_needed()


def inside(page: Page) -> None:
    story(page)
    page.get_by_text("Look inside").click()
    page.locator(".told").wait_for()
    page.locator("canvas, .vega-embed svg").first.wait_for()
    page.locator(".told").scroll_into_view_if_needed()


def error(page: Page) -> None:
    ask(page, "She", "...")
    page.get_by_role("alert").wait_for()


STATES: dict[str, Callable[[Page], None]] = {
    "empty": empty, "story": story, "compare": compare, "shelf": shelf, "inside": inside, "error": error,
}  # fmt: skip


def take(browser: Browser, url: str, state: str, scheme: str, size: str, folder: Path) -> Path:
    page = visit(browser, url, viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce")
    page.get_by_text("Your shelf").wait_for()
    STATES[state](page)
    page.wait_for_timeout(1500)  # fonts, and Streamlit's own fading in
    path = folder / f"page_{state}_{scheme}_{size}.png"
    page.screenshot(path=path, full_page=False)
    page.context.close()
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=STATES, default=list(STATES))
    parser.add_argument("--schemes", nargs="*", default=["light", "dark"])
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with serve() as url, chromium() as browser:
        for state in arguments.only:
            for scheme in arguments.schemes:
                for size in arguments.sizes:
                    path = take(browser, url, state, scheme, size, arguments.out)
                    print(f"{path.name}: {path.stat().st_size // 1000} KB")


if __name__ == "__main__":
    main()

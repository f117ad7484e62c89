"""The page in a server of its own, and a Chromium that looks at it; for tests, figures and measurements."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.chromium import find_chromium
from tests.conftest import ROOT

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FLAGS += ["--no-first-run", "--disable-component-update", "--disable-sync"]
TIMEOUT = 180_000  # milliseconds: machines that run tests are busy


@contextmanager
def serve(command: str = "app.py") -> Iterator[str]:
    """The page's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, "-m", "streamlit", "run", command, "--server.port", str(port)]
    server = subprocess.Popen(arguments, cwd=ROOT / "space", stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
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


@contextmanager
def chromium() -> Iterator[Browser]:
    path = find_chromium()
    assert path, "no Chromium: run `make chromium`, or set CHROMIUM to the path of one"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.fspath(path), args=FLAGS)
        yield browser
        browser.close()


def visit(browser: Browser, url: str, **settings) -> Page:
    """The page opened by a new reader, ready for wishes."""
    page = browser.new_context(**settings).new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto(url)
    page.get_by_role("button", name="Tell the story").wait_for()
    return page


def ask(page: Page, start: str, end: str) -> None:
    page.get_by_role("textbox", name="The story starts with").fill(start)
    page.get_by_role("textbox", name="and ends with").fill(end)
    page.get_by_role("button", name="Tell the story").click()

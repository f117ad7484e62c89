"""What the browser's tests share: the page in a server of its own, one for all, and a Chromium for each file."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.serving import TIMEOUT, chromium, serve


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Served as the Space serves it."""
    with serve("serve.py") as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=TIMEOUT)
    with chromium() as browser:
        yield browser

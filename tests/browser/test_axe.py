"""The page's states under axe-core, which checks accessibility: no violation, in light and dark, desktop and phone."""

import functools
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.serving import TIMEOUT, ask, visit
from tests.conftest import ROOT

AXE = "axe-core@4.14.1"
# Streamlit's own: where files are dropped has a role and a tabindex that axe calls a minor conflict; no WCAG rule does.
ACCEPTED = ("presentation-role-conflict", 'data-testid="stFileUploaderDropzone"')
SIZES = {"phone": {"width": 360, "height": 780}, "desktop": {"width": 1280, "height": 900}}


@functools.cache
def axe_source() -> str:
    """axe-core's script, fetched once by npm into build/."""
    archive = ROOT / "build" / (AXE.replace("@", "-") + ".tgz")
    if not archive.is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("no npm to fetch axe-core with")
        archive.parent.mkdir(exist_ok=True)
        command = [npm, "pack", AXE, "--silent", "--pack-destination", str(archive.parent)]
        subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)
    with tarfile.open(archive) as package:
        script = package.extractfile("package/axe.min.js")
        assert script
        return script.read().decode("utf-8")


def violations(page: Page) -> list[str]:
    """Each violation's rule, how bad it is, where, and what would help."""
    page.evaluate(axe_source())
    found = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    return [
        f"{rule['id']} ({rule['impact']}): {node['html']}: {node['failureSummary']}"
        for rule in found
        for node in rule["nodes"]
        if not (rule["id"] == ACCEPTED[0] and ACCEPTED[1] in node["html"])
    ]


def fits(page: Page) -> bool:
    """Nothing must be reached by scrolling sideways."""
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize(
    ("scheme", "size"),
    [
        ("light", "phone"),
        pytest.param("dark", "desktop", marks=pytest.mark.slow),
        pytest.param("light", "desktop", marks=pytest.mark.slow),
        pytest.param("dark", "phone", marks=pytest.mark.slow),
    ],
)
def test_no_violation(address: str, browser: Browser, scheme: str, size: str):
    """Before a story, with one, and with a message, in one visit; then with all that unfolds unfolded."""
    page = visit(browser, address, viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce")
    page.wait_for_timeout(1000)  # until Streamlit has faded in: a contrast is measured as it is then
    found = {"empty": violations(page)}
    ask(page, "The little dragon", "home")
    expect(page.get_by_text("It ends on your word.")).to_be_visible(timeout=TIMEOUT)
    page.wait_for_timeout(1000)
    found["story"] = violations(page)
    assert fits(page)
    unfolded = page.locator("details > summary")
    for number in range(unfolded.count()):
        unfolded.nth(number).click()
    for name in ("Look inside", "Compare side by side"):
        if (switch := page.get_by_text(name, exact=True)).count():
            switch.click()
    page.wait_for_timeout(3000)
    found["unfolded"] = violations(page)
    assert fits(page)
    ask(page, "She", "...")
    expect(page.get_by_text("This story cannot be told")).to_be_visible(timeout=TIMEOUT)
    page.wait_for_timeout(1000)
    found["message"] = violations(page)
    page.context.close()
    assert not any(found.values()), found


def test_the_script_is_axe(tmp_path: Path, browser: Browser):
    """It finds what is wrong where something is: a picture without words, a field without a name."""
    page = browser.new_page()
    page.set_content("<html><body><img src='x.png'><input></body></html>")
    assert {line.split(" ")[0] for line in violations(page)} >= {"image-alt", "label"}
    page.close()

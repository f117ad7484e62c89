"""Find a Chromium for the browser tests, or install one: from the system's packages, or Playwright's own.

python tests/browser/chromium.py
"""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """Path of an installed browser: CHROMIUM, one on the PATH, or Playwright's."""
    chosen = os.environ.get("CHROMIUM")
    if chosen:
        return chosen
    for name in NAMES:
        if path := shutil.which(name):
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if os.path.exists(path) else None


def install_chromium() -> str | None:
    """Try the system's package manager, then Playwright's download; the path, or None if neither worked."""
    attempts: list[list[list[str]]] = [[[sys.executable, "-m", "playwright", "install", "--with-deps", "chromium"]]]
    if shutil.which("apt-get"):
        root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
        attempts.insert(0, [[*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", "chromium"]])
    for commands in attempts:
        try:
            for command in commands:
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"did not work: {error}", file=sys.stderr)
        if path := find_chromium():
            return path
    return None


if __name__ == "__main__":
    found = find_chromium() or install_chromium()
    if not found:
        sys.exit(
            "No Chromium found and none could be installed: the browser tests cannot run. "
            "Install one (for instance: apt-get install chromium), or set CHROMIUM to its path."
        )
    print(f"Chromium: {found}")

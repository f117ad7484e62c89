"""Style and types. They are tests, so that they run beside the others, on whichever processor is free."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("command", ["mypy modeling training benchmarks", "ruff check .", "ruff format --check ."])
def test_style(command: str):
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

"""The guide's commands and code run as they stand, the model learns from them, and what they save loads elsewhere."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HUB_FOLDER, ROOT

GUIDE = (ROOT / "docs/your_own_stories.md").read_text(encoding="utf-8")
SHORT = ["--num_steps", "2", "--row_length", "128"]
LOAD = """
import sys
from transformers import pipeline
tell = pipeline("story-generation", model="my-stories", trust_remote_code=True)
print(tell("One day", end="home", max_words=80, seed=0)["story"])
"""


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(program: str, folder: Path) -> str:
    return run([sys.executable, "-P", "-c", program], folder)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, stories: list[str]) -> Path:
    """A clone with a folder of stories, all different."""
    for name in ("modeling", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "stories").mkdir()
    for number in range(2 * len(stories)):
        text = f"{stories[number % len(stories)]}\n\nThis was story {number}."
        (tmp_path / "stories" / f"{number}.txt").write_text(text, encoding="utf-8")
    assert HUB_FOLDER.samefile(tmp_path / "modeling")
    return tmp_path


@pytest.mark.slow
def test_from_a_folder_of_texts_to_a_told_story(folder: Path):
    launcher, *arguments = shlex.split(blocks("sh")[0].replace("\\\n", ""))
    assert launcher == "accelerate"
    said = run([sys.executable, "-m", "accelerate.commands.accelerate_cli", *arguments, *SHORT], folder)
    assert "stories: 24 stories, one a file" in said and "23 stories to train on (1 of 24 left out" in said
    assert python(blocks("python")[0], folder).startswith("One day")


@pytest.mark.slow  # tests/modeling/test_copies.py saves and loads an adapter, too
def test_peft(folder: Path):
    program = "\n".join([*blocks("python")[1:], "import json", "print(json.dumps(trainer.state.log_history))"])
    *told, log = python(program, folder).splitlines()
    losses = [entry["loss"] for entry in json.loads(log) if "loss" in entry]
    assert float(losses[-1]) < float(losses[0]) - 0.3
    story = python(LOAD, folder)
    assert story.startswith("One day") and story.strip() and story.strip() in "\n".join(told)

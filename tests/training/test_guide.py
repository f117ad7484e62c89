"""The guide's code runs as it stands, the model learns from it, and what it saves loads elsewhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import HUB_FOLDER, ROOT, STORIES_FILE

LOAD = """
import sys
from transformers import pipeline
tell = pipeline("story-generation", model="my-stories", trust_remote_code=True)
print(tell("One day", end="home", max_words=80, seed=0)["story"])
"""


def run(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_guide(tmp_path: Path):
    (tmp_path / "modeling").symlink_to(HUB_FOLDER)
    (tmp_path / "stories.jsonl").write_bytes(STORIES_FILE.read_bytes() * 2)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/your_own_stories.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    program = "\n".join([*blocks, "import json", "print(json.dumps(trainer.state.log_history))"])
    *told, log = run(program, tmp_path).splitlines()
    losses = [entry["loss"] for entry in json.loads(log) if "loss" in entry]
    assert float(losses[-1]) < float(losses[0]) - 0.3
    story = run(LOAD, tmp_path)
    assert story.startswith("One day") and story.strip() and story.strip() in "\n".join(told)

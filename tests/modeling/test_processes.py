"""A story is the same in every process, however the process was made, and no process waits for ever."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import HUB_FOLDER

# One parent for all children, since it takes seconds to make. It tells on two threads before it makes any.
PROGRAM = f"""
import json, multiprocessing, os, threading
import torch
from transformers import pipeline

def story(seed=1, max_words=20, precision="auto"):
    return tell("She", end="happy", max_words=max_words, seed=seed, precision=precision)["story"]

def child(queue, precision):
    queue.put(story(precision=precision))

def told_by(method, precision="auto"):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=child, args=(queue, precision))
    process.start()
    told = queue.get()
    process.join()
    return told

tell = pipeline("story-generation", model={str(HUB_FOLDER)!r}, trust_remote_code=True)
"""
# Each part prints its name, what should be told, and what was.
PARTS = {
    "": """
    def say(name, expected, told):
        print(json.dumps([name, expected, told]), flush=True)

    torch.set_num_threads(1)
    expected = {precision: story(precision=precision) for precision in ("auto", "int8", "full")}
    other = story(2)
    torch.set_num_threads(2)
    for precision in expected:
        story(max_words=4, precision=precision)
""",
    "fork": """
    for precision in expected:
        say(f"fork {precision}", expected[precision], told_by("fork", precision))
""",
    "other methods": """
    for method in ("spawn", "forkserver"):
        say(method, expected["auto"], told_by(method))
""",
    "datasets": """
    from datasets import Dataset
    told = Dataset.from_dict({"seed": [1, 2, 1, 2]}).map(lambda row: {"story": story(row["seed"])}, num_proc=2)["story"]
    say("datasets", [expected["auto"], other] * 2, list(told))
""",
    # Each child says on how many threads it works, and how many different stories two threads of its own tell.
    "threads of a child": """
    numbers = []
    for _ in range(2):
        read, write = os.pipe()
        if os.fork() == 0:
            from concurrent.futures import ThreadPoolExecutor
            with ThreadPoolExecutor(2) as pool:
                same = len(set(pool.map(story, [1, 1])))
            os.write(write, b"%d %d" % (torch.get_num_threads(), same))
            os._exit(0)
        numbers.append(os.read(read, 20).decode())
    say("threads of a child", ["1 1"] * 2, numbers)
""",
    "forked while a thread tells": """
    done = threading.Event()

    def go_on():
        while not done.is_set():
            story(2, max_words=4)

    thread = threading.Thread(target=go_on)
    thread.start()
    told = [told_by("fork") for _ in range(4)]
    done.set()
    thread.join()
    say("forked while a thread tells", [expected["auto"]] * 4, told)
""",
}
WAYS = ["fork auto", "fork int8", "fork full", "spawn", "forkserver", *list(PARTS)[3:]]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """What was expected and what was told, by the way the children were made."""
    folder = tmp_path_factory.mktemp("processes")
    file = folder / "program.py"
    file.write_text(PROGRAM + 'if __name__ == "__main__":' + "".join(PARTS.values()), encoding="utf-8")
    done = subprocess.run([sys.executable, "-P", file], cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: pair for name, *pair in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("way", WAYS)
def test_a_child_tells_what_its_parent_tells(told: dict[str, list], way: str):
    expected, by_children = told[way]
    assert by_children == expected

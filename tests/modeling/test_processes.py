"""A story is the same in every process, however the process was made, and no process waits for ever."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HUB_FOLDER

# Each program prints the parent's stories and then its children's. Before, the parent has told on two threads.
BEGIN = f"""
import json, multiprocessing, os, sys, threading
import torch
from transformers import pipeline

def story(seed=1, max_words=20):
    return tell("She", end="happy", max_words=max_words, seed=seed, precision=precision)["story"]

def child(queue, seed=1):
    queue.put(story(seed))

def told_by(context):
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    told = queue.get()
    process.join()
    return told

precision = sys.argv[1]
tell = pipeline("story-generation", model={str(HUB_FOLDER)!r}, trust_remote_code=True)
if __name__ == "__main__":
    torch.set_num_threads(1)
    expected = [story(1), story(2)]
    torch.set_num_threads(2)
    story(1, max_words=4)
"""
STARTED = """
    print(json.dumps([expected[0], told_by(multiprocessing.get_context(sys.argv[2]))]))
"""
DATASETS = """
    from datasets import Dataset
    told = Dataset.from_dict({"seed": [1, 2, 1, 2]}).map(lambda row: {"story": story(row["seed"])}, num_proc=2)["story"]
    print(json.dumps([expected * 2, list(told)]))
"""
WHILE_TELLING = """
    done = threading.Event()

    def go_on():
        while not done.is_set():
            story(2, max_words=4)

    thread = threading.Thread(target=go_on)
    thread.start()
    told = [told_by(multiprocessing.get_context("fork")) for _ in range(4)]
    done.set()
    thread.join()
    print(json.dumps([expected[:1] * 4, told]))
"""
# Each child says on how many threads it works, and how many different stories two threads of its own tell.
THREADS = """
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
    print(json.dumps([["1 1"] * 2, numbers]))
"""
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def run(folder: Path, program: str, *arguments: str) -> None:
    """Run the program; what it prints last is a pair of equals."""
    file = folder / "program.py"
    file.write_text(BEGIN + program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", str(file), *arguments], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    expected, told = json.loads(done.stdout.splitlines()[-1])
    assert told == expected


@pytest.mark.parametrize(
    ("precision", "method"),
    [("auto", "fork"), ("int8", "fork"), ("full", "fork"), ("auto", "spawn"), ("auto", "forkserver")],
)
def test_a_child_tells_what_its_parent_tells(tmp_path: Path, precision: str, method: str):
    run(tmp_path, STARTED, precision, method)


def test_datasets_map_tells_in_two_processes(tmp_path: Path):
    run(tmp_path, DATASETS, "auto")


def test_a_thread_tells_while_another_forks(tmp_path: Path):
    run(tmp_path, WHILE_TELLING, "auto")


def test_a_forked_child_works_on_one_thread(tmp_path: Path):
    run(tmp_path, THREADS, "auto")

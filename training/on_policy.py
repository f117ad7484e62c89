"""Stories that the student's first weights write while its teachers are trained, by processes of their own.

On-policy distillation (Agarwal et al. 2023, arXiv 2306.13649): a student meets its own mistakes in what it wrote, and
its teachers say what should follow them.
"""

import json
import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from modeling.generation_tiny_story import write_stories
from modeling.request_tiny_story import StoryRequest
from training.checkpoint import load_pretrained

STORIES_AT_ONCE = 4
NICENESS = 10  # below the processes that pack rows


class Writers:
    """Processes that write stories with the first words of some."""

    def __init__(self, count: int, model_name: str | None, texts: list[str], folder: Path):
        self.started: list[tuple[BaseProcess, Path]] = []  # and where each writes
        for number in range(count):
            starts = [" ".join(text.split()[: 1 + i % 4]) for i, text in enumerate(texts[number::count])]
            path = folder / f"written_{number}.jsonl"
            path.unlink(missing_ok=True)  # an earlier run's would be read for this one's if the writer dies
            arguments = (model_name, starts, path, number * 10**6, NICENESS)
            process = multiprocessing.get_context("spawn").Process(target=write_on, args=arguments, daemon=True)
            process.start()
            self.started.append((process, path))

    def stop(self, log: Callable[..., None]) -> list[str]:
        """The whole stories that were written, the first time; of a writer that had failed the log tells."""
        stories = []
        while self.started:
            process, path = self.started.pop(0)
            if process.exitcode:
                log(failed_writer=path.name, exit_code=process.exitcode)
            process.kill()
            process.join()
            for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
                with suppress(json.JSONDecodeError):  # the last one may be cut
                    stories.append(json.loads(line))
        return [story["text"] for story in stories if story["whole"]]


def write_on(model_name: str, starts: list[str], path: Path, seed: int, nice: int = 0) -> None:
    """Write stories with a model, a line of JSON each, until the starts are used up or the process is ended."""
    os.nice(nice)
    torch.set_num_threads(1)
    model, tokenizer = load_pretrained(model_name)
    with path.open("w", encoding="utf-8") as file:
        for at in range(0, len(starts), STORIES_AT_ONCE):
            requests = [
                StoryRequest(start, max_words=250, temperature=0.7, dry_multiplier=0.0, seed=seed + at + index)
                for index, start in enumerate(starts[at : at + STORIES_AT_ONCE])
            ]
            stories = {index: story for index, _, story in write_stories(model, tokenizer, requests)}
            for story in stories.values():
                file.write(json.dumps({"text": story.text, "whole": story.finish_reason == "eos"}) + "\n")
            file.flush()

"""The Space's storyteller: the model in a process of its own, and the line of readers before it.

A story is hundreds of turns between Python and the C kernel, and a process runs one thread's Python at a time. So two
stories at once take twice as long each, and beside the threads that draw other readers' pages one takes two to three
times as long; on two OpenMP threads and two busy cores it took six times as long (docs/notebook, 2026-11-27). Here one
story is written at a time, on one thread, in the readers' order, and the pages keep the other core.

`python engine.py MODEL [REVISION]` is the storyteller's process: wishes in and stories out, a line of JSON each. It
ends when the page's process does.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parent.parent / "modeling"
MAX_DRAFTS = 16
MAX_BYTES = 20_000  # of a wish
MAX_READERS = 60  # in line
LONGEST_WAIT = 60.0  # seconds in line
LONGEST_STORY = 20.0  # seconds to write one reader's drafts; they need half of one
LONGEST_START = 300.0  # seconds to open the model, a download included
LOOK = 0.4  # seconds between two looks at the line
LOST = "The storyteller lost the thread. Please ask once more."


class EngineError(Exception):
    """What stands in a reader's way, in words for the reader."""


class Busy(EngineError):  # noqa: N818
    """Too many readers, or the storyteller had to be started again: ask once more."""


class TooSlow(EngineError):  # noqa: N818
    """The time limit for a story was reached."""


def chosen_model() -> tuple[str, str | None]:
    """MODEL_ID and MODEL_REVISION if they are set, else the model of this clone.

    Raises:
        OSError: there is neither.
    """
    if os.environ.get("MODEL_ID"):
        return os.environ["MODEL_ID"], os.environ.get("MODEL_REVISION") or None
    if (CLONE / "config.json").is_file():
        return str(CLONE), None
    raise OSError("no model beside this page: set MODEL_ID to a Hub name or a folder")


class Engine:
    """The storyteller, for all readers of this process: `Engine.load(*chosen_model())`."""

    def __init__(self, model_id: str, revision: str | None = None):
        self._command = [sys.executable, "-P", __file__, model_id, *([revision] if revision else [])]
        self._lock = threading.Lock()
        self._line: list[threading.Event] = []  # the first one's story is being written; its event is set
        self._start()

    @classmethod
    def load(cls, model_id: str, revision: str | None = None) -> "Engine":
        """The storyteller with this model, started at the first call, its C kernel built and its first story told.

        Raises:
            OSError: the model cannot be loaded.
        """
        with _LOADING:
            return _load(model_id, revision)

    @property
    def readers(self) -> int:
        """Readers in line, the one whose story is being written included."""
        return len(self._line)

    def tell(
        self,
        wishes: dict[str, Any],
        on_place: Callable[[int], None] | None = None,
        subfolder: str = "",
    ) -> dict[str, Any]:
        """Write a reader's story, when it is their turn.

        Args:
            wishes: what the pipeline's call takes, with one `start` or `continue_from`.
            on_place: called every LOOK seconds in line with the number of readers before this one. What it raises
                leaves the line: in a page, a Streamlit call raises there when its reader has left or clicked again.
            subfolder: of the model's repository; another than "" is opened at its first story.

        Returns:
            The pipeline's result.

        Raises:
            ValueError: what cannot be told, as the pipeline says it.
            Busy: MAX_READERS are in line, LONGEST_WAIT is over, or the storyteller's process ended.
            TooSlow: LONGEST_STORY is over.
        """
        wish = _as_line(wishes, subfolder)
        turn = threading.Event()
        with self._lock:
            if len(self._line) >= MAX_READERS:
                raise Busy("So many readers are here that there is no room in the line. Please ask again in a minute.")
            self._line.append(turn)
            self._line[0].set()
        try:
            came = time.monotonic()
            while not turn.wait(LOOK):
                if time.monotonic() - came > LONGEST_WAIT:
                    raise Busy("The line before you did not get shorter. Please ask again in a minute.")
                if on_place:
                    on_place(self._line.index(turn))
            return self._write(wish)
        finally:
            with self._lock:
                self._line.remove(turn)
                if self._line:
                    self._line[0].set()

    def close(self) -> None:
        """End the storyteller's process; the next story starts another."""
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_pump, args=(self._process, self._answers), daemon=True).start()
        answer = self._answer(LONGEST_START)
        if answer is None or "failed" in answer:
            self.close()
            raise OSError(answer["failed"] if answer else f"it did not open within {LONGEST_START:.0f} seconds")

    def _write(self, wish: str) -> dict[str, Any]:
        if self._process.poll() is not None:
            try:
                self._start()
            except OSError as problem:
                raise Busy(LOST) from problem
        assert self._process.stdin
        try:
            self._process.stdin.write(wish)
            self._process.stdin.flush()
        except OSError:
            self.close()
        answer = self._answer(LONGEST_STORY)
        if answer is None:
            self.close()  # its answer must never reach the next reader
            raise TooSlow(f"No story came within {LONGEST_STORY:.0f} seconds. Please ask for a shorter one.")
        if "wrong" in answer:
            raise ValueError(answer["wrong"])
        if "failed" in answer:
            raise Busy(LOST)
        return answer["told"]

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        """The storyteller's next answer; None if none came in time."""
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            return None
        if not line:
            self.close()
            return {"failed": "the storyteller's process ended"}
        return json.loads(line)


_LOADING = threading.Lock()  # the first readers may come at once
_load = lru_cache(maxsize=None)(Engine)


def _as_line(wishes: dict[str, Any], subfolder: str) -> str:
    """
    Raises:
        ValueError: too many drafts, a wish of too many bytes, or not one start.
    """
    drafts = wishes.get("num_candidates", 1)
    if not 1 <= drafts <= MAX_DRAFTS:
        raise ValueError(f"a wish may ask for 1 to {MAX_DRAFTS} drafts, got {drafts}")
    if "num_stories" in wishes:
        raise ValueError("a wish is for one story")
    if not isinstance(wishes.get("start", wishes.get("continue_from")), str):
        raise ValueError("a wish has one start, which is text")
    line = json.dumps({"wishes": wishes, "subfolder": subfolder}) + "\n"
    if len(line) > MAX_BYTES:
        raise ValueError(f"a wish may have {MAX_BYTES:,} bytes, this one has {len(line):,}")
    return line


def _pump(process: subprocess.Popen[str], answers: "queue.SimpleQueue[str]") -> None:
    """Hand on what the storyteller says, and "" when it has ended."""
    assert process.stdout
    for line in process.stdout:
        answers.put(line)
    answers.put("")


def storyteller(model_id: str, revision: str | None) -> None:
    """Open the model, say so, and answer each line of wishes with a line of stories."""
    # Imported here only: the page's process needs neither.
    import torch
    from transformers import Pipeline, pipeline

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what others print must not come between
    torch.set_num_threads(1)

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer, default=lambda number: number.item()) + "\n")
        answers.flush()

    @lru_cache(maxsize=2)
    def teller(subfolder: str) -> Pipeline:
        # A subfolder holds a config and weights; the tokenizer is the repository's.
        tokenizer = teller("").tokenizer if subfolder else None
        opened = pipeline(
            "story-generation", model=model_id, revision=revision, tokenizer=tokenizer, trust_remote_code=True,
            device="cpu", model_kwargs={"subfolder": subfolder} if subfolder else None,
        )  # fmt: skip
        opened("Once", max_words=1)  # builds the kernel and packs the weights
        return opened

    try:
        teller("")
    except Exception as problem:
        say(failed=str(problem))
        return
    say(ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            say(told=teller(asked["subfolder"])(**asked["wishes"]))
        except ValueError as problem:
            say(wrong=str(problem))
        except Exception as problem:  # of which the log gets the places only: a message may hold a reader's words
            print(type(problem).__name__, *traceback.format_tb(problem.__traceback__), sep="\n", file=sys.stderr)
            say(failed=type(problem).__name__)


if __name__ == "__main__":
    storyteller(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)

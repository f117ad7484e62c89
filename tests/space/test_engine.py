"""The storyteller and the line before it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from transformers import Pipeline

from tests.conftest import HUB_FOLDER, ROOT

sys.path.insert(0, str(ROOT / "space"))  # the Space is a folder on its own; its modules import each other by name
from engine import LOST, MAX_BYTES, Busy, Engine, TooSlow

WISHES = {"start": "the little fox", "end": "home", "max_words": 60}
ONE_ENGINE = """
import sys; sys.path.insert(0, sys.argv[1])
from concurrent.futures import ThreadPoolExecutor
from engine import Busy, Engine
with ThreadPoolExecutor(3) as readers:
    engines = list(readers.map(lambda _: Engine.load(sys.argv[2]), range(3)))
print(len(set(map(id, engines))) == 1, "torch" in sys.modules)
try:
    engines[0].tell({"start": "Secretive Sam", "end": "home", "self": "secretive"})
except Busy as problem:
    print(problem)
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine.load(str(HUB_FOLDER))
    yield engine
    engine.close()


def start(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_stories_are_the_pipelines(engine: Engine, tell: Pipeline):
    wishes = WISHES | {"seed": 5, "include": ["moon"]}
    assert engine.tell(wishes) == tell(**wishes)
    assert engine.tell(wishes | {"num_candidates": 3}) == tell(**wishes, num_candidates=3)
    on_from = {"continue_from": tell(**wishes)["story"], "end": "friends", "max_words": 120, "seed": 1}
    assert engine.tell(on_from) == tell(**on_from)


def test_the_classic_is_told_by_the_same_engine(engine: Engine, classic_model, tell: Pipeline):
    classic = type(tell)(model=classic_model, tokenizer=tell.tokenizer)
    assert engine.tell(WISHES | {"seed": 2}, subfolder="classic") == classic(**WISHES, seed=2)


def test_one_engine_no_torch_in_the_pages_process_and_no_readers_words_in_the_log(tmp_path: Path):
    """What the storyteller cannot foresee is logged without its message, which may hold a reader's words."""
    command = [sys.executable, "-P", "-c", ONE_ENGINE, str(ROOT / "space"), str(HUB_FOLDER)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["True False", LOST], done.stderr
    assert "TypeError" in done.stderr and "ecretive" not in done.stderr


def test_every_reader_gets_their_own_story(engine: Engine, tell: Pipeline):
    wishes = [
        WISHES | {"start": f"{name} and the cat", "seed": i} for i, name in enumerate(("Tom", "Ann", "Ben", "Sue"))
    ]
    told: dict[int, dict] = {}
    readers = [start(lambda i=i: told.update({i: engine.tell(wishes[i % 4])})) for i in range(16)]
    for reader in readers:
        reader.join()
    assert told == {i: tell(**wishes[i % 4]) for i in range(16)}
    assert engine.readers == 0


@contextmanager
def asleep(engine: Engine) -> Iterator[None]:
    """The storyteller sleeps, so that a line forms."""
    os.kill(engine._process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine._process.pid, signal.SIGCONT)


def test_readers_wait_in_order_see_their_place_and_may_leave(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.LOOK", 0.02)
    written: list[str] = []
    write = engine._write
    monkeypatch.setattr(
        engine, "_write", lambda wish: (written.append(json.loads(wish)["wishes"]["start"]), write(wish))[1]
    )
    places: dict[str, list[int]] = {"second": [], "third": []}

    class Left(BaseException):
        """As Streamlit ends a page's script."""

    def leave(place: int) -> None:
        assert place == 1
        raise Left

    def ask(name: str, on_place: Callable[[int], None] | None) -> None:
        with suppress(Left):
            engine.tell(WISHES | {"start": name}, on_place=on_place)

    readers = []
    with asleep(engine):
        for name, on_place in (("first", None), ("second", places["second"].append), ("third", places["third"].append)):
            readers.append(start(lambda name=name, on_place=on_place: ask(name, on_place)))
            wait_for(lambda: engine.readers == len(readers))
            if name == "first":
                leaver = start(lambda: ask("leaver", leave))
                leaver.join()
        wait_for(lambda: bool(places["second"] and places["third"]))
        assert set(places["second"]) == {1} and set(places["third"]) == {2}
    for reader in readers:
        reader.join()
    assert written == ["first", "second", "third"] and engine.readers == 0


def test_a_full_line_and_a_long_wait_are_said(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.LOOK", 0.02)
    monkeypatch.setattr("engine.LONGEST_WAIT", 0.05)
    with asleep(engine):
        first = start(lambda: engine.tell(WISHES))
        wait_for(lambda: engine.readers == 1)
        with pytest.raises(Busy, match="did not get shorter"):
            engine.tell(WISHES)
        monkeypatch.setattr("engine.MAX_READERS", 1)
        with pytest.raises(Busy, match="no room"):
            engine.tell(WISHES)
    first.join()
    assert engine.tell(WISHES)


@pytest.mark.slow
def test_after_the_time_limit_and_a_death_the_next_reader_gets_their_story(
    engine: Engine, tell: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch, asleep(engine):
        patch.setattr("engine.LONGEST_STORY", 0.1)
        with pytest.raises(TooSlow, match="shorter"):
            engine.tell(WISHES)
        patch.setattr(os, "kill", lambda *_: None)  # the sleeper is gone
    assert engine.tell(WISHES | {"seed": 9}) == tell(**WISHES, seed=9)
    os.kill(engine._process.pid, signal.SIGSTOP)
    told: list[object] = []

    def ask() -> None:
        try:
            told.append(engine.tell(WISHES))
        except Busy as problem:
            told.append(str(problem))

    writing = start(ask)
    wait_for(lambda: engine.readers == 1)
    os.kill(engine._process.pid, signal.SIGKILL)
    writing.join()
    assert told == [LOST]
    assert engine.tell(WISHES | {"seed": 9}) == tell(**WISHES, seed=9)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"start": " "}, "start must hold at least one word"),
        ({"start": "She", "tempo": 3}, "unknown argument 'tempo'"),
        ({"start": ["She", "He"]}, "one start"),
        ({}, "one start"),
        ({"start": "She", "num_candidates": 17}, "1 to 16 drafts, got 17"),
        ({"start": "She", "num_stories": 2}, "one story"),
        ({"start": "x" * MAX_BYTES}, "may have 20,000 bytes"),
        ({"start": "She", "end": "\ud83d"}, "half a character"),
    ],
)
def test_what_cannot_be_told_is_said(engine: Engine, wishes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        engine.tell(wishes)


def test_a_model_that_is_not_there(tmp_path: Path):
    with pytest.raises(OSError, match="config"):
        Engine.load(str(tmp_path))

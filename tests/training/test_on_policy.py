"""What the student's first weights write while its teachers are trained."""

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from tests.conftest import HUB_FOLDER
from training import on_policy
from training.on_policy import Writers, write_on


def test_a_writer_that_failed_is_told_of_and_leaves_nothing_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(on_policy, "write_on", time.sleep)  # which takes no such arguments
    (tmp_path / "written_0.jsonl").write_text(json.dumps({"text": "Of old.", "whole": True}) + "\n")
    writers, told = Writers(1, "-", ["She ran."], tmp_path), []
    writers.started[0][0].join()
    assert writers.stop(lambda **line: told.append(line)) == writers.stop(lambda **line: told.append(line)) == []
    assert told == [{"failed_writer": "written_0.jsonl", "exit_code": 1}]


def test_of_what_writers_wrote_whole_stories_count(tmp_path: Path):
    path, told = tmp_path / "written.jsonl", []
    write_on(str(HUB_FOLDER), ["Once upon a time", "The", "She", "One day"], path, seed=0)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4 and all(json.loads(line)["text"] for line in lines)
    path.write_text("\n".join([*lines, json.dumps({"text": "Once", "whole": False}), lines[0][:40]]))
    process = multiprocessing.Process(target=time.sleep, args=(60,))
    process.start()
    writers = Writers(0, None, [], tmp_path)
    writers.started.append((process, path))
    written = writers.stop(lambda **line: told.append(line))
    assert written == [json.loads(line)["text"] for line in lines if json.loads(line)["whole"]]
    assert written and not process.is_alive() and not told

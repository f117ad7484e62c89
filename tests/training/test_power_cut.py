"""Twenty times `kill -9`, half of them while a checkpoint is being written: nothing is lost and nothing changes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.training.test_train import SETTINGS, losses
from training.checkpoint import latest_checkpoint, list_checkpoints

KILLS = 20
CHANGES = {"num_steps": 150, "save_every": 3, "evaluate_every": 50, "wishes_share": 0.5}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def start(run_dir: Path) -> subprocess.Popen[bytes]:
    settings = SETTINGS | CHANGES | {"output_dir": run_dir, "validation_dataset": run_dir.parent / "validation.jsonl"}
    fields = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "training/train.py"), *fields], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip


def last_update(run_dir: Path) -> int:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines() if (run_dir / "metrics.jsonl").exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return steps[-1] if steps else 0


def kill(process: subprocess.Popen[bytes], run_dir: Path, during_save: bool, rng: random.Random) -> bool:
    """Kill -9 some updates after the last checkpoint, or while the next is being written; whether it then lay there
    half written."""
    checkpoints = run_dir / "checkpoints"
    saved = max((int(path.name.removeprefix("step_")) for path in list_checkpoints(checkpoints)), default=0)
    target = saved + rng.randint(1, 8)
    left_over = set(checkpoints.glob(".partial_*"))
    while process.poll() is None:
        if set(checkpoints.glob(".partial_*")) - left_over if during_save else last_update(run_dir) >= target:
            break
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.02))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return bool(list(checkpoints.glob(".partial_*")))


def test_twenty_kills_change_nothing(tmp_path: Path):
    (tmp_path / "validation.jsonl").write_text('{"text": "A hen had a hat. It was red. The hen was glad."}\n')
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert start(straight).wait() == 0

    rng = random.Random(0)
    half_written = 0
    for number in range(KILLS):
        process = start(killed)
        half_written += kill(process, killed, during_save=number % 2 == 1, rng=rng)
        assert process.returncode == -signal.SIGKILL, process.stderr.read().decode()[-3000:]
        newest = (list_checkpoints(killed / "checkpoints") or [None])[-1]
        assert latest_checkpoint(killed / "checkpoints") == newest  # what bears a checkpoint's name is whole
    assert half_written >= KILLS // 4
    assert not (killed / "model").exists()

    process = start(killed)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]
    assert losses(killed) == losses(straight)
    for name in ("checkpoints/step_00000150/model.safetensors", "model/model.safetensors"):
        ours, theirs = load_file(killed / name), load_file(straight / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

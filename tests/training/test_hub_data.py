"""Training from the Hub, as the recipes do it by default: stored and streamed, against a Hub on localhost."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from tests.hub import Hub, Repo
from tests.training.test_train import SETTINGS, losses
from training.sources import DEFAULT_DATASET


def parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file)
    return file.getvalue()


@pytest.mark.parametrize("streaming", [False, True])
def test_the_default_data_set_comes_from_the_hub(tmp_path: Path, stories: list[str], streaming: bool):
    repo = Repo(private=False)
    files = {
        "data/train-00000-of-00001.parquet": parquet(stories),
        "data/validation-00000-of-00001.parquet": parquet(["A hen had a hat. It was red. The hen was glad."]),
    }
    repo.commit(files, "stories")
    settings = SETTINGS | {"output_dir": tmp_path / "run", "num_steps": 6, "streaming": streaming}
    settings = {name: value for name, value in settings.items() if "dataset" not in name}
    fields = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    with Hub() as hub:
        hub.repos["dataset", DEFAULT_DATASET] = repo
        environment = os.environ | {
            "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, str(ROOT / "training/train.py"), *fields], capture_output=True, text=True, timeout=300,
            env=environment,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    values = losses(tmp_path / "run")
    assert len(values) == 6 and values[-1] < values[0] - 0.2

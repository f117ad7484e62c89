"""Training from the Hub, as the recipes do it by default: stored and streamed, against a Hub on localhost."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import ROOT
from tests.hub import Hub, Repo
from tests.training.test_train import SETTINGS, losses
from training.sources import DEFAULT_DATASET

# The clients read the Hub's address when they are imported: one process for both runs.
BOTH = """
import json, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["train.py", *arguments]
    runpy.run_path("training/train.py", run_name="__main__")
"""


def parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file)
    return file.getvalue()


def test_the_default_data_set_comes_from_the_hub(tmp_path: Path, stories: list[str]):
    repo = Repo(private=False)
    files = {
        "data/train-00000-of-00001.parquet": parquet(stories),
        "data/validation-00000-of-00001.parquet": parquet(["A hen had a hat. It was red. The hen was glad."]),
    }
    repo.commit(files, "stories")
    settings = {name: value for name, value in SETTINGS.items() if "dataset" not in name} | {"num_steps": 6}
    with Hub() as hub:
        hub.repos["dataset", DEFAULT_DATASET] = repo
        environment = os.environ | {
            "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        runs = [
            [str(part) for name, value in (settings | changes).items() for part in (f"--{name}", value)]
            for changes in (
                {"output_dir": tmp_path / "stored", "streaming": False},
                {"output_dir": tmp_path / "streamed", "streaming": True},
            )
        ]
        done = subprocess.run(
            [sys.executable, "-c", BOTH, json.dumps(runs)], cwd=ROOT, capture_output=True, text=True, timeout=300,
            env=environment,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("stored", "streamed"):
        values = losses(tmp_path / name)
        assert len(values) == 6 and values[-1] < values[0] - 0.2

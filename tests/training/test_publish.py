"""Publishing, with the real clients, against a Hub on localhost."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import RepoCard

from tests.conftest import ROOT
from tests.hub import Hub
from training.publish import PublishError, assemble_model, check_model

REPO = "writer/tiny-story"
TELL = """
import sys
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, revision=sys.argv[2])
AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, revision=sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True, revision=sys.argv[2])
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=8, do_sample=False)[0], skip_special_tokens=True))
tell = pipeline("story-generation", model=sys.argv[1], trust_remote_code=True, revision=sys.argv[2])
print(tell("She", end="home", max_words=40, seed=0)["story"].replace("\\n", " "))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def environment(hub: Hub, home: Path, token: str | None = "hf_writer") -> dict[str, str]:
    # Xet, the Hub's newer storage for large files, has a service of its own; without it the client speaks Git LFS.
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    return kept | settings | ({"HF_TOKEN": token} if token else {})


def publish(hub: Hub, home: Path, *flags: str, token: str | None = "hf_writer") -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "training.publish", "--repo", REPO, *flags]
    return subprocess.run(
        arguments, cwd=ROOT, env=environment(hub, home, token), capture_output=True, text=True, timeout=300
    )


def tell(hub: Hub, home: Path, revision: str) -> str:
    """What a fresh process with an empty cache, in another folder, says after loading the repository by its name."""
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-c", TELL, REPO, revision], cwd=home, env=environment(hub, home, None),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow  # tests/modeling/test_copies.py pushes and loads, too
def test_round_trip(hub: Hub, tmp_path: Path):
    done = publish(hub, tmp_path, "--space", "--tag", "v0.1.0")
    assert done.returncode == 0, done.stderr
    model, space = hub.repos["model", REPO], hub.repos["space", REPO]
    _, files, message = model.commits[-1]
    assert message == "Tiny Story Generator v0.1.0" and model.tags == {"v0.1.0": model.commits[-1][0]}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "LICENSE"} <= set(files)
    assert not [path for path in files if "pycache" in path or path.endswith((".pt", ".bin", "card.md"))]
    assert f'model="{REPO}"' in files["README.md"].decode()
    assert f"ENV MODEL_ID={REPO}\nENV MODEL_REVISION=v0.1.0\n" in space.commits[-1][1]["Dockerfile"].decode()
    card = RepoCard(space.commits[-1][1]["README.md"].decode()).data.to_dict()
    assert card["models"] == card["preload_from_hub"] == [REPO] and card["sdk"] == "docker"
    assert {"app.py", "engine.py", "serve.py", ".streamlit/config.toml"} <= set(space.commits[-1][1])
    story = tell(hub, tmp_path / "fresh", "v0.1.0")
    assert story.startswith("She ") and story.rstrip('."!').endswith("home")

    again = publish(hub, tmp_path, "--tag", "v0.1.0")
    assert again.returncode != 0 and "has a tag v0.1.0 already" in again.stderr
    assert len(model.commits) == 2

    # The next version's upload breaks off: the old one stays what people load.
    hub.large.clear()
    hub.drop_uploads_after = 1_000_000
    broken = publish(hub, tmp_path, "--tag", "v0.2.0", "--message", "Better weights")
    assert broken.returncode != 0 and "the push failed" in broken.stderr and hub.dropped >= 1
    assert "Traceback" not in broken.stderr
    assert len(model.commits) == 2 and "v0.2.0" not in model.tags
    assert tell(hub, tmp_path / "after", "main") == story


@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "no Hugging Face token"), ("hf_wrong", "does not accept this token"), ("hf_stranger", "not to writer")],
)
def test_without_the_right_nothing_is_sent(hub: Hub, tmp_path: Path, token: str | None, message: str):
    done = publish(hub, tmp_path, token=token)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
    assert not hub.repos and not hub.large


def test_dry_run_sends_nothing(hub: Hub, tmp_path: Path):
    done = publish(hub, tmp_path, "--dry-run", "--space")
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in done.stdout and "Dockerfile" in done.stdout and "tells: She" in done.stdout
    assert not hub.repos


def test_a_card_without_licence_or_a_broken_model_is_refused(tmp_path: Path):
    card = tmp_path / "card.md"
    card.write_text("---\nlanguage: [en]\n---\n# A card\n", encoding="utf-8")
    assemble_model(tmp_path / "model", REPO, card=card)
    with pytest.raises(PublishError, match="lacks license, library_name"):
        check_model(tmp_path / "model")
    assemble_model(tmp_path / "model", REPO)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(PublishError, match="does not tell a story"):
        check_model(tmp_path / "model")
    with pytest.raises(PublishError, match=r"config\.json is missing"):
        assemble_model(tmp_path / "empty", REPO, source=tmp_path / "nowhere")

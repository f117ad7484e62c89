"""The Space's container: its files agree with each other, and its Dockerfile works, step by step, to a story."""

import asyncio
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.page_load import Reader, broken
from tests.conftest import ROOT
from tests.hub import Hub, Repo
from tests.space.container import cannot_walk, container, instructions
from training.publish import assemble_model, assemble_space

SPACE = ROOT / "space"
REPO, TAG = "writer/tiny-story", "v0.1.0"
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def pins(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def test_requirements_are_those_that_the_tests_ran_with():
    wanted, tested = pins(SPACE / "requirements.txt"), pins(ROOT / "constraints.txt")
    assert {"streamlit", "torch", "transformers"} <= set(wanted)
    assert wanted.pop("torch") == tested["torch"] + "+cpu"  # not the one with gigabytes of CUDA
    assert wanted == {name: tested[name] for name in wanted}


def test_front_matter(tmp_path: Path):
    assemble_space(tmp_path, REPO, TAG)
    steps = instructions((tmp_path / "Dockerfile").read_text(encoding="utf-8"))
    front = yaml.safe_load((tmp_path / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert front["sdk"] == "docker" and ("EXPOSE", str(front["app_port"])) in steps
    assert {front["colorFrom"], front["colorTo"]} <= COLOURS and len(front["short_description"]) <= 60
    assert front["models"] == front["preload_from_hub"] == [REPO] and front["datasets"] == ["roneneldan/TinyStories"]
    assert ("ENV", f"MODEL_ID={REPO}") in steps and ("ENV", f"MODEL_REVISION={TAG}") in steps
    assert ("USER", "user") in steps and any(name == "RUN" and "--uid 1000 user" in rest for name, rest in steps)
    assert not re.search("TOKEN|SECRET|PASSWORD", (tmp_path / "Dockerfile").read_text(encoding="utf-8"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub that has the model, at a tag and, broken, at main: a container that did not keep to its revision fails."""
    assemble_model(tmp_path / "model", REPO)
    paths = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    files = {path.relative_to(tmp_path / "model").as_posix(): path.read_bytes() for path in paths}
    with Hub() as hub:
        repo = hub.repos["model", REPO] = Repo(private=False)
        repo.tags[TAG] = repo.commit(files, "The model")
        repo.commit(files | {"config.json": b"{}"}, "A mistake")
        yield hub


def is_healthy(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).status == 200
    except OSError:
        return False


async def first_story(port: int) -> Reader:
    reader = Reader(f"http://127.0.0.1:{port}")
    await reader.open()
    await reader.ask("The little dragon", "home")
    await reader.leave()
    return reader


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(cannot_walk() is not None, reason=f"no Dockerfile can be walked here: {cannot_walk()}")
def test_the_dockerfile_step_by_step_to_the_first_story(tmp_path: Path, hub: Hub):
    context = tmp_path / "space"
    assemble_space(context, REPO, TAG)
    with container(context, hidden=ROOT) as made:
        made.walk()
        assert made.run("id -u; id -un; pwd").split() == ["1000", "user", "/home/user/app"]
        installed = made.run("pip list --format=freeze")
        assert "torch==" in installed and "nvidia" not in installed.lower()
        made.run("touch /tmp/begun")
        port = int(made.variables["EXPOSED"])
        network = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1,localhost"}
        for number in range(2):  # the second start finds the image warm
            began = time.monotonic()
            page = made.start(made.entrypoint, **network)
            try:
                while not is_healthy(port):
                    assert page.poll() is None, page.communicate()[0]
                    assert time.monotonic() - began < 600
                    time.sleep(0.2)
                seconds = time.monotonic() - began
                made.run(made.health)
                reader = asyncio.run(first_story(port))
                assert broken(reader.story, "The little dragon", "home") == ""
                maps = made.run("cat /proc/[0-9]*/maps 2>/dev/null | grep -c kernel.so || true")
                assert int(maps) > 0, "the C kernel was not built"
            finally:
                page.terminate()
                output = page.communicate()[0]
            print(f"start {number + 1}: healthy after {seconds:.1f} s\n{output[-2000:]}")
        written = made.run("find / -xdev -newer /tmp/begun -user user -type f -not -path '/proc/*' 2>/dev/null || true")
        elsewhere = [
            path for path in written.split("\n") if path and not path.startswith(("/tmp/", "/home/user/.cache/"))
        ]
        assert elsewhere == []
        assert "dragon" not in output

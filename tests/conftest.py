"""What the tests share: the trained model of this clone, a tiny one with large weights, the tests' own stories, and a
way to run commands."""

import json
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# transformers copies remote code into one folder for all processes, file by file: workers that do so at the same time
# would read each other's half-written files. It takes the folder's name when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    remote_code = tempfile.TemporaryDirectory(prefix="remote-code-")  # removed at the worker's end
    os.environ["HF_MODULES_CACHE"] = remote_code.name

from transformers import AutoTokenizer, Pipeline, PreTrainedTokenizerBase, pipeline

from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM

# Every process that tells a story compiles the decoder's kernel, in a second; for those of the tests it is kept.
KEPT = """#!/bin/sh
# cc, but what came of the same source and flags before is taken as it is. The words: flags, kernel.c, -o, kernel.so.
kept={folder}/$(for word; do case $word in *.c) cat "$word";; /*) ;; *) echo "$word";; esac; done | cksum | tr ' ' -)
for word; do test "$last" = -o && out=$word; last=$word; done
test -f "$kept" || {{ {cc} "$@" && cp "$out" "$kept.$$" && mv "$kept.$$" "$kept"; }} || exit
test -f "$out" || cp "$kept" "$out"
"""
if "CC" not in os.environ and shutil.which("cc"):  # the workers inherit it
    kernels = tempfile.TemporaryDirectory(prefix="kernels-")
    compiler = Path(kernels.name) / "cc"
    compiler.write_text(KEPT.format(folder=kernels.name, cc=shutil.which("cc")))
    compiler.chmod(0o755)
    os.environ["CC"] = str(compiler)

ROOT = Path(__file__).resolve().parent.parent
HUB_FOLDER = ROOT / "modeling"
STORIES_FILE = ROOT / "tests" / "stories.jsonl"

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}
MODERN = {
    "norm_type": "rmsnorm", "norm_position": "pre", "position_type": "rope", "hidden_act": "swiglu", "qk_norm": True,
    "use_bias": False, "tie_word_embeddings": True, "num_key_value_heads": 2, "dropout": 0.0,
}  # fmt: skip
RECIPES = {"classic": TINY, "modern": TINY | MODERN}

# The files that take longest, each some twenty seconds or more: they come first, so that no worker sits over one of
# them while the others have nothing left to do.
LONGEST = (
    "test_train.py", "test_copies.py", "test_injection.py", "test_page.py", "test_export.py", "test_engine.py",
    "test_story.py", "test_keyboard.py", "test_app.py", "test_axe.py", "test_processes.py", "test_guide.py",
    "test_drafts.py", "test_layout.py", "test_streaming.py", "test_publish.py", "test_style.py", "test_many.py",
    "test_vocabulary.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


def large_init(model: torch.nn.Module, std: float = 0.5) -> None:
    """Weights so large that a wrong position, mask or cache shows in the logits, which the usual 0.02 would hide."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


@pytest.fixture(params=RECIPES)
def tiny_model(request: pytest.FixtureRequest) -> TinyStoryForCausalLM:
    """Both recipes, small, with large random weights, in fp32."""
    model = TinyStoryForCausalLM(TinyStoryConfig(**RECIPES[request.param])).eval()
    large_init(model)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(HUB_FOLDER)


@pytest.fixture(scope="session")
def trained_model() -> TinyStoryForCausalLM:
    return TinyStoryForCausalLM.from_pretrained(HUB_FOLDER).eval()


@pytest.fixture(scope="session")
def classic_model() -> TinyStoryForCausalLM:
    return TinyStoryForCausalLM.from_pretrained(HUB_FOLDER, subfolder="classic").eval()


@pytest.fixture(scope="session")
def tell() -> Pipeline:
    return pipeline("story-generation", model=str(HUB_FOLDER), trust_remote_code=True)


@pytest.fixture(scope="session")
def stories() -> list[str]:
    return [json.loads(line)["text"] for line in STORIES_FILE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def long_stories(stories: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of stories as long as real ones: each of the tests' own with the next one after it."""
    path = tmp_path_factory.mktemp("stories") / "long.jsonl"
    pairs = zip(stories, [*stories[1:], stories[0]], strict=True)
    path.write_text("".join(json.dumps({"text": f"{first}\n{second}"}) + "\n" for first, second in pairs))
    return path


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """`python -m module arguments`, in the folder of the clone, without a process that would import everything anew;
    what it prints."""
    monkeypatch.chdir(ROOT)

    def run_command(module: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        monkeypatch.delitem(sys.modules, module, raising=False)  # runpy warns of a module that runs twice
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return capsys.readouterr().out

    return run_command

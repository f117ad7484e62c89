"""What other engines get: a stock Qwen3 checkpoint with equal logits (`transformers serve` runs it), GGUF, and ONNX."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from gguf import GGUFReader
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM
from modeling.packing_tiny_story import why_not_packed
from tests.conftest import MODERN, RECIPES, TINY, large_init
from training.export import export_gguf, export_onnx, export_qwen3, to_qwen3

GREEDY = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture(scope="module")
def modern(tokenizer) -> TinyStoryForCausalLM:
    model = TinyStoryForCausalLM(TinyStoryConfig(**TINY | MODERN | {"vocab_size": len(tokenizer)})).eval()
    large_init(model, std=0.3)
    return model


@pytest.fixture(scope="module")
def twin_folder(modern, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("twin")
    export_qwen3(modern, tokenizer, folder)
    return folder


def test_twin_loads_without_remote_code_and_is_equal(modern, tokenizer, twin_folder, stories):
    assert not list(twin_folder.glob("*.py"))
    twin = AutoModelForCausalLM.from_pretrained(twin_folder).eval()
    assert type(twin).__name__ == "Qwen3ForCausalLM"
    twin_tokenizer = AutoTokenizer.from_pretrained(twin_folder)
    for story in stories:
        ids = tokenizer(story, return_tensors="pt")
        assert ids["input_ids"].tolist() == twin_tokenizer(story, return_tensors="pt")["input_ids"].tolist()
        with torch.no_grad():
            torch.testing.assert_close(twin(**ids).logits, modern(**ids).logits, atol=1e-5, rtol=0)
    ids = tokenizer(["She", "The old dragon of the north"], return_tensors="pt", padding=True)
    assert twin.generate(**ids, **GREEDY).tolist() == modern.generate(**ids, **GREEDY).tolist()


def test_the_trained_models_twin_by_the_command(
    trained_model, tokenizer, stories, run_command: Callable[..., str], tmp_path: Path
):
    run_command("training.export", "--to", "qwen3", tmp_path)
    twin = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    told = [*stories, *(f"{other[:60]} {story}"[:160] for other in stories for story in stories)][:100]
    assert len(set(told)) == 100
    for story in told:
        ids = tokenizer(story, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(twin(**ids).logits, trained_model(**ids).logits, atol=1e-5, rtol=0)
    for start in ("Once upon a time", "The dragon"):
        ids = tokenizer(start, return_tensors="pt")
        assert twin.generate(**ids, **GREEDY).tolist() == trained_model.generate(**ids, **GREEDY).tolist()


def test_twin_in_bf16_and_with_untied_output(tmp_path: Path):
    model = TinyStoryForCausalLM(TinyStoryConfig(**TINY | MODERN | {"tie_word_embeddings": False})).eval()
    large_init(model)
    model.save_pretrained(tmp_path)
    model = TinyStoryForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    twin = to_qwen3(model)
    assert twin.dtype == torch.bfloat16
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(twin(ids).logits, model(ids).logits, atol=0, rtol=0)


def test_classic_has_no_twin():
    with pytest.raises(ValueError, match="norm_type is 'layernorm', must be 'rmsnorm'"):
        to_qwen3(TinyStoryForCausalLM(TinyStoryConfig(**TINY)))


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_holds_the_model_and_its_tokenizer(tokenizer, stories, tmp_path: Path, tied: bool):
    changes = {"vocab_size": len(tokenizer), "tie_word_embeddings": tied}
    model = TinyStoryForCausalLM(TinyStoryConfig(**TINY | MODERN | changes)).eval()
    large_init(model, std=0.3)
    assert_gguf_is(model, tokenizer, stories, tmp_path)


def test_gguf_of_the_trained_model(trained_model, tokenizer, stories, tmp_path: Path):
    assert_gguf_is(trained_model, tokenizer, stories, tmp_path)


def assert_gguf_is(model: TinyStoryForCausalLM, tokenizer, stories: list[str], folder: Path) -> None:
    """transformers' own reader finds the same tokens, the same norms, and logits as near as 8 bits are."""
    export_gguf(model, tokenizer, folder)
    fields = GGUFReader(folder / "model-q8_0.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.bos_token_id"].contents() == tokenizer.bos_token_id
    source = {"pretrained_model_name_or_path": folder, "gguf_file": "model-q8_0.gguf"}
    read_tokenizer = AutoTokenizer.from_pretrained(**source)
    read = AutoModelForCausalLM.from_pretrained(**source, config=to_qwen3(model).config, dtype=torch.float32).eval()
    assert torch.equal(read.model.norm.weight, model.model.norm.weight)
    assert torch.equal(
        read.model.layers[1].self_attn.k_norm.weight, model.model.decoder_layers[1].self_attn.k_norm.weight
    )
    for story in [*stories, "Zoë said: 12 cats couldn't\n\nsleep \U0001f600"]:
        ids = tokenizer(story, return_tensors="pt")
        # Without <sos>, which transformers 5.17 does not read from the file.
        text_ids = read_tokenizer(story, add_special_tokens=False)["input_ids"]
        assert text_ids == ids["input_ids"][0, 1:].tolist()
        with torch.no_grad():
            ours, theirs = model(**ids).logits, read(**ids).logits
        assert 0 < (theirs - ours).norm() < 0.03 * ours.norm()


def test_command_says_what_is_wrong(run_command: Callable[..., str], capsys: pytest.CaptureFixture, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for arguments, said in (
        (["--model", "modeling/classic", tmp_path / "x"], "error: only the modern recipe"),
        ([tmp_path], f"error: {tmp_path} is not empty"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run_command("training.export", "--to", "qwen3", *arguments)
        assert capsys.readouterr().err.splitlines()[-1].startswith(said)


@pytest.mark.slow
def test_stock_server_tells_the_same(modern, tokenizer, twin_folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = [Path(sys.executable).parent / "transformers", "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
    with subprocess.Popen(serve, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        try:
            wanted = {"model": str(twin_folder), "prompt": "The old dragon", "max_tokens": 16, "temperature": 0}
            answer = ask(f"http://127.0.0.1:{port}/v1/completions", wanted, server)
        finally:
            server.terminate()
    ids = tokenizer("The old dragon", return_tensors="pt")
    told = modern.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert answer["choices"][0]["text"] == tokenizer.decode(told, skip_special_tokens=True)


def ask(url: str, body: dict, server: subprocess.Popen) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except OSError as error:
            if server.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the server did not answer: {server.stderr.read().decode()}") from error
            time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_onnx_runtime_tells_the_same(recipe: str, tokenizer, tmp_path: Path):
    """With two layers, for exporting takes seconds a layer."""
    shape = RECIPES[recipe] | {"vocab_size": len(tokenizer), "num_hidden_layers": 2}
    model = TinyStoryForCausalLM(TinyStoryConfig(**shape)).eval()
    large_init(model, std=0.3)
    assert_onnx_is(model, tokenizer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trained_model", "classic_model"])
def test_onnx_runtime_tells_the_same_with_trained_weights(name: str, request, tokenizer, tmp_path: Path):
    assert_onnx_is(request.getfixturevalue(name), tokenizer, tmp_path)


def assert_onnx_is(model: TinyStoryForCausalLM, tokenizer, folder: Path) -> None:
    """ONNX Runtime, token by token with the cache, tells the same greedy text."""
    if Version(transformers.__version__) < Version("5.23"):
        with pytest.raises(ImportError, match=r"5\.23 or newer"):
            export_onnx(model, tokenizer, folder)
        return
    before = vars(model).copy()
    export_onnx(model, tokenizer, folder)
    assert vars(model) == before and why_not_packed(model) is None
    session = onnxruntime.InferenceSession(folder / "decode.onnx", providers=["CPUExecutionProvider"])
    cache_inputs = [i for i in session.get_inputs() if "past_key_values" in i.name]
    ids = tokenizer("Once upon a time there was a", return_tensors="pt")["input_ids"]
    config = model.config
    empty = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), np.float32)
    cache, written, new = [empty] * len(cache_inputs), ids[0].tolist(), ids.numpy()
    for _ in range(GREEDY["max_new_tokens"]):
        length = len(written)
        feed = {
            "input_ids": new, "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length - new.shape[1], length)[None],
        }  # fmt: skip
        logits, *cache = session.run(None, feed | {i.name: x for i, x in zip(cache_inputs, cache, strict=True)})
        written.append(int(logits[0, -1].argmax()))
        new = np.array([written[-1:]])
        if written[-1] == tokenizer.eos_token_id:
            break
    assert written == model.generate(ids, **GREEDY)[0].tolist()

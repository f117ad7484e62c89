from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM
from tests.conftest import HUB_FOLDER, MODERN, TINY, large_init
from training.average import average, refuse_parts
from training.checkpoint import save_released
from training.tokenizer import train_tokenizer


def small(scale: float, **changes: object) -> TinyStoryForCausalLM:
    model = TinyStoryForCausalLM(TinyStoryConfig(**TINY | MODERN | changes)).eval()
    large_init(model, std=scale)
    return model


def test_the_command_writes_the_mean_and_it_loads(tokenizer, run_command: Callable[..., str], tmp_path: Path):
    for number, scale in enumerate((0.25, 0.5, 1.5)):  # the mean of three: 0.75 of the same random numbers
        save_released(small(scale, vocab_size=len(tokenizer)), tokenizer, tmp_path / str(number))
    run_command("training.average", *(tmp_path / str(n) for n in range(3)), "--to", tmp_path / "mean")
    expected = small(0.75, vocab_size=len(tokenizer)).state_dict()
    for name, weight in load_file(tmp_path / "mean" / "model.safetensors").items():
        torch.testing.assert_close(weight.float(), expected[name], rtol=0.02, atol=1e-3)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "mean", trust_remote_code=True)
    assert read.dtype == torch.float32


def test_a_mean_of_one_model_twice_is_the_model():
    ids = torch.arange(3, 40)[None]
    assert torch.equal(average([small(0.5), small(0.5)])(ids).logits, small(0.5)(ids).logits)


def test_models_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="feed_forward"):
        average([small(0.5), small(0.5, intermediate_size=64)])
    with pytest.raises(ValueError, match=r"None in another|is None in the first"):
        average([small(0.5), small(0.5, num_hidden_layers=2)])


def test_models_that_read_the_same_weights_otherwise_are_refused():
    four, two = ({"qk_norm": False, "num_attention_heads": n, "num_key_value_heads": n} for n in (4, 2))
    average([small(0.5, **four), small(0.5, **four, dropout=0.3, use_cache=False)])
    with pytest.raises(ValueError, match="head_dim is 8 in the first model and 16 in another"):
        average([small(0.5, **four), small(0.5, **two)])


def test_models_of_other_tokens_are_refused(stories: list[str], run_command, capsys, tmp_path: Path):
    for name, texts in (("one", stories[:6]), ("two", stories)):  # as many
        save_released(small(0.5, vocab_size=600), train_tokenizer(texts, 600), tmp_path / name)
    with pytest.raises(SystemExit):
        run_command("training.average", tmp_path / "one", tmp_path / "two", "--to", tmp_path / "mean")
    assert "two has another tokenizer than" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_adapters_and_folders_without_a_model_are_refused(tmp_path: Path):
    whole, adapter, empty = (tmp_path / name for name in ("whole", "adapter", "empty"))
    for folder, file in ((whole, "config.json"), (adapter, "adapter_config.json"), (empty, "README.md")):
        folder.mkdir()
        (folder / file).write_text("{}")
    refuse_parts([str(whole), str(HUB_FOLDER / "classic")])
    with pytest.raises(ValueError, match=f"{adapter} holds an adapter, no whole model"):
        refuse_parts([str(whole), str(adapter)])
    with pytest.raises(ValueError, match=f"{empty} holds no model: it has no config.json"):
        refuse_parts([str(whole), str(empty)])

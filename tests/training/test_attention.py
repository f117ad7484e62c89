"""Attention in blocks of queries is the eager attention."""

import pytest
import torch

from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM
from training.attention import BLOCK
from training.config import TrainingConfig
from training.train import build_model

LENGTH = 2 * BLOCK + 40
SHAPE = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 32, "dropout": 0.0, "initializer_range": 0.5, "norm_position": "pre", "position_type": "rope",
}  # fmt: skip


def twins() -> tuple[TinyStoryForCausalLM, TinyStoryForCausalLM]:
    torch.manual_seed(0)
    eager = TinyStoryForCausalLM(TinyStoryConfig(**SHAPE)).double()
    eager.set_attn_implementation("eager")
    blocks = TinyStoryForCausalLM(TinyStoryConfig(**SHAPE)).double()
    blocks.load_state_dict(eager.state_dict())
    blocks.set_attn_implementation("causal_blocks")
    return eager, blocks


@pytest.mark.parametrize("stories", [1, 3])
def test_loss_and_gradients_are_those_of_eager_attention(stories: int):
    ids = torch.randint(3, 100, (2, LENGTH))
    position_ids = (torch.arange(LENGTH) % -(-LENGTH // stories)).expand(2, -1)
    losses, gradients = [], []
    for model in twins():
        loss = model(input_ids=ids, labels=ids, position_ids=position_ids, use_cache=False).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_after_a_cached_beginning_too():
    ids = torch.randint(3, 100, (2, LENGTH))
    eager, blocks = twins()
    with torch.no_grad():
        whole = eager(input_ids=ids).logits
        cache = blocks(input_ids=ids[:, :50], use_cache=True).past_key_values
        rest = blocks(input_ids=ids[:, 50:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 50:])


def test_a_run_can_ask_for_it(tmp_path):
    config = TrainingConfig(str(tmp_path), attention="causal_blocks")
    assert build_model(config, TinyStoryConfig(**SHAPE)).config._attn_implementation == "causal_blocks"
    with pytest.raises(ValueError, match="causal_block"):
        build_model(TrainingConfig(str(tmp_path), attention="causal_block"), TinyStoryConfig(**SHAPE))

"""Attention in blocks of queries is the eager attention; so, on a GPU, is that over documents laid end to end."""

import pytest
import torch

from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM
from tests.conftest import RECIPES, large_init
from training.attention import BLOCK, TOKENS_A_DOCUMENT, packed_documents_arguments, refuse_many_documents
from training.config import TrainingConfig
from training.train import build_model

LENGTH = 2 * BLOCK + 40


def twins() -> tuple[TinyStoryForCausalLM, TinyStoryForCausalLM]:
    """The modern recipe, small, with large random weights, in eager attention and in blocks."""
    models = []
    for implementation in ("eager", "causal_blocks"):
        model = TinyStoryForCausalLM(TinyStoryConfig(**RECIPES["modern"]))
        large_init(model)
        model.set_attn_implementation(implementation)
        models.append(model.double())
    return models[0], models[1]


@pytest.mark.parametrize("stories", [1, 3])
def test_loss_and_gradients_are_those_of_eager_attention(stories: int):
    ids = torch.randint(3, 99, (2, LENGTH))
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
    ids = torch.randint(3, 99, (2, LENGTH))
    eager, blocks = twins()
    with torch.no_grad():
        whole = eager(input_ids=ids).logits
        cache = blocks(input_ids=ids[:, :50], use_cache=True).past_key_values
        rest = blocks(input_ids=ids[:, 50:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 50:])


def test_a_run_can_ask_for_it(tmp_path):
    config = TrainingConfig(str(tmp_path), attention="causal_blocks")
    assert build_model(config, TinyStoryConfig(**RECIPES["modern"])).config._attn_implementation == "causal_blocks"
    with pytest.raises(ValueError, match="causal_block"):
        build_model(TrainingConfig(str(tmp_path), attention="causal_block"), TinyStoryConfig(**RECIPES["modern"]))


def test_documents_begin_where_positions_do_not_go_on():
    first = [*range(40), *range(30), *range(384, 410)]  # the third one is a later piece of a longer document
    second = [*range(7, 60), *range(43)]
    arguments = packed_documents_arguments(torch.tensor([first, second]))
    assert arguments["cu_seq_lens_q"].tolist() == [0, 40, 70, 96, 149, 192, 192]
    assert arguments["max_length_q"] == 96


def test_more_documents_than_there_is_room_for_are_refused():
    sparse, full = torch.arange(96).expand(2, -1), (torch.arange(96) % TOKENS_A_DOCUMENT).expand(2, -1)
    refuse_many_documents(full, batch_rows=2)
    assert packed_documents_arguments(full)["cu_seq_lens_q"].tolist() == [0, 32, 64, 96, 128, 160, 192]
    crowded = torch.cat((sparse, (torch.arange(96) % 16).expand(1, -1)))
    refuse_many_documents(crowded, batch_rows=3)
    with pytest.raises(ValueError, match=r"a batch of 2 rows may hold 6, .* and might hold 7;"):
        refuse_many_documents(crowded, batch_rows=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention over documents runs on a GPU")
def test_documents_laid_end_to_end_are_those_of_a_mask():
    model = TinyStoryForCausalLM(TinyStoryConfig(**RECIPES["modern"] | {"num_key_value_heads": 4})).cuda()
    ids = torch.randint(3, 99, (2, LENGTH), device="cuda")
    position_ids = (torch.arange(LENGTH, device="cuda") % 70).expand(2, -1)
    found = []
    for name, arguments in (("sdpa", {}), ("packed_documents", packed_documents_arguments(position_ids))):
        model.set_attn_implementation(name)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, position_ids=position_ids, use_cache=False, **arguments).loss
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        model.zero_grad()
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()

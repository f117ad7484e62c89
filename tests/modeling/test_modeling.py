"""The decoder against an independent reference, and against itself where two ways must agree."""

import copy
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AttentionInterface, DynamicCache

from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM, TinyStoryModel
from tests.conftest import HUB_FOLDER, RECIPES, TINY, large_init

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def reference_logits(state: dict[str, torch.Tensor], ids: torch.Tensor, heads: int) -> torch.Tensor:
    """The classic decoder from its listing alone, in plain tensor operations; ids (time,) -> (time, vocab)."""
    x = state["model.decoder_embedding.weight"][ids]
    time, width = x.shape
    positions = torch.zeros(time, width)
    for position in range(time):
        for pair in range(width // 2):
            angle = position / 10000 ** (2 * pair / width)
            positions[position, 2 * pair] = math.sin(angle)
            positions[position, 2 * pair + 1] = math.cos(angle)
    x = x + positions

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    layer = 0
    while f"model.decoder_layers.{layer}.norm1.weight" in state:
        at = f"model.decoder_layers.{layer}"
        q, k, v = (linear(x, f"{at}.self_attn.W_{n}").view(time, heads, -1).transpose(0, 1) for n in "qkv")
        scores = q @ k.transpose(1, 2) / math.sqrt(width // heads)
        scores = scores.masked_fill(torch.ones(time, time).triu(1).bool(), float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(time, width)
        x = norm(x + linear(mixed, f"{at}.self_attn.W_o"), f"{at}.norm1")
        hidden = linear(x, f"{at}.feed_forward.fc1").clamp(min=0)
        x = norm(x + linear(hidden, f"{at}.feed_forward.fc2"), f"{at}.norm2")
        layer += 1
    return linear(x, "fc")


def test_defaults_are_the_classic():
    model = TinyStoryForCausalLM(TinyStoryConfig())
    assert model.num_parameters() == 14_592_904
    listing = str(model)
    for line in (
        "(decoder_embedding): Embedding(5000, 512)",
        "(positional_encoding): PositionalEncoding()",
        "(0-5): 6 x DecoderLayer(",
        "(self_attn): MultiHeadAttention(",
        "(W_o): Linear(in_features=512, out_features=512, bias=True)",
        "(feed_forward): PositionWiseFeedForward(",
        "(fc2): Linear(in_features=512, out_features=512, bias=True)",
        "(norm2): LayerNorm((512,)",
        "(dropout): Dropout(p=0.1, inplace=False)",
        "(fc): Linear(in_features=512, out_features=5000, bias=True)",
    ):
        assert line in listing


@pytest.mark.parametrize("std", [None, 0.05])
def test_logits_equal_the_reference(std: float | None):
    torch.manual_seed(0)
    model = TinyStoryForCausalLM(TinyStoryConfig()).eval()
    if std:  # biases and norms other than their 0 and 1
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=std)
    ids = torch.randint(0, 5000, (40,))
    with torch.no_grad():
        torch.testing.assert_close(model(ids[None]).logits[0], reference_logits(model.state_dict(), ids, 8), **CLOSE)


def test_trained_logits_equal_the_reference(classic_model: TinyStoryForCausalLM, tokenizer, stories):
    ids = torch.tensor(tokenizer(stories[0])["input_ids"])
    with torch.no_grad():
        expected = reference_logits(classic_model.state_dict(), ids, classic_model.config.num_attention_heads)
        torch.testing.assert_close(classic_model(ids[None]).logits[0], expected, atol=1e-4, rtol=1e-5)


def check_cache(model: TinyStoryForCausalLM, ids: torch.Tensor, tolerance: float) -> None:
    with torch.no_grad():
        full = model(ids).logits
        for splits in ((1,), (7,), (3, 4, 19), tuple(range(1, ids.shape[1]))):
            cache, parts = DynamicCache(config=model.config), []
            for begin, end in zip((0, *splits), (*splits, ids.shape[1]), strict=True):
                parts.append(model(ids[:, begin:end], past_key_values=cache, use_cache=True).logits)
            torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=tolerance, rtol=1e-4)


def test_cached_equals_full(tiny_model):
    check_cache(tiny_model, torch.randint(3, 99, (2, 24), generator=torch.Generator().manual_seed(1)), 1e-3)


def test_cached_equals_full_with_trained_weights(trained_model, tokenizer, stories):
    check_cache(trained_model, torch.tensor(tokenizer(stories[1])["input_ids"])[None, :40], 1e-3)


def test_left_padded_batch_equals_single(tiny_model):
    long, short = torch.randint(3, 99, (12,)), torch.randint(3, 99, (5,))
    ids = torch.stack((long, torch.cat((torch.zeros(7, dtype=torch.long), short))))
    mask = torch.tensor([[1] * 12, [0] * 7 + [1] * 5])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        batch = tiny_model(ids, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(batch[0], tiny_model(long[None]).logits[0], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(batch[1, 7:], tiny_model(short[None]).logits[0], atol=1e-3, rtol=1e-4)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    together = tiny_model.generate(ids, attention_mask=mask, **settings)
    assert together[1, 7:].tolist() == tiny_model.generate(short[None], **settings)[0].tolist()


def test_packed_documents_do_not_see_one_another(tiny_model):
    first, second = torch.randint(3, 99, (1, 9)), torch.randint(3, 99, (1, 6))
    positions = torch.tensor([[*range(9), *range(6)]])
    with torch.no_grad():
        packed = tiny_model(torch.cat((first, second), 1), position_ids=positions, use_cache=False).logits
        apart = torch.cat((tiny_model(first).logits, tiny_model(second).logits), 1)
    torch.testing.assert_close(packed, apart, atol=1e-3, rtol=1e-4)


def test_position_ids_are_used():
    for recipe in RECIPES.values():
        model = TinyStoryForCausalLM(TinyStoryConfig(**recipe)).eval()
        large_init(model)
        ids = torch.randint(3, 99, (1, 8))
        with torch.no_grad():
            stretched = model(ids, attention_mask=torch.ones(1, 8), position_ids=torch.arange(8)[None] * 5).logits
            assert (stretched - model(ids).logits).abs().max() > 0.1


def test_kwargs_arrive_at_a_registered_attention(tiny_model):
    seen = []

    def probe(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        seen.append(kwargs["probe"])
        return query.transpose(1, 2), None

    AttentionInterface.register("probe", probe)
    tiny_model.config._attn_implementation = "probe"
    tiny_model(torch.tensor([[5, 6]]), probe="here")
    assert seen == ["here"] * tiny_model.config.num_hidden_layers


def test_eager_equals_sdpa(tiny_model):
    ids = torch.randint(3, 99, (2, 11))
    mask = torch.tensor([[1] * 11, [0] * 4 + [1] * 7])
    eager = copy.deepcopy(tiny_model)
    eager.set_attn_implementation("eager")
    assert tiny_model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        ours, theirs = (model(ids, attention_mask=mask).logits for model in (tiny_model, eager))
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=1e-3, rtol=1e-4)


def test_positions_are_right_after_loading(tmp_path):
    model = TinyStoryForCausalLM(TinyStoryConfig(**TINY)).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(3, 99, (1, 30))
    for dtype in (torch.float32, torch.bfloat16):
        loaded = TinyStoryForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
        tolerance = 1e-6 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(loaded(ids).logits.float(), model(ids).logits, atol=tolerance, rtol=tolerance)
    sinusoids = loaded.model.positional_encoding(torch.zeros(1, 1, 32), torch.tensor([[7]]))[0, 0]
    expected = [f(7 / 10000 ** (2 * i / 32)) for i in range(16) for f in (math.sin, math.cos)]
    torch.testing.assert_close(sinusoids, torch.tensor(expected), atol=1e-6, rtol=0)


def test_gradient_checkpointing_changes_no_gradient(tiny_model):
    ids = torch.randint(3, 99, (2, 16))
    other = copy.deepcopy(tiny_model).train()
    other.gradient_checkpointing_enable()
    for module in (*tiny_model.train().modules(), *other.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for model in (tiny_model, other):
        model(ids, labels=ids, use_cache=False).loss.backward()
    for ours, theirs in zip(tiny_model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_loss_divides_by_num_items_in_batch(tiny_model):
    ids = torch.randint(3, 99, (2, 10))
    mean = tiny_model(ids, labels=ids).loss
    share = tiny_model(ids, labels=ids, num_items_in_batch=torch.tensor(36)).loss
    torch.testing.assert_close(share, mean * 18 / 36)
    logits = tiny_model(ids).logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(mean, nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))


def test_outputs_are_recorded_and_logits_sliced(tiny_model):
    tiny_model.set_attn_implementation("eager")
    ids = torch.randint(3, 99, (2, 10))
    output = tiny_model(ids, output_hidden_states=True, output_attentions=True)
    assert [x.shape for x in output.hidden_states] == [(2, 10, 32)] * 4
    assert [x.shape for x in output.attentions] == [(2, 4, 10, 10)] * 3
    torch.testing.assert_close(tiny_model(ids, logits_to_keep=3).logits, output.logits[:, -3:])
    at = torch.tensor([0, 4])
    torch.testing.assert_close(tiny_model(ids, logits_to_keep=at).logits, output.logits[:, at])
    for_each = torch.tensor([[0, 4], [9, 1]])
    expected = torch.stack([row[at] for row, at in zip(output.logits, for_each, strict=True)])
    torch.testing.assert_close(tiny_model(ids, logits_to_keep=for_each).logits, expected)
    mask = torch.arange(20).view(2, 10) % 3 == 0
    torch.testing.assert_close(tiny_model(ids, logits_to_keep=mask).logits, output.logits[mask])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "512"), ("hidden_size", 100), ("num_attention_heads", 0), ("num_key_value_heads", 3),
        ("dropout", 1.5), ("hidden_act", "gelu"), ("norm_position", "middle"), ("pad_token_id", 5000),
        ("tie_word_embeddings", True), ("num_hidden_layers", -1),
    ],
)  # fmt: skip
def test_config_names_the_field_that_is_wrong(field: str, value: object):
    with pytest.raises(StrictDataclassError, match=field):
        TinyStoryConfig(**{field: value})


def test_one_of_ids_and_embeddings():
    model = TinyStoryModel(TinyStoryConfig(**TINY))
    with pytest.raises(ValueError, match="exactly one"):
        model()
    embeddings = model.decoder_embedding(torch.tensor([[4, 5]]))
    torch.manual_seed(0)
    model.eval()
    torch.testing.assert_close(model(inputs_embeds=embeddings)[0], model(torch.tensor([[4, 5]]))[0])


def test_hub_folder_is_complete():
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        assert (HUB_FOLDER / name).is_file() and (HUB_FOLDER / "classic" / name).is_file()
    for name in ("tokenizer.json", "tokenizer_config.json", "pipeline_tiny_story.py"):
        assert (HUB_FOLDER / name).is_file()


def test_the_modern_model_is_no_larger_than_the_classic(trained_model, classic_model):
    assert trained_model.num_parameters() <= classic_model.num_parameters() == 14_592_904

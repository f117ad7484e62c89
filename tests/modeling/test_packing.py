"""Whatever was done to a model, its stories are told with it: by packed weights that are its own, or by itself."""

import copy
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling import decoder_tiny_story, modeling_tiny_story, packing_tiny_story
from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.decoder_tiny_story import FullDecoder, Int8Decoder, open_decoder
from modeling.modeling_tiny_story import TinyStoryForCausalLM
from modeling.packing_tiny_story import _state_of_weights, why_not_packed
from tests.conftest import RECIPES, large_init

IDS = [5, 6, 7, 8, 9, 40, 41]
Change = Callable[[TinyStoryForCausalLM], object]
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.skipif(
        not torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and packing_tiny_story.library() is None, reason="no packed decoder is fast here",
    ),
]  # fmt: skip


def build(recipe: str) -> TinyStoryForCausalLM:
    model = TinyStoryForCausalLM(TinyStoryConfig(**RECIPES[recipe])).eval()
    large_init(model, 0.3)
    return model


@torch.inference_mode()
def logits(model: nn.Module, precision: str = "auto") -> torch.Tensor:
    return open_decoder(model, precision).start([IDS])[0]


def is_told_right(model: nn.Module) -> None:
    """The default decoder says what the model itself says, up to the rounding of weights to int8."""
    ours, theirs = logits(model), logits(model, "full")
    if why_not_packed(model) is None:
        assert isinstance(open_decoder(model), Int8Decoder)
        assert torch.corrcoef(torch.stack((ours, theirs)))[0, 1] > 0.99
        assert ((ours - theirs).norm() / theirs.norm()) < 0.15
    else:
        assert type(open_decoder(model)) is FullDecoder
        assert torch.equal(ours, theirs)


def fc1(model: TinyStoryForCausalLM, layer: int = 1) -> nn.Linear:
    return model.model.decoder_layers[layer].feed_forward.fc1


def lora(model: TinyStoryForCausalLM, name: str = "default") -> None:
    from peft import LoraConfig

    targets = ["W_q", "W_v", "fc1", "fc2"]
    model.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False), adapter_name=name)


def doubled(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
    return output * 2


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def replace_forward(model: TinyStoryForCausalLM) -> None:
    forward = fc1(model).forward
    fc1(model).forward = lambda x: 2 * forward(x)


def replace_module(model: TinyStoryForCausalLM) -> None:
    model.model.decoder_layers[1].feed_forward.fc1 = nn.Sequential(fc1(model))


def shadow_weight(model: TinyStoryForCausalLM) -> None:
    vars(fc1(model))["weight"] = 2 * fc1(model).weight.detach()


def foreign_attention(model: TinyStoryForCausalLM) -> None:
    def attention(module, query, *args, **kwargs):
        output, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, *args, **kwargs)
        return 2 * output, weights

    AttentionInterface.register("doubled", attention)
    AttentionMaskInterface.register("doubled", sdpa_mask)
    model.set_attn_implementation("doubled")


# What a packed decoder does not know.
DONE: dict[str, Change] = {
    "adapter": lora,
    "pruning": lambda m: prune.l1_unstructured(fc1(m), "weight", 0.9),
    "hook": lambda m: m.model.decoder_layers[1].register_forward_hook(doubled),
    "hook before": lambda m: fc1(m).register_forward_pre_hook(lambda module, args: (2 * args[0],)),
    "hook on the model": lambda m: m.register_forward_hook(lambda module, args, output: output),
    "backward hook": lambda m: fc1(m).register_full_backward_hook(lambda module, before, after: None),
    "parametrization": lambda m: parametrize.register_parametrization(fc1(m), "weight", Doubled()),
    "weight norm": lambda m: parametrizations.weight_norm(fc1(m)),
    "another forward": replace_forward,
    "another module": replace_module,
    "a weight in another's place": shadow_weight,
    "an epsilon": lambda m: setattr(m.model.decoder_layers[0].norm1, "eps", 0.5),
    "a scaling": lambda m: setattr(m.model.decoder_layers[0].self_attn, "scaling", 0.9),
    "layers changed about": lambda m: m.model.decoder_layers.insert(0, m.model.decoder_layers[2]),
    "an attention": foreign_attention,
    "not causal": lambda m: setattr(m.config, "is_causal", False),
    "a buffer": lambda m: fc1(m).register_buffer("mask", torch.ones(1)),
}
# What it packs anew.
EDITED: dict[str, Change] = {
    "in place": lambda m: fc1(m).weight.detach().mul_(3),
    "data": lambda m: fc1(m).weight.data.mul_(3),
    "numpy": lambda m: fc1(m).weight.detach().numpy().__imul__(3),
    "signs": lambda m: fc1(m).weight.data.neg_(),
    "a column's signs": lambda m: m.fc.weight.data[:, 3].neg_(),
    "two rows": lambda m: m.fc.weight.data.__setitem__([0, 1], m.fc.weight.data[[1, 0]]),
    "new data": lambda m: setattr(fc1(m).weight, "data", fc1(m).weight.data * 2),
    "new parameter": lambda m: setattr(fc1(m), "weight", nn.Parameter(fc1(m).weight.detach() * 2)),
    "two layers": lambda m: m.model.decoder_layers[0].load_state_dict(m.model.decoder_layers[1].state_dict()),
    "an update": lambda m: update(m),
    "bfloat16": lambda m: m.bfloat16(),
    "another vocabulary": lambda m: m.resize_token_embeddings(m.config.vocab_size + 8),
    "an output layer of its own": lambda m: setattr(m.fc, "weight", nn.Parameter(m.fc.weight.detach() * 2)),
    "training": lambda m: m.train(),
    "hidden states asked for": lambda m: m(torch.tensor([IDS]), output_hidden_states=True),
    "eager": lambda m: m.set_attn_implementation("eager"),
    "pruning made permanent": lambda m: prune.remove(prune.random_unstructured(fc1(m), "weight", 0.5), "weight"),
    "a hook taken away": lambda m: fc1(m).register_forward_hook(doubled).remove(),
}  # fmt: skip


def update(model: TinyStoryForCausalLM) -> None:
    ids = torch.tensor([IDS])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    with torch.enable_grad():
        model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("change", DONE)
def test_a_model_something_was_done_to_tells_itself(recipe: str, change: str):
    model = build(recipe)
    is_told_right(model)
    assert why_not_packed(model) is None
    DONE[change](model)
    is_told_right(model)
    reason = why_not_packed(model)
    assert reason is not None and "\n" not in reason
    with pytest.raises(ValueError, match="cannot tell with this model"):
        open_decoder(model, "int8")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("change", EDITED)
def test_an_edited_model_is_packed_anew(recipe: str, change: str):
    model = build(recipe)
    before = logits(model)
    EDITED[change](model)
    assert why_not_packed(model) is None
    is_told_right(model)
    if change in ("training", "hidden states asked for", "eager", "a hook taken away"):
        assert torch.equal(logits(model), before)
    else:
        assert not torch.equal(logits(model), before)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    recipe=st.sampled_from(list(RECIPES)),
    changes=st.lists(st.sampled_from([*DONE, *EDITED]), min_size=1, max_size=4, unique=True),
)
def test_any_changes_in_any_order_are_told(recipe: str, changes: list[str]):
    model = build(recipe)
    logits(model)
    for change in changes:
        try:
            {**DONE, **EDITED}[change](model)
            runs = bool(logits(model, "full").isfinite().all())
        except Exception:
            runs = False
        if not runs:  # two of these changes may not go together
            return
        is_told_right(model)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_change_of_a_weight_escapes_the_checksum(data: st.DataObject):
    rows, columns = data.draw(st.sampled_from([(1, 1), (3, 5), (64, 64), (70, 1024), (1024, 96), (33000, 1)]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = nn.Linear(columns, rows, bias=False)
    layer.weight = nn.Parameter(weight.clone())
    before = _state_of_weights(layer)
    assert _state_of_weights(layer) == before
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    step = data.draw(st.integers(1, 64))
    with torch.no_grad():
        edited = layer.weight.data
        kind = data.draw(st.sampled_from(["one", "signs", "row", "column", "every", "swap", "roll"]))
        if kind == "one":
            edited[row, column] = -edited[row, column]
        elif kind == "signs":
            edited.neg_()
        elif kind == "row":
            edited[row].neg_()
        elif kind == "column":
            edited[:, column].neg_()
        elif kind == "every":
            edited.view(-1)[::step].neg_()
        elif kind == "swap":
            edited[[0, row]] = edited[[row, 0]]
        else:
            edited.copy_(edited.view(-1).roll(step).view(rows, columns))
    assert (_state_of_weights(layer) == before) == torch.equal(layer.weight, weight)


def test_the_checksum_without_a_kernel_sees_the_same(monkeypatch):
    model = build("modern")
    monkeypatch.setattr(packing_tiny_story, "library", lambda: None)
    before = _state_of_weights(model)
    assert _state_of_weights(model) == before
    fc1(model).weight.data[0, 0] += 1
    assert _state_of_weights(model) != before
    assert _state_of_weights(model.bfloat16()) != before


@pytest.mark.parametrize("recipe", RECIPES)
def test_adapters_are_told_as_they_are_set(recipe: str, tmp_path: Path):
    pytest.importorskip("peft")
    model = build(recipe)
    base = logits(model, "full")
    lora(model, "one")
    one = logits(model)
    model.save_pretrained(tmp_path / "one")
    lora(model, "two")
    model.set_adapter("two")
    two = logits(model)
    is_told_right(model)
    model.set_adapter("one")
    assert torch.equal(logits(model), one) and not torch.equal(one, two)
    model.disable_adapters()
    assert torch.equal(logits(model), base)
    model.enable_adapters()
    again = build(recipe)
    logits(again)
    again.load_adapter(str(tmp_path / "one"))
    torch.testing.assert_close(logits(again), one)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_peft_model_is_told_and_its_merged_model_packed(recipe: str):
    peft = pytest.importorskip("peft")
    model = build(recipe)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["fc1"], init_lora_weights=False)).eval()
    is_told_right(adapted)
    with adapted.disable_adapter():
        is_told_right(adapted)
    assert "PeftModel" in (why_not_packed(adapted) or "")
    expected = logits(adapted)
    merged = adapted.merge_and_unload()
    assert why_not_packed(merged) is None
    is_told_right(merged)
    torch.testing.assert_close(logits(merged, "full"), expected, atol=1e-3, rtol=1e-3)
    prompted = peft.get_peft_model(build(recipe), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ValueError, match="learnt a prompt"):
        open_decoder(prompted)


@pytest.mark.parametrize("recipe", RECIPES)
def test_quantised_models_are_told(recipe: str):
    model = build(recipe)
    dynamic = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    is_told_right(dynamic)
    assert why_not_packed(dynamic) is not None and why_not_packed(model) is None


@pytest.mark.parametrize("recipe", RECIPES)
def test_torchao_models_are_told(recipe: str):
    torchao = pytest.importorskip("torchao.quantization")
    model = build(recipe)
    logits(model)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    is_told_right(model)
    assert why_not_packed(model) is not None


def test_a_class_of_someone_elses_and_a_patched_class_are_not_packed(monkeypatch):
    class Mine(TinyStoryForCausalLM):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = -outputs.logits
            return outputs

    mine = Mine(TinyStoryConfig(**RECIPES["modern"])).eval()
    is_told_right(mine)
    assert "Mine" in (why_not_packed(mine) or "")
    model = build("modern")
    monkeypatch.setattr(modeling_tiny_story.PositionWiseFeedForward, "forward", lambda self, x: self.fc2(self.fc1(x)))
    assert "PositionWiseFeedForward.forward was replaced" in (why_not_packed(model) or "")
    is_told_right(model)


def test_global_hooks_and_lengthening_positions_are_not_packed():
    model = build("modern")
    handle = nn.modules.module.register_module_forward_hook(doubled_linear)
    try:
        is_told_right(model)
        assert why_not_packed(model) is not None
    finally:
        handle.remove()
    assert why_not_packed(model) is None
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    stretched = TinyStoryForCausalLM(TinyStoryConfig(**{**RECIPES["modern"], "rope_parameters": dynamic})).eval()
    assert "rotary positions" in (why_not_packed(stretched) or "")


def doubled_linear(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor | None:
    return 2 * output if isinstance(module, nn.Linear) else None


def test_a_copy_and_a_model_of_another_folder_are_packed(tell, trained_model):
    model = build("classic")
    twin = copy.deepcopy(model)
    fc1(twin).weight.data.mul_(2)
    assert not torch.equal(logits(model), logits(twin))
    # The package's own class in a pipeline whose code was loaded from a folder: the same source, two classes.
    loaded = sys.modules[type(tell).__module__.rsplit(".", 1)[0] + ".packing_tiny_story"]
    assert loaded is not packing_tiny_story
    assert type(trained_model) is not type(tell.model) and loaded.why_not_packed(trained_model) is None


def test_a_method_put_on_its_own_model_again_changes_nothing():
    """As transformers' exporters and accelerate's unwrap_model do."""
    model = build("modern")
    model.forward = model.forward
    assert why_not_packed(model) is None
    model.forward = build("modern").forward  # another model's
    assert why_not_packed(model) == "the model has a forward of its own"


def test_building_the_plan_draws_no_random_numbers():
    model = build("modern")
    state = torch.get_rng_state()
    assert why_not_packed(model) is None
    assert torch.equal(torch.get_rng_state(), state)


def test_the_reason_is_said_once(monkeypatch):
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(decoder_tiny_story.logger, "handlers", [handler])
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    model = build("modern")
    open_decoder(model)
    assert lines == []
    fc1(model).register_forward_hook(doubled)
    for _ in range(3):
        open_decoder(model)
    assert lines == [
        "stories are told by the model's own forward pass, not by the faster decoders: "
        "model.decoder_layers.1.feed_forward.fc1 has a hook (doubled)"
    ]


def test_stories_of_a_steered_model_are_its_own(tell):
    wishes = {"end": "happy", "max_words": 30, "seed": 1}
    plain = tell("She", **wishes)["story"]
    with warnings.catch_warnings():
        handle = tell.model.model.decoder_layers[3].register_forward_hook(doubled)
        steered, full = tell("She", **wishes)["story"], tell("She", precision="full", **wishes)["story"]
        handle.remove()
    assert steered == full != plain
    assert tell("She", **wishes)["story"] == plain

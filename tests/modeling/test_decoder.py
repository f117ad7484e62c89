"""The decoders agree with the model, with each other, and with themselves alone, in a batch and in a fork."""

import math
import platform

import pytest
import torch
from torch import nn

from modeling import compiler_tiny_story
from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.decoder_tiny_story import FullDecoder, Int8Decoder, NativeDecoder, open_decoder
from modeling.int8_tiny_story import Int8Linear
from modeling.modeling_tiny_story import TinyStoryForCausalLM
from tests.conftest import RECIPES, large_init

PROMPTS = [[5, 6, 7, 8, 9], [11], list(range(20, 90)), [40, 41, 42]]
STEPS = torch.randint(3, 99, (80, 4), generator=torch.Generator().manual_seed(2)).tolist()
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
COMPILER = compiler_tiny_story.library() is not None
NATIVE = pytest.param("native", marks=pytest.mark.skipif(not COMPILER, reason="no C compiler"))
both_int8 = pytest.mark.parametrize("precision", ["int8", NATIVE])


@pytest.fixture(params=RECIPES)
def int8_model(request: pytest.FixtureRequest) -> TinyStoryForCausalLM:
    """Both recipes with weights that int8 stores exactly: every output channel's largest is 127 of its steps, and a
    step is a power of two. What remains between the decoders is the rounding of activations to bf16."""
    model = TinyStoryForCausalLM(TinyStoryConfig(**RECIPES[request.param])).eval()
    large_init(model, 0.3)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            steps = torch.randint(-126, 127, module.weight.shape, generator=torch.Generator().manual_seed(3))
            steps[:, 0] = 127
            module.weight.data = steps.float() / 512
    return model


@torch.inference_mode()
def run(decoder: FullDecoder | Int8Decoder, rows: list[int]) -> list[torch.Tensor]:
    """Logits (rows, vocab) after the prompts, and after each step."""
    logits = [decoder.start([PROMPTS[row] for row in rows])]
    return [*logits, *(decoder.step([step[row] for row in rows]) for step in STEPS)]


def agreement(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Correlation of two sets of logits."""
    return torch.corrcoef(torch.stack((ours.flatten(), theirs.flatten())))[0, 1].item()


@torch.inference_mode()
def test_full_decoder_equals_the_forward_pass(tiny_model):
    told = run(FullDecoder(tiny_model), [0, 1, 2, 3])
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt + [step[row] for step in STEPS]])
        expected = tiny_model(ids).logits[0, len(prompt) - 1 :]
        torch.testing.assert_close(torch.stack([x[row] for x in told]), expected, atol=1e-3, rtol=1e-4)


@both_int8
def test_int8_decoder_follows_the_full_one(int8_model, precision: str):
    full, int8 = (torch.stack(run(open_decoder(int8_model, p), [0, 1, 2, 3])) for p in ("full", precision))
    # The native decoder rounds activations to 14 bits, not to 8.
    assert agreement(int8, full) > (0.999 if precision == "int8" else 0.999999)


@both_int8
def test_int8_decoder_follows_the_trained_model(trained_model, tokenizer, stories, precision: str):
    ids = tokenizer(stories[0])["input_ids"]
    with torch.inference_mode():
        full = trained_model(torch.tensor([ids])).logits[0]
        int8 = open_decoder(trained_model, precision)
        told = torch.cat((int8.start([ids[:4]])[0][None], int8.extend([ids[4:]])[0]))
    full = full[3:].log_softmax(-1)
    divergence = (full.exp() * (full - told.log_softmax(-1))).sum(-1).mean()  # nats per token
    assert 0 <= divergence < 0.005


@both_int8
def test_int8_rows_are_the_same_bits_alone_and_in_a_batch(int8_model, precision: str):
    batch = run(open_decoder(int8_model, precision), [0, 1, 2, 3])
    for row in range(4):
        alone = run(open_decoder(int8_model, precision), [row])
        assert all(torch.equal(together[row], single[0]) for together, single in zip(batch, alone, strict=True))


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["full", "int8", NATIVE])
def test_forks_and_kept_rows_go_on_as_if_alone(int8_model, precision: str):
    decoder = open_decoder(int8_model, precision)
    decoder.start(PROMPTS)
    decoder.step(STEPS[0])
    fork = decoder.fork([2, 2, 0], cut=[1, 0, 1])
    forked = fork.extend([[50, 51, 52]] * 3)
    for row, prompt in enumerate((PROMPTS[2], [*PROMPTS[2], STEPS[0][2]], PROMPTS[0])):
        alone = open_decoder(int8_model, precision)
        alone.start([prompt])
        torch.testing.assert_close(alone.extend([[50, 51, 52]])[0], forked[row], atol=2e-3, rtol=1e-3)
    again = fork.fork([1, 2], cut=[2, 4])  # a fork of the fork, back to before what the first one read
    forked = again.extend([[53, 54]] * 2)
    for row, prompt in enumerate(([*PROMPTS[2], STEPS[0][2], 50], PROMPTS[0][:-1])):
        alone = open_decoder(int8_model, precision)
        alone.start([prompt])
        torch.testing.assert_close(alone.extend([[53, 54]])[0], forked[row], atol=2e-3, rtol=1e-3)
    # A row may rest while others go on.
    awake = again.step([None, 56])
    assert len(awake) == 1
    torch.testing.assert_close(awake[0], alone.step([56])[0], atol=2e-3, rtol=1e-3)
    logits = again.step([57, 58])
    again.keep([1])
    once_more = again.step([59])
    alone = open_decoder(int8_model, precision)
    alone.start([[*PROMPTS[2], STEPS[0][2], 50, 53, 54]])
    torch.testing.assert_close(logits[0], alone.step([57])[0], atol=2e-3, rtol=1e-3)
    alone = open_decoder(int8_model, precision)
    alone.start([[*PROMPTS[0][:-1], 53, 54, 56, 58]])
    torch.testing.assert_close(once_more[0], alone.step([59])[0], atol=2e-3, rtol=1e-3)
    # A row may go on as two.
    fork.keep([0, 0, 2])
    alone = open_decoder(int8_model, precision)
    alone.start([[*PROMPTS[2], 50, 51, 52]])
    expected = alone.fork([0, 0]).step([55, 56])
    torch.testing.assert_close(fork.step([55, 56, None]), expected, atol=2e-3, rtol=1e-3)
    # The fork left the decoder alone; rows may be dropped and change places.
    decoder.keep([3, 1])
    alone = open_decoder(int8_model, precision)
    alone.start([PROMPTS[3], PROMPTS[1]])
    alone.step([STEPS[0][3], STEPS[0][1]])
    torch.testing.assert_close(decoder.step([60, 61]), alone.step([60, 61]), atol=2e-3, rtol=1e-3)


def test_int8_linear_is_as_fine_as_its_steps():
    torch.manual_seed(0)
    weight, bias, x = torch.randn(48, 64), torch.randn(48), torch.randn(5, 64)
    told = Int8Linear([weight[:20], weight[20:]], [bias[:20], bias[20:]])(x).float()
    step = weight.abs().amax(dim=1) / 127
    error = (told - (x @ weight.T + bias)).abs()
    # Half a step for each input at the very most; bf16 adds 2^-8 of the value.
    assert (error < x.norm(dim=1, keepdim=True) * step * math.sqrt(64) / 2 + told.abs() / 128).all()
    assert error.mean() < 0.05


@both_int8
def test_changed_weights_are_packed_again(int8_model, precision: str):
    before = run(open_decoder(int8_model, precision), [0])[0]
    with torch.no_grad():
        int8_model.fc.weight.mul_(2)
    after = run(open_decoder(int8_model, precision), [0])[0]
    assert (after - before).abs().max() > 0.1


needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C compiler")


@needs_compiler
@torch.inference_mode()
def test_native_steps_and_threads_give_the_same_bits(int8_model):
    """One token after another or all at once, on one thread or on three."""
    ids, threads = PROMPTS[2], torch.get_num_threads()
    once = open_decoder(int8_model, "native")
    once.start([ids[:1]])
    expected = once.extend([ids[1:]])[0]
    try:
        for torch_threads in (1, 3):
            torch.set_num_threads(torch_threads)
            steps = open_decoder(int8_model, "native")
            steps.start([ids[:1]])
            assert torch.equal(torch.stack([steps.step([token])[0] for token in ids[1:]]), expected)
    finally:
        torch.set_num_threads(threads)


@needs_compiler
@torch.inference_mode()
@pytest.mark.parametrize(
    "shape",
    [
        {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 50},  # no whole number of the kernel's lanes
        {"num_key_value_heads": 1, "position_type": "rope", "qk_norm": True},
        {"norm_type": "rmsnorm", "hidden_act": "swiglu"},
        {"norm_position": "pre", "use_bias": False, "vocab_size": 101},
    ],
)
def test_native_decoder_knows_every_part_of_the_model(shape: dict):
    config = TinyStoryConfig(**{**RECIPES["classic"], **shape})
    model = TinyStoryForCausalLM(config).eval()
    large_init(model, 0.1)
    full, native = (torch.stack(run(open_decoder(model, p), [0, 1, 2, 3])) for p in ("full", "native"))
    assert agreement(native, full) > 0.999  # what is left is the rounding of weights to int8


@needs_compiler
@torch.inference_mode()
@pytest.mark.parametrize(
    ("flags", "capability"),
    [
        (["-march=x86-64-v3"], "AVX"),
        (["-march=x86-64"], ""),
        (["-U__SSE2__", "-U__AVX2__", "-U__AVX512BW__"], ""),  # what processors of other makers get
    ],
)
def test_native_gives_the_same_bits_for_every_processor(int8_model, monkeypatch, flags: list[str], capability: str):
    if flags[0].startswith("-march") and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("an x86 processor's flag")
    if not torch.backends.cpu.get_cpu_capability().startswith(capability):
        pytest.skip(f"no {capability}")
    expected = run(open_decoder(int8_model, "native"), [0, 1, 2, 3])
    monkeypatch.setattr(compiler_tiny_story, "FLAGS", compiler_tiny_story.FLAGS + flags)
    compiler_tiny_story.build.cache_clear()
    try:
        assert torch.equal(torch.stack(run(open_decoder(int8_model, "native"), [0, 1, 2, 3])), torch.stack(expected))
    finally:
        compiler_tiny_story.build.cache_clear()


@needs_compiler
def test_native_decoder_refuses_to_leave_the_context(tiny_model):
    decoder = open_decoder(tiny_model, "native")
    decoder.start([[5] * tiny_model.config.max_position_embeddings])
    with pytest.raises(IndexError, match="context"):
        decoder.step([5])


def test_precision_is_chosen_and_refused(tiny_model):
    assert isinstance(open_decoder(tiny_model, "full"), FullDecoder)
    assert type(open_decoder(tiny_model, "int8")) is Int8Decoder
    fast = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    best = NativeDecoder if COMPILER else Int8Decoder if fast else FullDecoder
    assert type(open_decoder(tiny_model)) is best
    with pytest.raises(ValueError, match="precision must be"):
        open_decoder(tiny_model, "int3")
    with pytest.raises(ValueError, match='use "full"'):
        open_decoder(tiny_model.to("meta"), "int8")

"""What users of transformers expect of any causal language model, for both recipes."""

import copy
from functools import partial
from threading import Thread

import pytest
import torch
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    TextIteratorStreamer,
    Trainer,
    TrainingArguments,
)

IDS = torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(5))
GREEDY = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
CLOSE = {"atol": 1e-3, "rtol": 1e-4}


def test_an_early_exit_drafts_for_the_whole_model(tiny_model):
    early = tiny_model.generate(IDS[:1], assistant_early_exit=2, **GREEDY)
    assert early.tolist() == tiny_model.generate(IDS[:1], **GREEDY).tolist()
    assert tiny_model.config.num_hidden_layers == 3


def test_static_cache_equals_dynamic(tiny_model):
    static = tiny_model.generate(IDS, cache_implementation="static", disable_compile=True, **GREEDY)
    assert static.tolist() == tiny_model.generate(IDS, **GREEDY).tolist()


def test_beams_with_and_without_cache(tiny_model):
    # Beam search reorders the cache at every step.
    with_cache = tiny_model.generate(IDS, num_beams=4, num_return_sequences=2, **GREEDY)
    assert with_cache.shape == (4, 28)
    assert with_cache.tolist() == tiny_model.generate(
        IDS, num_beams=4, num_return_sequences=2, use_cache=False, **GREEDY
    ).tolist()  # fmt: skip


def test_prompt_lookup_equals_greedy(tiny_model):
    # Prompt lookup crops the cache wherever its guess was wrong.
    guessed = tiny_model.generate(IDS[:1], prompt_lookup_num_tokens=4, **GREEDY)
    assert guessed.tolist() == tiny_model.generate(IDS[:1], **GREEDY).tolist()


def test_a_cropped_cache_goes_on_as_if_never_filled(tiny_model):
    cache = DynamicCache(config=tiny_model.config)
    with torch.no_grad():
        tiny_model(IDS, past_key_values=cache, use_cache=True)
        cache.crop(-5)
        again = tiny_model(IDS[:, 7:], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(again, tiny_model(IDS).logits[:, 7:], **CLOSE)


@pytest.mark.slow  # compiles for most of its twenty seconds
def test_flex_attention_equals_sdpa(tiny_model):
    flex = copy.deepcopy(tiny_model)
    flex.set_attn_implementation("flex_attention")
    with torch.no_grad():
        torch.testing.assert_close(flex(IDS).logits, tiny_model(IDS).logits, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_precision_loads_and_runs(tiny_model, tmp_path, dtype):
    tiny_model.save_pretrained(tmp_path)
    model = type(tiny_model).from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    logits = model(IDS).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    assert model.generate(IDS, **GREEDY).shape == (2, 28)


def test_resized_vocabulary_keeps_the_old_logits(tiny_model):
    before = tiny_model(IDS).logits
    tiny_model.resize_token_embeddings(120, mean_resizing=False)
    after = tiny_model(IDS).logits
    assert after.shape[-1] == tiny_model.config.vocab_size == 120
    torch.testing.assert_close(after[..., :99], before)
    tied = tiny_model.fc.weight is tiny_model.get_input_embeddings().weight
    assert tied == tiny_model.config.tie_word_embeddings


def test_compiles_in_one_graph(tiny_model):
    compiled = torch.compile(tiny_model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS, use_cache=False).logits, tiny_model(IDS).logits, **CLOSE)


def test_exports(tiny_model):
    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model(ids, use_cache=False).logits

    program = torch.export.export(Logits(), (IDS,), strict=False)
    torch.testing.assert_close(program.module()(IDS), tiny_model(IDS).logits, **CLOSE)


def test_continuous_batching_equals_generate(trained_model, tokenizer):
    prompts = [tokenizer(text)["input_ids"] for text in ("Once upon a time", "The", "One day, a girl named Lily went")]
    # A fresh copy: the paged attention it switches to stays with the model.
    model = copy.deepcopy(trained_model)
    settings = GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=2, pad_token_id=0)
    # Its cache as large as this takes: by itself it would fill most of the machine's memory.
    small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64, max_requests_per_batch=4)
    answers = model.generate_batch(prompts, generation_config=settings, continuous_batching_config=small)
    told = [answer.generated_tokens for _, answer in sorted(answers.items())]
    expected = [
        trained_model.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    assert sorted(told) == sorted(expected)


def test_sampling_does_not_see_padding(tiny_model):
    settings = GREEDY | {"do_sample": True, "top_p": 0.9, "temperature": 0.7}
    torch.manual_seed(3)
    plain = tiny_model.generate(IDS, attention_mask=torch.ones_like(IDS), **settings)
    padded = torch.nn.functional.pad(IDS, (5, 0))
    torch.manual_seed(3)
    told = tiny_model.generate(padded, attention_mask=(torch.arange(17) >= 5).long().expand(2, -1), **settings)
    assert told[:, 5:].tolist() == plain.tolist()


def test_assisted_generation_equals_greedy(tiny_model):
    assistant = copy.deepcopy(tiny_model)
    for parameter in assistant.parameters():
        parameter.data.mul_(0.9)
    told = tiny_model.generate(IDS[:1], assistant_model=assistant, **GREEDY)
    assert told.tolist() == tiny_model.generate(IDS[:1], **GREEDY).tolist()


def test_trainer_accumulates_like_one_batch(tiny_model, tmp_path):
    rows = [{"input_ids": ids[:length], "labels": ids[:length]} for ids, length in zip(IDS, (12, 5), strict=True)]
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)

    def collate(batch: list[dict]) -> dict:
        ids = pad([row["input_ids"] for row in batch])
        return {"input_ids": ids, "labels": pad([row["labels"] for row in batch], padding_value=-100)}

    weights = []
    for batch, accumulation in ((2, 1), (1, 2)):
        model = copy.deepcopy(tiny_model)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        arguments = TrainingArguments(
            output_dir=tmp_path, max_steps=1, per_device_train_batch_size=batch, learning_rate=0.1, optim="sgd",
            gradient_accumulation_steps=accumulation, report_to="none", save_strategy="no", use_cpu=True,
            max_grad_norm=0,
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    start = torch.cat([p.flatten() for p in tiny_model.parameters()])
    assert (weights[0] - start).abs().max() > 1e-3
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-4)


def test_label_smoothing_shifts_the_labels(tiny_model, tmp_path):
    """Trainer takes the loss from the labels itself, and must know that they are the tokens before."""
    rows = [{"input_ids": IDS[0], "labels": IDS[0]}]
    losses = []
    for smoothing in (0.0, 1e-6):
        arguments = TrainingArguments(
            output_dir=tmp_path, label_smoothing_factor=smoothing, report_to="none", use_cpu=True
        )
        losses.append(Trainer(model=tiny_model, args=arguments, eval_dataset=rows).evaluate()["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_sampling_options_and_many_sequences(tiny_model):
    torch.manual_seed(0)
    settings = GREEDY | {"do_sample": True, "num_return_sequences": 3, "min_p": 0.05, "repetition_penalty": 1.2}
    assert tiny_model.generate(IDS, **settings).shape == (6, 28)


def test_stop_strings_and_streamer(trained_model, tokenizer):
    ids = tokenizer("Once upon a time", return_tensors="pt")
    settings = {"max_new_tokens": 60, "do_sample": False}
    stopped = trained_model.generate(**ids, stop_strings=["."], tokenizer=tokenizer, **settings)
    text = tokenizer.decode(stopped[0], skip_special_tokens=True)
    assert text.endswith(".") and text.count(".") == 1
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    thread = Thread(target=trained_model.generate, kwargs={**ids, **settings, "streamer": streamer})
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    whole = trained_model.generate(**ids, **settings)
    assert streamed == tokenizer.decode(whole[0], skip_special_tokens=True)

"""Train a Tiny Story model.

    accelerate launch training/train.py --config training/configs/classic.yaml [--any_field value]

Run the same command again after any interruption: it goes on from the last whole checkpoint. A run's folder holds its
configuration, metrics.jsonl, loss.png, sample stories, checkpoints, and at the end the model in Hub layout.
"""

import math
import os
import resource
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # `accelerate launch training/train.py` puts training/ on the path, not the project
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.generation_tiny_story import write_stories
from modeling.modeling_tiny_story import DecoderLayer, TinyStoryForCausalLM
from modeling.request_tiny_story import StoryRequest
from training import attention  # noqa: F401 -- makes causal_blocks known
from training.checkpoint import (
    begun_checkpoint,
    hold,
    load_optimizer_states,
    load_state,
    optimizer_states,
    read_weights,
    refuse_other_tokens,
    save_checkpoint,
    save_released,
    whole_model,
)
from training.cli import one_line_errors, refused
from training.config import TrainingConfig, parse_config, refuse_other_config, refuse_other_stories, refuse_unknown
from training.data import IGNORED, TrainingRows
from training.distillation import Teachers, load_teachers
from training.optimizer import bf16_is_fast, build_optimizers, learning_rate_factor, set_learning_rate
from training.report import Metrics
from training.scoring import fitting_stories, score_stories
from training.sources import files_fingerprint, fingerprint, hold_out, load_stories, training_stories
from training.streaming import StreamedRows
from training.tokenizer import load_tokenizer

SAMPLE_WISHES = (("Once upon a time", "</sos>"), ("The dragon", "home"), ("One day, a girl named Lily", "friends"))
DRY_RUN_UPDATES = 3  # timed, the first one left out


def choose_precision(requested: str) -> str:
    """bf16 where the hardware multiplies it faster than fp32, else full precision."""
    if requested != "auto":
        return requested
    return "bf16" if bf16_is_fast() else "no"


def build_model_config(config: TrainingConfig, tokenizer: PreTrainedTokenizerBase) -> TinyStoryConfig:
    """The model's configuration; ValueError where a row is longer than its context, or it has too few tokens."""
    planned = {"control_prefix": True} if config.wishes_share else {}
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    refuse_unknown("model", config.model, [field.name for field in fields(TinyStoryConfig)])
    with refused("model"):
        model_config = TinyStoryConfig(**{"vocab_size": len(tokenizer)} | ids | config.model | planned)
    if model_config.vocab_size < len(tokenizer):
        raise ValueError(f"vocab_size ({model_config.vocab_size}) is below the tokenizer's {len(tokenizer)} tokens")
    context = model_config.max_position_embeddings
    if config.row_length > context:
        raise ValueError(f"row_length ({config.row_length}) is above max_position_embeddings ({context})")
    return model_config


def build_model(config: TrainingConfig, model_config: TinyStoryConfig) -> TinyStoryForCausalLM:
    """A new model, or the one that `init_from` names, with the run's attention and dropout."""
    model = TinyStoryForCausalLM(model_config)
    with refused(f"attention {config.attention}"):
        model.set_attn_implementation(config.attention)
    if config.init_from:
        with refused(f"init_from {config.init_from}"):
            source = read_weights(TinyStoryForCausalLM, config.init_from)
        for name in config.model:  # heads or a norm may differ though all weights are as large
            ours, theirs = getattr(model_config, name), getattr(source.config, name)
            if ours != theirs and "initializer" not in name:
                raise ValueError(f"init_from {config.init_from}: {name} is {theirs!r}, this run's model has {ours!r}")
        loaded = source.state_dict()
        shapes = [{name: tuple(weight.shape) for name, weight in s.items()} for s in (model.state_dict(), loaded)]
        if shapes[0] != shapes[1]:
            name = sorted(name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name))[0]
            ours, theirs = (shape.get(name) for shape in shapes)
            raise ValueError(f"init_from {config.init_from}: {name} is {theirs}, for this model it must be {ours}")
        model.load_state_dict(loaded)
    elif config.zero_init:
        for layer in model.model.decoder_layers:
            assert isinstance(layer, DecoderLayer)
            torch.nn.init.zeros_(layer.self_attn.W_o.weight)
            torch.nn.init.zeros_(layer.feed_forward.fc2.weight)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout
    return model


def load_data(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, rank: int, num_processes: int
) -> tuple[TrainingRows | StreamedRows, list[str]]:
    """Packed training rows, and the validation stories."""
    reading: dict[str, Any] = {"text_column": config.text_column, "story_separator": config.story_separator}
    validation = None
    if config.validation_dataset:
        validation = load_stories([config.validation_dataset], "validation", **reading)
    names = ("row_length", "wishes_share", "seed", "whole_stories", "closings_share")
    options: dict[str, Any] = {name: getattr(config, name) for name in names}
    if config.streaming and validation is not None:
        texts = list(validation["text"])
        return StreamedRows(
            config.dataset, tokenizer, held_out=texts, rank=rank, num_processes=num_processes,
            text_column=config.text_column, **options,
        ), texts  # fmt: skip
    stories = load_stories(config.dataset, "train", **reading)
    if validation is None:
        validation = hold_out(stories, config.validation_share)
    clean, left_out = training_stories(config.dataset, stories, validation)
    rows = TrainingRows(clean, tokenizer, **options)
    if rows.num_rows < config.batch_rows:
        raise ValueError(
            f"{config.dataset}: {rows.num_rows} rows of {config.row_length} tokens ({left_out}), fewer than batch_rows "
            f"({config.batch_rows}); give more stories, or a smaller row_length or batch_rows"
        )
    print(
        f"{len(clean):,} stories to train on ({left_out}), "
        f"{rows.num_rows:,} rows of {config.row_length} tokens; {len(validation):,} validation stories"
    )
    return rows, list(validation["text"])


def tell_samples(model: TinyStoryForCausalLM, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Three sampled stories, always from the same seed, so that evaluations can be read side by side."""
    model.eval()
    implementation = model.config._attn_implementation
    model.set_attn_implementation("sdpa")  # all compute the same, but only transformers' own is known to the decoders
    requests = [StoryRequest(start, end=end, max_words=150) for start, end in SAMPLE_WISHES]
    stories = {index: story.text for index, _, story in write_stories(model, tokenizer, requests)}
    model.set_attn_implementation(implementation)
    model.train()
    return [stories[index] for index in range(len(requests))]


def evaluate(
    accelerator: Accelerator,
    model: TinyStoryForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    metrics: Metrics,
    **progress: float,
) -> str:
    """Score the whole model on the texts and let it tell the samples; to the metrics, trackers and samples.txt.

    Returns:
        the score, as a line for the reader.
    """
    with torch.random.fork_rng(devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
        with accelerator.autocast():
            score = score_stories(model, tokenizer, texts)
        stories = tell_samples(model, tokenizer)
    metrics.write(
        **progress, bits_per_byte=score.bits_per_byte, validation_loss=score.nats_per_token, stories=score.num_stories
    )
    metrics.draw()
    step = int(progress["step"])
    accelerator.log({"bits_per_byte": score.bits_per_byte}, step=step)
    text = "\n\n".join(f"--- update {step} ---\n{story}" for story in stories)
    (metrics.path.parent / "samples.txt").open("a", encoding="utf-8").write(text + "\n\n")
    return f"update {step}: {score.bits_per_byte:.4f} bits per byte on {score.num_stories} stories"


def update(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batch: dict[str, torch.Tensor],
    micro_batch_rows: int,
    teachers: Teachers | None = None,
) -> tuple[float, int]:
    """One update of the weights, at the learning rates that are set.

    Returns:
        the mean loss in nats per token, and the tokens scored, over all processes.

    Raises:
        FloatingPointError: the loss is not a number; the weights are as they were.
    """
    # Every process divides by the same count and DDP takes the mean over processes: times their number.
    num_targets = accelerator.reduce((batch["labels"] != IGNORED).sum().to(accelerator.device), "sum")
    loss_sum = torch.zeros((), device=accelerator.device)
    micro_batches = list(zip(*(tensor.split(micro_batch_rows) for tensor in batch.values()), strict=True))
    for index, tensors in enumerate(micro_batches):
        micro_batch = {name: x.to(accelerator.device) for name, x in zip(batch, tensors, strict=True)}
        with accelerator.no_sync(model) if index < len(micro_batches) - 1 else nullcontext():
            share = num_targets / accelerator.num_processes
            outputs = model(**micro_batch, use_cache=False, num_items_in_batch=share)
            loss = outputs.loss
            if teachers is not None:
                with accelerator.autocast():
                    loss = loss + teachers.added_loss(outputs.logits, **micro_batch, num_items_in_batch=share)
            accelerator.backward(loss)
        loss_sum += loss.detach()
    loss_value = accelerator.reduce(loss_sum, "mean").item()
    if not math.isfinite(loss_value):
        raise FloatingPointError(f"the loss is {loss_value}")
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss_value, int(num_targets)


def estimate(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    rows: TrainingRows | StreamedRows,
    config: TrainingConfig,
    teachers: Teachers | None,
) -> None:
    """Print what the run will take, from a few updates on its first rows; nothing is kept of them."""
    set_learning_rate(optimizers, 0.0)
    seconds, tokens = [], []
    for step in range(DRY_RUN_UPDATES):
        started = time.perf_counter()
        batch = rows.batch(step, config.batch_rows, accelerator.process_index, accelerator.num_processes)
        _, num_targets = update(accelerator, model, optimizers, batch, config.micro_batch_rows, teachers)
        seconds.append(time.perf_counter() - started)
        tokens.append(num_targets)
    per_update, rate = min(seconds[1:]), max(t / s for t, s in zip(tokens[1:], seconds[1:], strict=True))
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    accelerator.print(
        f"dry run: {config.num_steps * sum(tokens) / len(tokens) / 1e6:,.1f} million tokens to score, {rate:,.0f} a "
        f"second; {config.num_steps * per_update / 3600:.2f} hours without evaluations; {memory:.1f} GiB of memory"
    )


@one_line_errors
def main() -> None:
    """Train, or go on with a run that was interrupted."""
    config = parse_config(sys.argv[1:])
    run_dir = Path(config.output_dir)
    accelerator = Accelerator(
        mixed_precision=choose_precision(config.mixed_precision),
        dynamo_backend="inductor" if config.compile else "no",
        log_with=None if config.report_to == "none" else config.report_to,
        project_dir=run_dir,
    )
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    if config.batch_rows % num_processes:
        raise ValueError(f"batch_rows ({config.batch_rows}) must be a multiple of the {num_processes} processes")

    checkpoint = None if config.dry_run else begun_checkpoint(run_dir)
    tokenizer = load_tokenizer(config.tokenizer, controls=bool(config.wishes_share or config.closings_share))
    model_config = build_model_config(config, tokenizer)
    for name in (config.init_from, *(config.teachers or ())):
        if name:
            refuse_other_tokens(name, tokenizer)
    with accelerator.main_process_first():  # the others find the data in the cache
        rows, validation_texts = load_data(config, tokenizer, rank, num_processes)
    validation_texts = fitting_stories(validation_texts, tokenizer, model_config.max_position_embeddings)

    set_seed(config.seed)
    model = build_model(config, model_config)
    optimizers = build_optimizers(model, config.muon_lr, config.adam_lr, config.embedding_lr, config.weight_decay)
    step, tokens_seen, seconds = 0, 0, 0.0
    state = load_state(checkpoint) if checkpoint else None
    trained = fingerprint(rows.stories["text"]) if isinstance(rows, TrainingRows) else files_fingerprint(config.dataset)
    fingerprints = {"validation stories": fingerprint(validation_texts), "training stories": trained}
    if state is not None:
        refuse_other_config(state["config"], config)
        refuse_other_stories(state.get("fingerprints", {}), fingerprints, config.output_dir)
        model.load_state_dict(TinyStoryForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).state_dict())
        step, tokens_seen, seconds = state["step"], state["tokens_seen"], state["seconds"]
        accelerator.print(f"going on from {checkpoint}")
    training_model, *optimizers = accelerator.prepare(model, *optimizers)
    teachers = None
    if config.teachers:
        teachers = load_teachers(
            config.teachers, tokenizer, config.attention, config.teachers_share, config.compile
        ).to(accelerator.device)
    num_parameters = sum(p.numel() for p in model.parameters())
    passes = "streamed"
    if isinstance(rows, TrainingRows):
        passes = f"{config.num_steps * config.batch_rows / rows.num_rows:.2f} passes"
    accelerator.print(
        f"{num_parameters:,} parameters; {config.num_steps:,} updates of {config.batch_rows} rows of "
        f"{config.row_length} tokens, {passes}; precision {accelerator.mixed_precision}; "
        f"{num_processes} process{'es' if num_processes > 1 else ''}"
    )
    training_model.train()
    if config.dry_run:
        estimate(accelerator, training_model, optimizers, rows, config, teachers)
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = hold(run_dir, enabled=accelerator.is_main_process)
    metrics = Metrics(run_dir, until_step=step, enabled=accelerator.is_main_process)
    if state is None:
        torch.manual_seed(config.seed + rank)  # dropout differs between processes
        if accelerator.is_main_process:
            (run_dir / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    else:
        load_optimizer_states(model, optimizers, state["optimizers"])
        if num_processes == len(state["rng"]):
            torch.set_rng_state(state["rng"][rank])
        if isinstance(rows, StreamedRows):
            if num_processes != len(state["streams"]):
                raise ValueError(
                    f"a streamed run goes on with the number of processes it began with ({len(state['streams'])}, "
                    f"now {num_processes}): each has its own place in the stream"
                )
            rows.load_state_dict(state["streams"][rank])

    if config.report_to != "none":
        accelerator.init_trackers("tiny-story-generator", config={k: str(v) for k, v in asdict(config).items()})

    bar = tqdm(total=config.num_steps, initial=step, unit=" updates", disable=not accelerator.is_main_process)
    while True:
        # After the step's checkpoint, so that a long evaluation that is cut off costs no updates.
        if step and (step % config.evaluate_every == 0 or step == config.num_steps):
            whole = whole_model(accelerator, model)
            if accelerator.is_main_process and not metrics.has_score(step):
                texts = validation_texts if step == config.num_steps else validation_texts[: config.evaluation_stories]
                bar.write(
                    evaluate(
                        accelerator, whole, tokenizer, texts, metrics,
                        step=step, tokens=tokens_seen, seconds=round(seconds, 1),
                    )
                )  # fmt: skip
            accelerator.wait_for_everyone()
        if step == config.num_steps:
            break
        started = time.perf_counter()
        batch = rows.batch(step, config.batch_rows, rank, num_processes)
        factor = learning_rate_factor(step, config.num_steps, config.warmup_steps, config.decay_fraction)
        set_learning_rate(optimizers, factor)
        try:
            loss_value, num_targets = update(
                accelerator, training_model, optimizers, batch, config.micro_batch_rows, teachers
            )
        except FloatingPointError as problem:
            bar.close()  # or the message would stand in its line
            raise FloatingPointError(
                f"{problem} at update {step + 1}: lower muon_lr ({config.muon_lr}) or adam_lr ({config.adam_lr}); "
                f"the checkpoints in {run_dir} are from before it"
            ) from problem

        step += 1
        tokens_seen += num_targets
        elapsed = time.perf_counter() - started
        seconds += elapsed
        bar.update()
        bar.set_postfix(loss=f"{loss_value:.3f}", tokens_per_s=f"{num_targets / elapsed:,.0f}", refresh=False)
        metrics.write(step=step, tokens=tokens_seen, seconds=round(seconds, 1), loss=loss_value, lr_factor=factor)
        accelerator.log({"loss": loss_value, "tokens": tokens_seen, "lr_factor": factor}, step=step)

        if step % config.save_every == 0 or step == config.num_steps:
            whole = whole_model(accelerator, model)
            state = {
                "step": step, "tokens_seen": tokens_seen, "seconds": seconds, "config": asdict(config),
                "fingerprints": fingerprints,
                "rng": gather_object([torch.get_rng_state()]), "optimizers": optimizer_states(model, optimizers),
                "streams": gather_object([rows.state_dict()]) if isinstance(rows, StreamedRows) else [],
            }  # fmt: skip
            if accelerator.is_main_process:
                save_checkpoint(run_dir / "checkpoints", step, whole, tokenizer, state, keep=config.keep_checkpoints)
            accelerator.wait_for_everyone()
    bar.close()
    whole = whole_model(accelerator, model)
    if accelerator.is_main_process:
        save_released(whole, tokenizer, run_dir / "model")
        print(f"done: {run_dir / 'model'}")
    lock.release()
    accelerator.end_training()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()

"""Train a Tiny Story model.

    accelerate launch training/train.py --config training/configs/classic.yaml [--any_field value]

Run the same command again after any interruption: it goes on from the last whole checkpoint. A run's folder holds its
configuration, metrics.jsonl, loss.png, sample stories, checkpoints, and at the end the model in Hub layout.
"""

import json
import math
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # `accelerate launch training/train.py` puts training/ on the path, not the project
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from tqdm.auto import tqdm
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase

from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import DecoderLayer, TinyStoryForCausalLM
from training.checkpoint import latest_checkpoint, load_state, save_checkpoint, save_released
from training.data import DEFAULT_DATASET, IGNORED, TrainingRows, load_stories, without_stories
from training.optimizer import build_optimizers, learning_rate_factor, set_learning_rate
from training.report import Metrics
from training.scoring import score_stories

SAMPLE_PROMPTS = ("Once upon a time", "The dragon", "One day, a girl named Lily")


@dataclass
class TrainingConfig:
    """Everything a run depends on; a YAML file gives some fields, the command line overrides them."""

    output_dir: str = field(metadata={"help": "folder of the run"})
    dataset: list[str] = field(
        default_factory=lambda: [DEFAULT_DATASET], metadata={"help": "Hub names or .parquet, .jsonl, .txt files"}
    )
    validation_dataset: str = field(
        default=DEFAULT_DATASET, metadata={"help": "Hub name (its validation split) or file"}
    )
    tokenizer: str = field(default="modeling", metadata={"help": "folder or Hub name of the tokenizer"})
    init_from: str | None = field(default=None, metadata={"help": "folder or Hub name of weights to start from"})
    model: dict = field(default_factory=dict, metadata={"help": "fields of TinyStoryConfig, as JSON"})
    dropout: float = field(default=0.1, metadata={"help": "dropout during this run"})
    zero_init: bool = field(default=True, metadata={"help": "blocks start as the identity: W_o and fc2 start at zero"})
    wishes_share: float = field(default=0.0, metadata={"help": "share of the stories shown with a control prefix"})
    row_length: int = field(default=512, metadata={"help": "tokens of a packed row"})
    batch_rows: int = field(default=16, metadata={"help": "rows per update, over all processes"})
    micro_batch_rows: int = field(default=16, metadata={"help": "rows per forward pass and process, at most"})
    num_steps: int = field(default=1000, metadata={"help": "updates"})
    warmup_steps: int = field(default=40, metadata={"help": "updates until the peak learning rate"})
    decay_fraction: float = field(default=0.6, metadata={"help": "last share of the run with falling learning rate"})
    muon_lr: float = field(default=0.02, metadata={"help": "peak learning rate of the hidden matrices; 0: AdamW only"})
    adam_lr: float = field(default=3e-3, metadata={"help": "peak learning rate of everything else"})
    embedding_lr: float = field(default=0.1, metadata={"help": "peak learning rate of the token embedding"})
    weight_decay: float = field(default=0.05, metadata={"help": "weight decay of the hidden matrices"})
    attention: str = field(default="sdpa", metadata={"help": "sdpa, eager or flex_attention; all learn the same"})
    mixed_precision: str = field(default="auto", metadata={"help": "auto, no, bf16 or fp16"})
    compile: bool = field(default=False, metadata={"help": "torch.compile the training step (needs a C++ compiler)"})
    evaluate_every: int = field(default=200, metadata={"help": "updates between evaluations"})
    evaluation_stories: int = field(default=500, metadata={"help": "validation stories scored on the way"})
    save_every: int = field(default=100, metadata={"help": "updates between checkpoints"})
    keep_checkpoints: int = field(default=2, metadata={"help": "checkpoints kept"})
    seed: int = field(default=0, metadata={"help": "seed of the weights, the order of the data and dropout"})

    def __post_init__(self) -> None:
        for name in ("row_length", "batch_rows", "micro_batch_rows", "num_steps", "evaluate_every",
                     "evaluation_stories", "save_every", "keep_checkpoints"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.wishes_share <= 1:
            raise ValueError(f"wishes_share must be between 0 and 1, got {self.wishes_share}")
        if not 0 < self.decay_fraction <= 1:
            raise ValueError(f"decay_fraction must be above 0 and at most 1, got {self.decay_fraction}")
        if self.mixed_precision not in ("auto", "no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision must be auto, no, bf16 or fp16, got {self.mixed_precision!r}")


# Fields that may differ when a run is resumed: they do not change what is learnt.
_FREE_FIELDS = {
    "output_dir",
    "micro_batch_rows",
    "attention",
    "compile",
    "evaluate_every",
    "evaluation_stories",
    "save_every",
}
_FREE_FIELDS |= {"keep_checkpoints"}


def parse_config(arguments: list[str]) -> TrainingConfig:
    """Fields from the file after `--config`, overridden by `--field value`.

    Raises:
        ValueError, FileNotFoundError: no such file, not a mapping, an unknown field (the closest known one is named).
    """
    parser = HfArgumentParser(TrainingConfig, description=__doc__.split("\n")[0])
    parser.add_argument("--config", help="YAML file with fields of the run")
    next(action for action in parser._actions if action.dest == "model").type = json.loads
    chosen, _ = parser.parse_known_args([*arguments, "--output_dir", "-"])
    from_file: dict[str, Any] = {}
    if chosen.config:
        from_file = yaml.safe_load(Path(chosen.config).read_text(encoding="utf-8"))
        if not isinstance(from_file, dict):
            raise ValueError(f"{chosen.config}: expected a mapping of field names to values")
        names = [f.name for f in fields(TrainingConfig)]
        for name in from_file:
            if name not in names:
                close = get_close_matches(str(name), names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; known fields: {', '.join(names)}"
                raise ValueError(f"{chosen.config}: unknown field {name!r}{hint}")
        parser.set_defaults(**from_file)
        for action in parser._actions:
            action.required = action.required and action.dest not in from_file
    values = vars(parser.parse_args(arguments))
    values.pop("config")
    return TrainingConfig(**values)


def choose_precision(requested: str) -> str:
    """bf16 where the hardware multiplies it faster than fp32, else full precision."""
    if requested != "auto":
        return requested
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no"


def build_model_config(config: TrainingConfig, tokenizer: PreTrainedTokenizerBase) -> TinyStoryConfig:
    planned = {"control_prefix": True} if config.wishes_share else {}
    model_config = TinyStoryConfig(vocab_size=len(tokenizer), **config.model, **planned)
    context = model_config.max_position_embeddings
    if config.row_length > context:
        raise ValueError(f"row_length ({config.row_length}) is above max_position_embeddings ({context})")
    return model_config


def build_model(config: TrainingConfig, model_config: TinyStoryConfig) -> TinyStoryForCausalLM:
    model = TinyStoryForCausalLM(model_config)
    model.set_attn_implementation(config.attention)
    if config.init_from:
        model.load_state_dict(TinyStoryForCausalLM.from_pretrained(config.init_from, dtype=torch.float32).state_dict())
    elif config.zero_init:
        for layer in model.model.decoder_layers:
            assert isinstance(layer, DecoderLayer)
            torch.nn.init.zeros_(layer.self_attn.W_o.weight)
            torch.nn.init.zeros_(layer.feed_forward.fc2.weight)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout
    return model


def load_data(config: TrainingConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[TrainingRows, list[str]]:
    """Packed training rows, and the validation stories."""
    validation = load_stories([config.validation_dataset], "validation")
    stories = load_stories(config.dataset, "train")
    clean = without_stories(stories, validation)
    rows = TrainingRows(clean, tokenizer, config.row_length, config.wishes_share, config.seed)
    if rows.num_rows < config.batch_rows:
        raise ValueError(
            f"{config.dataset}: {rows.num_rows} rows of {config.row_length} tokens, fewer than batch_rows "
            f"({config.batch_rows}); give more stories, or a smaller row_length or batch_rows"
        )
    print(
        f"{len(clean):,} stories to train on ({len(stories) - len(clean)} found in the validation split left out), "
        f"{rows.num_rows:,} rows of {config.row_length} tokens; {len(validation):,} validation stories"
    )
    return rows, list(validation["text"])


def tell_samples(model: TinyStoryForCausalLM, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Three sampled stories, always from the same seed, so that evaluations can be read side by side."""
    model.eval()
    stories = []
    for prompt in SAMPLE_PROMPTS:
        torch.manual_seed(0)
        ids = tokenizer(prompt, return_tensors="pt").to(model.device)
        output = model.generate(**ids, max_new_tokens=200, do_sample=True, temperature=0.8, top_p=0.95)
        stories.append(tokenizer.decode(output[0], skip_special_tokens=True))
    model.train()
    return stories


def main() -> None:
    config = parse_config(sys.argv[1:])
    accelerator = Accelerator(
        mixed_precision=choose_precision(config.mixed_precision), dynamo_backend="inductor" if config.compile else "no"
    )
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    if config.batch_rows % num_processes:
        raise ValueError(f"batch_rows ({config.batch_rows}) must be a multiple of the {num_processes} processes")
    run_dir = Path(config.output_dir)
    run_dir.mkdir(parents=True, exist_ok=True)

    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer, trust_remote_code=True)
    model_config = build_model_config(config, tokenizer)
    with accelerator.main_process_first():  # the others find the data in the cache
        rows, validation_texts = load_data(config, tokenizer)

    set_seed(config.seed)
    model = build_model(config, model_config)
    optimizers = build_optimizers(model, config.muon_lr, config.adam_lr, config.embedding_lr, config.weight_decay)
    step, tokens_seen, seconds = 0, 0, 0.0
    checkpoint = latest_checkpoint(run_dir / "checkpoints")
    state = load_state(checkpoint) if checkpoint else None
    if state is not None:
        _refuse_other_config(state["config"], config)
        model.load_state_dict(TinyStoryForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).state_dict())
        step, tokens_seen, seconds = state["step"], state["tokens_seen"], state["seconds"]
        accelerator.print(f"going on from {checkpoint}")
    training_model, *optimizers = accelerator.prepare(model, *optimizers)
    metrics = Metrics(run_dir, until_step=step, enabled=accelerator.is_main_process)
    if state is None:
        torch.manual_seed(config.seed + rank)  # dropout differs between processes
        if accelerator.is_main_process:
            (run_dir / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    else:
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if num_processes == len(state["rng"]):
            torch.set_rng_state(state["rng"][rank])

    num_parameters = sum(p.numel() for p in model.parameters())
    passes = config.num_steps * config.batch_rows / rows.num_rows
    accelerator.print(
        f"{num_parameters:,} parameters; {config.num_steps:,} updates of {config.batch_rows} rows of "
        f"{config.row_length} tokens, {passes:.2f} passes; precision {accelerator.mixed_precision}"
    )
    training_model.train()
    bar = tqdm(total=config.num_steps, initial=step, unit=" updates", disable=not accelerator.is_main_process)
    while step < config.num_steps:
        started = time.perf_counter()
        batch = rows.batch(step, config.batch_rows, rank, num_processes)
        # Every process divides by the same count and DDP takes the mean over processes: times their number.
        num_targets = accelerator.reduce((batch["labels"] != IGNORED).sum().to(accelerator.device), "sum")
        loss_sum = torch.zeros((), device=accelerator.device)
        micro_batches = list(zip(*(tensor.split(config.micro_batch_rows) for tensor in batch.values()), strict=True))
        for index, tensors in enumerate(micro_batches):
            micro_batch = {name: x.to(accelerator.device) for name, x in zip(batch, tensors, strict=True)}
            with accelerator.no_sync(training_model) if index < len(micro_batches) - 1 else nullcontext():
                loss = training_model(
                    **micro_batch, use_cache=False, num_items_in_batch=num_targets / num_processes
                ).loss
                accelerator.backward(loss)
            loss_sum += loss.detach()
        loss_value = accelerator.reduce(loss_sum, "mean").item()
        if not math.isfinite(loss_value):
            raise FloatingPointError(
                f"the loss is {loss_value} at update {step + 1}: lower muon_lr ({config.muon_lr}) or adam_lr "
                f"({config.adam_lr}); the checkpoints in {run_dir} are from before it"
            )
        factor = learning_rate_factor(step, config.num_steps, config.warmup_steps, config.decay_fraction)
        set_learning_rate(optimizers, factor)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

        step += 1
        tokens_seen += int(num_targets)
        elapsed = time.perf_counter() - started
        seconds += elapsed
        bar.update()
        bar.set_postfix(loss=f"{loss_value:.3f}", tokens_per_s=f"{int(num_targets) / elapsed:,.0f}", refresh=False)
        metrics.write(step=step, tokens=tokens_seen, seconds=round(seconds, 1), loss=loss_value, lr_factor=factor)

        last = step == config.num_steps
        if (step % config.evaluate_every == 0 or last) and accelerator.is_main_process:
            with torch.random.fork_rng(devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
                with accelerator.autocast():
                    texts = validation_texts if last else validation_texts[: config.evaluation_stories]
                    score = score_stories(model, tokenizer, texts)
                stories = tell_samples(model, tokenizer)
            metrics.write(
                step=step, tokens=tokens_seen, seconds=round(seconds, 1), bits_per_byte=score.bits_per_byte,
                validation_loss=score.nats_per_token, stories=score.num_stories,
            )  # fmt: skip
            metrics.draw()
            bar.write(f"update {step}: {score.bits_per_byte:.4f} bits per byte on {score.num_stories} stories")
            text = "\n\n".join(f"--- update {step} ---\n{story}" for story in stories)
            (run_dir / "samples.txt").open("a", encoding="utf-8").write(text + "\n\n")
        if step % config.save_every == 0 or last:
            rng = gather_object([torch.get_rng_state()])
            if accelerator.is_main_process:
                state = {
                    "step": step, "tokens_seen": tokens_seen, "seconds": seconds, "rng": rng,
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers], "config": asdict(config),
                }  # fmt: skip
                save_checkpoint(run_dir / "checkpoints", step, model, tokenizer, state, keep=config.keep_checkpoints)
        accelerator.wait_for_everyone()
    bar.close()
    if accelerator.is_main_process:
        save_released(model, tokenizer, run_dir / "model")
        print(f"done: {run_dir / 'model'}")
    accelerator.end_training()


def _refuse_other_config(saved: dict[str, Any], config: TrainingConfig) -> None:
    now = asdict(config)
    different = [name for name in now if name not in _FREE_FIELDS and now[name] != saved.get(name)]
    if different:
        changes = ", ".join(f"{name}: {saved.get(name)!r} -> {now[name]!r}" for name in different)
        raise ValueError(
            f"{config.output_dir} holds a run with another configuration ({changes}); use a new output_dir"
        )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()

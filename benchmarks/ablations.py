"""What each part of the recipe is worth: runs at equal tokens that differ in one thing, and two peers in the same loop.

    python -m benchmarks.ablations run --dataset train.parquet --validation_dataset validation.parquet [--only NAME ...]
    python -m benchmarks.ablations report [--kept ablations]

Every run trains a small model of the modern recipe, or a peer of the same number of parameters built from
transformers' own classes, through training/train.py's `update` on the same stories, and is scored in bits per byte on
the same validation stories. A run that is already in the output folder is not made again.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset, disable_caching
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.peers import gpt2, llama
from modeling.configuration_tiny_story import TinyStoryConfig
from training.cli import Parser, one_line_errors
from training.config import TrainingConfig
from training.data import TrainingRows
from training.optimizer import build_optimizers, learning_rate_factor, set_learning_rate
from training.report import draw_ablations, read_runs
from training.scoring import score_stories
from training.sources import DEFAULT_DATASET, load_stories, without_stories
from training.tokenizer import train_tokenizer
from training.train import build_model, choose_precision, update

ROOT = Path(__file__).resolve().parent.parent
RECIPE = yaml.safe_load((ROOT / "training/configs/modern.yaml").read_text())
SMALL = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 512}
UPDATES, BATCH_ROWS, ROW_LENGTH = 200, 8, 384
EVALUATIONS, SCORED_ON_THE_WAY, SCORED_STORIES = 6, 60, 400
EMA_DECAY = 0.98  # of a mean over the last 50 updates


@dataclass(frozen=True)
class Variant:
    """One thing done otherwise than in the small modern recipe; the defaults are that recipe.

    Args:
        fields: of TrainingConfig. model: of TinyStoryConfig.
        peer: "gpt2" or "llama": transformers' own architecture, AdamW, cosine, plain rows.
        rows: "packed" whole stories kept apart; "unmasked", packed, but stories see those before them; "plain", all
            stories one after another, cut anywhere.
        cosine: a cosine to a tenth of the peak instead of the linear fall to zero.
        average: score the moving average of the weights instead of the last ones.
        share: of the training stories; updates stay the same, so a smaller share means more passes.
        bpe_dropout: Provilkov et al. 2020, in the training stories. vocabulary: entries of a tokenizer of its own.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    peer: str = ""
    rows: str = "packed"
    cosine: bool = False
    average: bool = False
    share: float = 1.0
    bpe_dropout: float = 0.0
    vocabulary: int | None = None
    seeds: tuple[int, ...] = (0,)


def adamw(lr: float, fields: dict[str, Any] | None = None, **changes: Any) -> Variant:
    """AdamW for every parameter, at one learning rate."""
    chosen = {"muon_lr": 0.0, "adam_lr": lr, "embedding_lr": lr, "weight_decay": 0.1}
    return Variant(fields=chosen | (fields or {}), **changes)


THREE = (0, 1, 2)
TWICE: dict[str, Any] = {"fields": {"num_steps": 2 * UPDATES}}
FEW = 0.015  # of the stories: five passes
VARIANTS: dict[str, Variant] = {
    "modern": Variant(seeds=THREE),
    "control prefixes": Variant(fields={"wishes_share": 0.5}, seeds=THREE),
    "GPT-2, AdamW 3e-3, twice the tokens": adamw(3e-3, peer="gpt2", **TWICE),
    "GPT-2, AdamW 1e-3, twice the tokens": adamw(1e-3, peer="gpt2", **TWICE),
    "Llama, AdamW 3e-3, twice the tokens": adamw(3e-3, peer="llama", **TWICE),
    "AdamW 3e-3": adamw(3e-3),
    "AdamW 6e-3": adamw(6e-3),
    "Muon 0.01": Variant(fields={"muon_lr": 0.01}, seeds=THREE),
    "Muon 0.04": Variant(fields={"muon_lr": 0.04}),
    "no zero-init": Variant(fields={"zero_init": False}, seeds=THREE),
    "post-norm": Variant(model={"norm_position": "post"}),
    "sinusoids": Variant(model={"position_type": "sinusoidal"}),
    "ReLU": Variant(model={"hidden_act": "relu", "intermediate_size": 768}, seeds=THREE),
    "no QK-norm": Variant(model={"qk_norm": False}, seeds=THREE),
    "untied": Variant(model={"tie_word_embeddings": False}, seeds=THREE),
    "cosine": Variant(cosine=True, seeds=THREE),
    "constant, averaged": Variant(fields={"decay_fraction": 1 / UPDATES}, average=True),
    "linear, averaged": Variant(average=True),
    "plain rows": Variant(rows="plain"),
    "stories see those before": Variant(rows="unmasked"),
    "4 rows an update": Variant(fields={"batch_rows": 4, "num_steps": 2 * UPDATES}),
    "16 rows an update": Variant(fields={"batch_rows": 16, "num_steps": UPDATES // 2}),
    "weight decay 0.5": Variant(fields={"weight_decay": 0.5}),
    "weight decay 1": Variant(fields={"weight_decay": 1.0}),
    "weight decay 0.5, 4 rows an update": Variant(
        fields={"weight_decay": 0.5, "batch_rows": 4, "num_steps": 2 * UPDATES}
    ),
    "weight decay 0.5, twice the tokens": Variant(fields={"weight_decay": 0.5, "num_steps": 2 * UPDATES}),
    "few stories": Variant(share=FEW),
    "few stories, dropout 0.1": Variant(share=FEW, fields={"dropout": 0.1}),
    "few stories, weight decay 0.5": Variant(share=FEW, fields={"weight_decay": 0.5}),
    "few stories, BPE dropout 0.1": Variant(share=FEW, bpe_dropout=0.1),
    "vocabulary 2,500": Variant(vocabulary=2500),
    "vocabulary 10,000": Variant(vocabulary=10000),
    "modern, half the tokens": Variant(fields={"num_steps": UPDATES // 2}),
    "modern, twice the tokens": Variant(**TWICE),
    "width 96": Variant(model={"hidden_size": 96, "num_attention_heads": 2, "head_dim": 48, "intermediate_size": 256}),
    "6 layers of 160": Variant(model={"hidden_size": 160, "num_hidden_layers": 6, "num_attention_heads": 2,
                                      "head_dim": 80, "intermediate_size": 416}, seeds=THREE),
    "2 layers of 256": Variant(model={"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
                                      "intermediate_size": 704}),
    "width 384": Variant(model={"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1024}),
    "modern, four times the tokens": Variant(fields={"num_steps": 4 * UPDATES}),
}  # fmt: skip


class ClippedAdamW(torch.optim.AdamW):
    """AdamW on gradients of norm 1 at most, as nanoGPT and llama2.c train."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Clip the gradients, then AdamW's own step."""
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        return super().step(closure)


def peer_optimizers(model: PreTrainedModel, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """A peer's AdamW; weight decay for its matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = ClippedAdamW(groups, lr=config.adam_lr, betas=(0.9, 0.95))
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return [optimizer]


class PlainRows:
    """All stories one after another, cut into rows anywhere; every token but a row's first is scored."""

    def __init__(self, stories: list[list[int]], row_length: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(stories), generator=generator).tolist()
        tokens = torch.tensor([token for index in order for token in stories[index]])
        self.rows = tokens[: len(tokens) // row_length * row_length].view(-1, row_length)
        self.order = torch.randperm(len(self.rows), generator=generator)

    def batch(self, step: int, batch_rows: int) -> dict[str, torch.Tensor]:
        """Rows of the update, `input_ids` and `labels` at least, each (rows, time)."""
        places = torch.arange(step * batch_rows, (step + 1) * batch_rows) % len(self.rows)
        rows = self.rows[self.order[places]]
        return {"input_ids": rows, "labels": rows.clone()}


class BpeDropoutRows:
    """`TrainingRows` whose stories are split into tokens anew in every pass."""

    def __init__(self, stories: Dataset, tokenizer: PreTrainedTokenizerFast, dropout: float, seed: int):
        disable_caching()  # which would give every pass the first one's tokens
        self.stories, self.tokenizer, self.dropout, self.seed = stories, tokenizer, dropout, seed
        self.pass_number, self.rows = 0, self._split()

    def _split(self) -> TrainingRows:
        model: Any = self.tokenizer.backend_tokenizer.model
        model.dropout = self.dropout
        rows = TrainingRows(self.stories, self.tokenizer, ROW_LENGTH, seed=self.seed)
        model.dropout = None
        return rows

    def batch(self, step: int, batch_rows: int) -> dict[str, torch.Tensor]:
        """Rows of the update, `input_ids` and `labels` at least, each (rows, time)."""
        pass_number = step * batch_rows // self.rows.num_rows
        if pass_number != self.pass_number:
            self.pass_number, self.rows = pass_number, self._split()
        return self.rows.batch(step, batch_rows)


def cosine_factor(step: int, num_steps: int, warmup_steps: int) -> float:
    """Linear up, then a cosine down to a tenth, as nanoGPT does."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup_steps) / (num_steps - warmup_steps)))


def run(variant: Variant, seed: int, stories: Dataset, validation: list[str], path: Path) -> None:
    """Train one variant and write its scores, on the way and at the end, to `path`, with tokens, seconds and loss."""
    config = TrainingConfig(
        output_dir="-", tokenizer=str(ROOT / "modeling"), seed=seed,
        **{"batch_rows": BATCH_ROWS, "micro_batch_rows": BATCH_ROWS, "row_length": ROW_LENGTH, "num_steps": UPDATES,
           "warmup_steps": 20, "attention": "eager", "wishes_share": 0.0, "dropout": 0.0,
           **{name: RECIPE[name] for name in ("decay_fraction", "muon_lr", "adam_lr", "embedding_lr", "weight_decay")},
           **variant.fields, "model": RECIPE["model"] | SMALL | variant.model},
    )  # fmt: skip
    accelerator = Accelerator(cpu=True, mixed_precision=choose_precision("auto"))
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(config.tokenizer, trust_remote_code=True)
    if variant.vocabulary:
        tokenizer = train_tokenizer(stories["text"], variant.vocabulary)
    chosen = stories.select(range(round(variant.share * len(stories))))
    set_seed(seed)
    model: Any
    if variant.peer:
        model = {"gpt2": gpt2, "llama": llama}[variant.peer](SMALL, len(tokenizer))
        optimizers = peer_optimizers(model, config)
    else:
        planned = {"control_prefix": True} if config.wishes_share else {}
        model = build_model(config, TinyStoryConfig(vocab_size=len(tokenizer), **config.model, **planned))
        optimizers = build_optimizers(model, config.muon_lr, config.adam_lr, config.embedding_lr, config.weight_decay)
    rows: Any
    if variant.peer or variant.rows == "plain":
        texts = tokenizer(list(chosen["text"]), add_special_tokens=False)["input_ids"]
        documents = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in texts]
        rows = PlainRows(documents, config.row_length, seed)
    elif variant.bpe_dropout:
        rows = BpeDropoutRows(chosen, tokenizer, variant.bpe_dropout, seed)
    else:
        rows = TrainingRows(chosen, tokenizer, config.row_length, config.wishes_share, seed)
    averaged = [p.detach().clone() for p in model.parameters()]
    training_model, *optimizers = accelerator.prepare(model, *optimizers)
    training_model.train()

    tokens, seconds, lines = 0, 0.0, []
    for step in tqdm(range(config.num_steps), unit=" updates", leave=False):
        began = time.perf_counter()
        batch = rows.batch(step, config.batch_rows)
        if variant.rows == "unmasked":
            del batch["position_ids"]
        if variant.peer or variant.cosine:
            factor = cosine_factor(step, config.num_steps, config.warmup_steps)
        else:
            factor = learning_rate_factor(step, config.num_steps, config.warmup_steps, config.decay_fraction)
        set_learning_rate(optimizers, factor)
        loss, scored = update(accelerator, training_model, optimizers, batch, config.micro_batch_rows)
        if variant.average:
            torch._foreach_lerp_(averaged, [p.detach() for p in model.parameters()], 1 - EMA_DECAY)
        tokens, seconds = tokens + scored, seconds + time.perf_counter() - began
        lines.append({"step": step + 1, "tokens": tokens, "seconds": round(seconds, 2), "loss": round(loss, 4)})
        if (step + 1) % (config.num_steps // EVALUATIONS) == 0 and step + 1 < config.num_steps:
            score = score_stories(model, tokenizer, validation[:SCORED_ON_THE_WAY])
            lines[-1]["bits_per_byte"] = score.bits_per_byte
    if variant.average:
        for parameter, average in zip(model.parameters(), averaged, strict=True):
            parameter.data.copy_(average)
    score = score_stories(model, tokenizer, validation)
    lines[-1] |= {
        "bits_per_byte": score.bits_per_byte, "stories": score.num_stories,
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if "bits_per_byte" in line))


def run_all(arguments: argparse.Namespace) -> None:
    """Make the runs that are asked for and not made yet."""
    unknown = set(arguments.only) - set(VARIANTS)
    if unknown:
        raise ValueError(f"--only: no variant {sorted(unknown)}; there are {', '.join(VARIANTS)}")
    held_out = load_stories([arguments.validation_dataset], "validation")
    stories = without_stories(load_stories(arguments.dataset, "train"), held_out)
    validation = list(held_out["text"][:SCORED_STORIES])
    for name, variant in VARIANTS.items():
        for seed in variant.seeds if not arguments.only or name in arguments.only else ():
            path = arguments.output_dir / f"{name}.{seed}.jsonl"
            if not path.exists():
                run(variant, seed, stories, validation, path)
                print(f"{name}, seed {seed}: {json.loads(path.read_text().splitlines()[-1])}", flush=True)


def report(arguments: argparse.Namespace) -> None:
    """Print the table, in the order of VARIANTS, and draw the figure."""
    runs: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    kept = read_runs() if arguments.kept else {}
    for name, variant in VARIANTS.items():
        for seed in variant.seeds:
            path = arguments.output_dir / f"{name}.{seed}.jsonl"
            if arguments.kept and (lines := kept.get(f"{arguments.kept}/{name}.{seed}")):
                runs[name].append(lines)
            elif not arguments.kept and path.exists():
                runs[name].append([json.loads(line) for line in path.read_text().splitlines()])
    if "modern" not in runs:
        raise ValueError(f"{arguments.kept or arguments.output_dir}: no runs here; make them with `run`")
    base = mean(lines[-1]["bits_per_byte"] for lines in runs["modern"])
    print("| variant | parameters | tokens | bits per byte | against modern | seeds |\n|---|---|---|---|---|---|")
    for name, made in runs.items():
        scores = [lines[-1]["bits_per_byte"] for lines in made]
        spread = f" ({min(scores):.4f} to {max(scores):.4f})" if len(scores) > 1 else ""
        last = made[0][-1]
        print(
            f"| {name} | {last['parameters']:,} | {last['tokens'] / 1e6:.2f} million | {mean(scores):.4f}{spread} | "
            f"{mean(scores) - base:+.4f} | {len(scores)} |"
        )
    draw_ablations({name: made[0] for name, made in runs.items()}, arguments.figure)


@one_line_errors
def main() -> None:
    """Make runs, or report them."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--dataset", nargs="+", default=RECIPE["dataset"], help="as for training/train.py")
    parser.add_argument("--validation_dataset", default=DEFAULT_DATASET)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ablations"))
    parser.add_argument(
        "--kept", help="report: the kept runs of this name (ablations, ablations_seeds), not a folder's"
    )
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/figures/ablations.png")
    parser.add_argument("--only", nargs="*", default=[], help="names of variants; all without it")
    arguments = parser.parse_args()
    {"run": run_all, "report": report}[arguments.what](arguments)


if __name__ == "__main__":
    main()

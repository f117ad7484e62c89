"""A peer of the flagship's width and depth, trained by our loop on the same stories, for `training.evaluate suite`.

    python -m benchmarks.train_peer gpt2 --dataset train.parquet fragments.parquet \\
        --validation_dataset validation.parquet --output_dir runs/gpt2 --num_steps 1800
    python -m training.evaluate suite --model runs/gpt2 --name gpt2-shape --dataset validation.parquet \\
        --training_dataset train.parquet fragments.parquet

As nanoGPT and llama2.c train: AdamW (0.9, 0.95, weight decay 0.1, gradients of norm 1 at most), a cosine to a tenth,
stories one after another, cut into rows anywhere. The tokenizer is the flagship's, the rows are those of
training/configs/modern.yaml.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from benchmarks.ablations import RECIPE, ROOT, PlainRows, cosine_factor, peer_optimizers
from benchmarks.peers import gpt2, llama
from training.cli import Parser, one_line_errors, positive
from training.config import TrainingConfig
from training.optimizer import set_learning_rate
from training.scoring import score_stories
from training.sources import DEFAULT_DATASET, load_stories, without_stories
from training.train import choose_precision, update

PEERS = {"gpt2": gpt2, "llama": llama}
SCORED_ON_THE_WAY = 200


def train(config: TrainingConfig, peer: str, compiled: bool) -> float:
    """Train a peer, write metrics.jsonl and, at the end, the model with its tokenizer to the output folder.

    Returns:
        bits per byte on all validation stories.
    """
    folder = Path(config.output_dir)
    accelerator = Accelerator(mixed_precision=choose_precision("auto"))
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer, trust_remote_code=True)
    held_out = load_stories([config.validation_dataset or DEFAULT_DATASET], "validation")
    stories = without_stories(load_stories(config.dataset, "train"), held_out)
    documents = [
        [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        for ids in tokenizer(list(stories["text"]), add_special_tokens=False)["input_ids"]
    ]
    rows = PlainRows(documents, config.row_length, config.seed)
    set_seed(config.seed)
    model: Any = PEERS[peer](config.model, len(tokenizer))
    optimizers = peer_optimizers(model, config)
    training_model, *optimizers = accelerator.prepare(model, *optimizers)
    if compiled:
        training_model.compile()
    folder.mkdir(parents=True, exist_ok=True)
    tokens, began = 0, time.perf_counter()
    with (folder / "metrics.jsonl").open("w") as metrics:
        for step in tqdm(range(config.num_steps), unit=" updates"):
            training_model.train()
            set_learning_rate(optimizers, cosine_factor(step, config.num_steps, config.warmup_steps))
            batch = rows.batch(step, config.batch_rows)
            loss, scored = update(accelerator, training_model, optimizers, batch, config.micro_batch_rows)
            tokens += scored
            line = {"step": step + 1, "tokens": tokens, "seconds": time.perf_counter() - began, "loss": loss}
            last = step + 1 == config.num_steps
            if last or (step + 1) % 300 == 0:
                texts = list(held_out["text"]) if last else list(held_out["text"][:SCORED_ON_THE_WAY])
                score = score_stories(model, tokenizer, texts)
                line |= {"bits_per_byte": score.bits_per_byte, "stories": score.num_stories}
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return score.bits_per_byte


@one_line_errors
def main() -> None:
    """Train a peer."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--dataset", nargs="+", default=RECIPE["dataset"], help="as for training/train.py")
    parser.add_argument("--validation_dataset", help="as for training/train.py")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--num_steps", type=positive, default=RECIPE["num_steps"])
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--compile", action="store_true", help="torch.compile, faster where there is a compiler")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    same = {name: RECIPE[name] for name in ("row_length", "batch_rows", "micro_batch_rows", "warmup_steps", "model")}
    config = TrainingConfig(
        tokenizer=str(ROOT / "modeling"), dataset=arguments.dataset, validation_dataset=arguments.validation_dataset,
        output_dir=arguments.output_dir, num_steps=arguments.num_steps, seed=arguments.seed, weight_decay=0.1,
        adam_lr=arguments.lr, embedding_lr=arguments.lr, muon_lr=0.0, **same,
    )  # fmt: skip
    print(f"{train(config, arguments.peer, arguments.compile):.4f} bits per byte")


if __name__ == "__main__":
    main()

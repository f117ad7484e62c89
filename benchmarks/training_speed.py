"""How fast the flagship's recipe trains, side by side with peers of the same size on the same machine in the same run.

    python -m benchmarks.training_speed [--compile] [--attention causal_blocks] [--rows 8]

One update's forward and backward passes, in bf16 where the machine has it, on rows of the recipe's length; the peers
are transformers' own GPT-2 and Llama, with either of their attentions; no dropout anywhere. Rounds are interleaved. MFU
is the share of the machine's matmul rate, measured in the same run, that goes into 6 N + 12 layers x width x context
operations a token (Chowdhery et al. 2022, appendix B), N all parameters that are multiplied.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.peers import gpt2, llama
from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM
from training.cli import Parser, one_line_errors, positive, refused
from training.train import choose_precision  # its import also registers causal_blocks

ROOT = Path(__file__).resolve().parent.parent
RECIPE = yaml.safe_load((ROOT / "training/configs/modern.yaml").read_text())
VOCABULARY = 5000


def models(attention: str) -> dict[str, Any]:
    """The flagship and its peers, of one width and depth, by name."""
    shape = RECIPE["model"]
    modern = TinyStoryForCausalLM(TinyStoryConfig(vocab_size=VOCABULARY, dropout=RECIPE["dropout"], **shape))
    with refused(f"attention {attention}"):
        modern.set_attn_implementation(attention)
    contestants: dict[str, Any] = {"modern": modern}
    for name, peer in (("GPT-2", gpt2), ("Llama", llama)):
        for implementation in ("sdpa", "eager"):
            model = peer(shape, VOCABULARY)
            model.set_attn_implementation(implementation)
            contestants[f"{name}, {implementation}"] = model
    return contestants


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in one large product, best of 10."""
    rows, inner, outer = 4096, 1024, 1024
    a, b = (torch.randn(size, device=device, dtype=dtype) for size in ((rows, inner), (inner, outer)))
    return 2 * rows * inner * outer / min(seconds(lambda: a @ b, device) for _ in range(10))


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, on an accelerator until it is done."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@one_line_errors
def main() -> None:
    """Measure all in turn and print rates, ratios and MFU."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--rows", type=positive, default=RECIPE["micro_batch_rows"])
    parser.add_argument("--attention", default="sdpa", help="of the modern recipe: as the field of a run")
    parser.add_argument("--compile", action="store_true", help="torch.compile all of them")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if choose_precision("auto") == "bf16" else torch.float32
    length = RECIPE["row_length"]
    ids = torch.randint(VOCABULARY, (arguments.rows, length), device=device)
    halves = torch.arange(length, device=device) % (length // 2)  # two stories a row, kept apart
    runs: dict[str, Callable[[], None]] = {}
    operations = {}
    for name, model in models(arguments.attention).items():
        model.to(device).train()
        multiplied = sum(p.numel() for key, p in model.named_parameters() if p.ndim == 2 and "wpe" not in key)
        shape = RECIPE["model"]
        operations[name] = 6 * multiplied + 12 * shape["num_hidden_layers"] * shape["hidden_size"] * length
        step = torch.compile(model) if arguments.compile else model
        inputs = {"position_ids": halves.expand(arguments.rows, -1)} if name == "modern" else {}

        def run(step: Any = step, model: Any = model, inputs: dict = inputs) -> None:
            with torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
                loss = step(input_ids=ids, labels=ids, use_cache=False, **inputs).loss
            loss.backward()
            model.zero_grad()

        runs[name] = run
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-2, arguments.rounds):  # the first two warm up
        for name, contestant in runs.items():
            spent = seconds(contestant, device)
            if number >= 0:
                times[name].append(spent)
    peak = matmul_rate(device, dtype)
    print(f"{device.type}, {torch.get_num_threads()} threads, {dtype}, matmul {peak / 1e9:,.0f} GFLOP/s")
    print(f"{'':14}{'tokens/s':>10}{'to modern':>12}{'MFU':>8}")
    rates = {name: arguments.rows * length / statistics.median(values) for name, values in times.items()}
    for name, rate in rates.items():
        print(f"{name:14}{rate:10,.0f}{rate / rates['modern']:12.2f}{100 * rate * operations[name] / peak:7.0f} %")


if __name__ == "__main__":
    main()

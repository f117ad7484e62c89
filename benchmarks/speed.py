"""How fast stories come, side by side with a peer on the same machine in the same run: `make bench`.

The peer is transformers' `LlamaForCausalLM.generate`, of the same shape, in fp32, greedy. Rounds are interleaved, so
that whatever else the machine does falls on all alike; the ratios of medians are what counts. With a folder that holds
llama2.c's `run` and `runq` (`make bench LLAMA2C=folder`; `make runomp` there builds them) they write as many tokens,
the same shape with random weights, as often and on as many threads.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Pipeline, pipeline

from benchmarks import llama2c
from benchmarks.peers import llama
from training.cli import Parser, one_line_errors, positive

ROOT = Path(__file__).resolve().parent.parent
STARTS = ("Once upon a time", "The dragon", "One day, Ben", "Lily and her cat")
ENDS = ("happy", "friends", "home", "park")
TOKENS = 150  # the peer writes so many
EACH = 16  # stories a round, one after another: what an ending costs differs from story to story


def contestants(tell: Pipeline) -> dict[str, Callable[[int], int]]:
    """By name, a function from the round's number to the tokens it wrote."""
    peer = llama(tell.model.config.to_dict(), tell.model.config.vocab_size).eval()

    def generate(number: int, rows: int = 1) -> int:
        ids = torch.full((rows, 4), 20 + number)
        settings = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
        return rows * (peer.generate(ids, attention_mask=torch.ones_like(ids), **settings).shape[1] - 4)

    def stories(number: int, **wishes: object) -> int:
        results = tell(STARTS[number % len(STARTS)], max_words=150, seed=number * 100, **wishes)
        return sum(result["num_tokens"] for result in (results if isinstance(results, list) else [results]))

    def one_by_one(number: int, ends: tuple[str | None, ...] = (None,)) -> int:
        return sum(stories(EACH * number + i, end=ends[i // len(STARTS) % len(ends)]) for i in range(EACH))

    return {
        "Llama generate": generate,
        "Llama generate, 16 at once": lambda number: generate(number, 16),
        "story, full precision": lambda number: stories(number, precision="full"),
        "story": one_by_one,
        "story with an ending": lambda number: one_by_one(number, ENDS),
        "16 stories at once": lambda number: stories(number, num_stories=16),
    }


def llama2c_programs(folder: Path, shape: dict, work: Path) -> dict[str, Callable[[], float]]:
    """By name, a function that gives the tokens/s which llama2.c's programs say they reached, loading apart.

    Raises:
        SystemExit: the folder holds no `run` or no `runq`.
    """
    for program in ("run", "runq"):
        if not os.access(folder / program, os.X_OK):
            raise SystemExit(f"--llama2c {folder}: no program {program} in it; build it with `make runomp` there")
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    model = llama(shape, shape["vocab_size"]).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[1] = 0  # `<s>` would stop it
    tokenizer, fp32, int8 = work / "tokenizer.bin", work / "fp32.bin", work / "int8.bin"
    llama2c.write_tokenizer(shape["vocab_size"], tokenizer)
    llama2c.write_model(model, fp32)
    llama2c.write_model(model, int8, int8=True)
    return {
        "llama2.c run, fp32": lambda: llama2c.tokens_per_second(folder / "run", fp32, tokenizer, TOKENS),
        "llama2.c runq, int8": lambda: llama2c.tokens_per_second(folder / "runq", int8, tokenizer, TOKENS),
    }


def first_token_ms(tell: Pipeline, rounds: int) -> float:
    """Median time to the first word after the start, in milliseconds."""
    times = []
    for number in range(rounds):
        began = time.perf_counter()
        pieces = tell.stream(STARTS[number % len(STARTS)], end="happy", seed=number)
        next(pieces)  # the start itself
        next(pieces)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


@one_line_errors
def main() -> None:
    """Measure all in turn and print rates and ratios."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "modeling"), help="folder or Hub name")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--llama2c", type=Path, help="a folder with llama2.c's run and runq")
    arguments = parser.parse_args()
    tell = pipeline("story-generation", model=arguments.model, trust_remote_code=True, device="cpu")
    runs = contestants(tell)
    files = tempfile.TemporaryDirectory()
    shape = tell.model.config.to_dict()
    programs = llama2c_programs(arguments.llama2c.resolve(), shape, Path(files.name)) if arguments.llama2c else {}
    rates: dict[str, list[float]] = {name: [] for name in [*runs, *programs]}
    for number in range(-1, arguments.rounds):  # round -1 warms up
        for name, run in runs.items():
            began = time.perf_counter()
            tokens = run(max(number, 0))
            if number >= 0:
                rates[name].append(tokens / (time.perf_counter() - began))
        for name, rate in programs.items():
            reached = rate()
            if number >= 0:
                rates[name].append(reached)
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}")
    print(f"{'':30}{'tokens/s':>10}{'spread':>16}")
    for name, values in rates.items():
        print(f"{name:30}{median[name]:10.0f}{min(values):9.0f} -{max(values):5.0f}")
    print(f"first word after {first_token_ms(tell, arguments.rounds):.1f} ms")
    for ours, peer in (
        ("story", "Llama generate"), ("16 stories at once", "Llama generate, 16 at once"),
        ("story with an ending", "story"), ("16 stories at once", "story"), *(("story", name) for name in programs),
    ):  # fmt: skip
        print(f"{ours} / {peer}: {median[ours] / median[peer]:.2f}")


if __name__ == "__main__":
    main()

"""Judge a checkpoint.

python -m training.evaluate bits     --model modeling --dataset validation.parquet
python -m training.evaluate endings  --model modeling --dataset validation.parquet
python -m training.evaluate stories  --model modeling
"""

import argparse
import random
import time

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, Pipeline, pipeline

from modeling.request_tiny_story import bare_words, closes_sentence, ends_with
from training.data import load_stories
from training.scoring import score_stories


def bits(model_name: str, dataset: str) -> None:
    """Bits per byte on all stories of a data set."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, trust_remote_code=True, dtype=torch.float32)
    score = score_stories(model, tokenizer, list(load_stories([dataset], "validation")["text"]), progress=True)
    print(
        f"{score.bits_per_byte:.4f} bits per byte, {score.nats_per_token:.4f} nats per token, "
        f"{score.num_stories} stories, {score.num_bytes} bytes, {score.num_tokens} tokens"
    )


def make_pairs(texts: list[str], count: int, seed: int) -> list[tuple[str, str]]:
    """(start, ending) pairs: first three words of one story; for every other pair the last word of another story,
    else any word of more than three letters of another story. Stories without such a word are passed over."""
    rng = random.Random(seed)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        start = " ".join(rng.choice(texts).split()[:3])
        words = [word for word in bare_words(rng.choice(texts)) if len(word) > 3 and word.isalpha()]
        if words:
            pairs.append((start, words[-1] if len(pairs) % 2 else rng.choice(words)))
    return pairs


def endings(tell: Pipeline, pairs: list[tuple[str, str]], max_words: int, seed: int) -> None:
    """How many of the stories end as asked: word, whole sentence, length."""
    exact = whole = within = words = 0
    began = time.perf_counter()
    for index, (start, end) in enumerate(tqdm(pairs, unit=" stories")):
        result = tell(start, end=end, max_words=max_words, seed=seed + index)
        exact += ends_with(result["story"], end)
        whole += closes_sentence(result["story"])
        within += result["num_words"] <= max_words
        words += result["num_words"]
    seconds = time.perf_counter() - began
    print(
        f"{len(pairs)} pairs, max_words {max_words}: exact ending {exact}, whole last sentence {whole}, "
        f"length kept {within}; mean {words / len(pairs):.0f} words, {seconds / len(pairs):.2f} s a story"
    )


def stories(tell: Pipeline, count: int) -> None:
    """One story for each seed from 0, none left out, as Markdown."""
    wishes = [("She", "happy"), ("The dragon", "home"), ("One day", "friends"), ("Once upon a time", None)]
    for seed in range(count):
        start, end = wishes[seed % len(wishes)]
        result = tell(start, end=end, max_words=120, seed=seed)
        asked = f"ends with “{end}”" if end else "ends where the model likes"
        print(f"**Seed {seed}** · starts with “{start}”, {asked} · {result['num_words']} words\n")
        print("\n".join(f"> {line}  " for line in result["story"].split("\n")) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bits", "endings", "stories"))
    parser.add_argument("--model", default="modeling", help="folder or Hub name")
    parser.add_argument("--dataset", help="validation stories: Hub name or .parquet, .jsonl, .txt file")
    parser.add_argument("--count", type=int, help="pairs (100) or stories (10)")
    parser.add_argument("--max_words", type=int, default=120, help="longest length for endings")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs and the stories")
    arguments = parser.parse_args()
    if arguments.what != "stories" and not arguments.dataset:
        parser.error(f"{arguments.what} needs --dataset")
    if arguments.what == "bits":
        bits(arguments.model, arguments.dataset)
        return
    tell = pipeline("story-generation", model=arguments.model, trust_remote_code=True)
    if arguments.what == "stories":
        stories(tell, arguments.count or 10)
    else:
        texts = list(load_stories([arguments.dataset], "validation")["text"])
        pairs = make_pairs(texts, arguments.count or 100, arguments.seed)
        endings(tell, pairs, arguments.max_words, arguments.seed)


if __name__ == "__main__":
    main()

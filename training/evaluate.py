"""Judge a checkpoint.

python -m training.evaluate bits     --model modeling --dataset validation.parquet
python -m training.evaluate endings  --model modeling --judge modeling/classic --dataset validation.parquet \\
                                     --training_dataset train.parquet --output runs/endings
python -m training.evaluate recited  --model modeling --dataset validation.parquet --training_dataset train.parquet
python -m training.evaluate stories  --model modeling
python -m training.evaluate suite    --help     # all figures of any causal LM, to docs/results (training/suite.py)
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import Pipeline

from modeling.pipeline_tiny_story import StoryGenerationPipeline
from training.checkpoint import load_pretrained
from training.data import load_stories, normalise_story
from training.endings import (
    BANDS,
    Judge,
    Pair,
    force,
    kept,
    make_pairs,
    real_stories,
    repeated_four_grams,
    tell_by_rejection,
    tell_pairs,
)
from training.memorisation import WINDOW, recited_share
from training.report import draw_endings
from training.scoring import score_stories

REJECTION_TRIES = 16  # free stories for each pair, at most
REAL_STORIES = 400  # of each band, at most, judged beside ours
REJECTION_PAIRS = 10  # pairs of each band that rejection is tried on


def bits(model_name: str, dataset: str) -> None:
    """Bits per byte on all stories of a data set."""
    score = score_stories(
        *load_pretrained(model_name), list(load_stories([dataset], "validation")["text"]), progress=True
    )
    print(
        f"{score.bits_per_byte:.4f} bits per byte, {score.nats_per_token:.4f} nats per token, "
        f"{score.num_stories} stories, {score.num_bytes} bytes, {score.num_tokens} tokens"
    )


def endings(tell: Pipeline, judge: Judge, validation: list[str], training: list[str], arguments: Any) -> None:
    """Every figure about endings, to `results.json`, `table.md` and `endings.png` in the output folder."""
    pairs = make_pairs(validation, training, arguments.count or 100, arguments.seed)
    bands = [band for band in BANDS if any(pair.band == band for pair in pairs)]
    limit, seed = arguments.max_words, arguments.seed
    results: dict[str, Any] = {"arguments": vars(arguments), "pairs": len(pairs)}
    stories = {}
    for name, wishes in (("sampled", {}), ("greedy", {"temperature": 0.0}), ("stop at first", {"stop_at_first": True})):
        told = tell_pairs(tell, pairs, limit, seed, batch=16, **wishes)
        stories[name] = [story.text for story in told]
        results[name] = kept(told, limit)
    alone = {i: tell_pairs(tell, [pairs[i]], limit, seed + i, batch=1)[0].text for i in range(0, len(pairs), 20)}
    results["same alone"] = sum(text == stories["sampled"][i] for i, text in alone.items()) / len(alone)

    free = [
        story["story"]
        for at in range(0, len(pairs), 16)
        for story in tell([pair.start for pair in pairs[at : at + 16]], max_words=limit - 10, seed=seed + at)
    ]
    stories["forced"] = [force(story, pair.end) for story, pair in zip(free, pairs, strict=True)]
    results["repeated four-grams"] = {
        "with ending": sum(map(repeated_four_grams, stories["sampled"])) / len(pairs),
        "free": sum(map(repeated_four_grams, free)) / len(pairs),
        "real": sum(map(repeated_four_grams, validation)) / len(validation),
    }
    real = real_stories(validation, training)
    results["bits per byte"] = {
        name: {
            band: judge.bits([text for text, pair in zip(texts, pairs, strict=True) if pair.band == band])
            for band in bands
        }
        for name, texts in stories.items()
    }
    results["bits per byte"]["real"] = {band: judge.bits(real[band][:REAL_STORIES]) for band in BANDS if real[band]}

    tries: dict[str, Any] = {}
    for band in bands:
        some = [pair for pair in pairs if pair.band == band][:REJECTION_PAIRS]
        numbers = [tell_by_rejection(tell, pair, limit, seed + i, REJECTION_TRIES) for i, pair in enumerate(some)]
        found = [number for number in numbers if number]
        tries[band] = {"found": len(found) / len(some), "tries": sum(number or REJECTION_TRIES for number in numbers)}
        tries[band]["tries"] /= len(some)
    results[f"rejection, {REJECTION_TRIES} tries"] = tries

    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2, default=str))
    (folder / "table.md").write_text(endings_table(results))
    draw_endings(results, folder / "endings.png")
    (folder / "stories.md").write_text(unpicked(pairs, stories["sampled"]))
    print(endings_table(results))


def endings_table(results: dict[str, Any]) -> str:
    """The figures by band, as a Markdown table; ± is one standard error."""
    rejection = next(value for name, value in results.items() if name.startswith("rejection"))
    scores = results["bits per byte"]
    rows: list[tuple[str, dict[str, str]]] = []
    for name in ("sampled", "greedy", "stop at first"):
        for what, values in results[name].items():
            rows.append((f"{name}: {what}", {band: f"{100 * value:.0f} %" for band, value in values.items()}))
    for name, values in scores.items():
        costs = {band: f"{last:.3f} ± {error:.3f}" for band, (_, last, error) in values.items()}
        rows.append((f"last sentence, bits per byte: {name}", costs))
    for name, values in scores.items():
        rows.append((f"whole story, bits per byte: {name}", {b: f"{v[0]:.3f}" for b, v in values.items()}))
    rows.append(("rejection: found", {band: f"{100 * value['found']:.0f} %" for band, value in rejection.items()}))
    rows.append(("rejection: mean tries", {band: f"{value['tries']:.1f}" for band, value in rejection.items()}))
    lines = [f"| | {' | '.join(BANDS)} |", "|---" * (len(BANDS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(values.get(band, '-') for band in BANDS)} |" for name, values in rows]
    repeats = ", ".join(f"{name} {100 * value:.1f} %" for name, value in results["repeated four-grams"].items())
    return "\n".join(lines) + f"\n\nRepeated four-grams: {repeats}.\n"


def unpicked(pairs: list[Pair], texts: list[str], count: int = 30) -> str:
    """Stories at even distances, as a Markdown page."""
    told = list(zip(pairs, texts, strict=True))[:: max(1, len(pairs) // count)][:count]
    return "\n\n".join(f"**{p.start} … {p.end}** ({p.band})\n\n{quote(text)}" for p, text in told) + "\n"


def quote(text: str) -> str:
    """A story as a Markdown quotation, its paragraphs kept apart."""
    return "\n".join(f"> {line}  " for line in text.split("\n"))


def recited(tell: Pipeline, validation: list[str], training: list[str], count: int, seed: int) -> None:
    """How much of free stories stands word for word in the training stories, next to stories not trained on."""
    starts = [
        "Once upon a time" if n % 2 else " ".join(validation[n % len(validation)].split()[:3]) for n in range(count)
    ]
    told = []
    for at in tqdm(range(0, count, 16), desc="Telling", unit=" batches"):
        told += [normalise_story(story["story"]) for story in tell(starts[at : at + 16], seed=seed + at)]
    for name, texts in (("free stories", told), ("validation stories", validation[:count])):
        share = recited_share(texts, training, tell.tokenizer)
        print(
            f"{100 * share:.2f} % of the windows of {WINDOW} tokens in {len(texts)} {name} stand in the training data"
        )


def stories(tell: Pipeline, count: int) -> None:
    """One story for each seed from 0, none left out, as Markdown."""
    wishes = [("She", "happy"), ("The dragon", "home"), ("One day", "friends"), ("Once upon a time", None)]
    for seed in range(count):
        start, end = wishes[seed % len(wishes)]
        result = tell(start, end=end, max_words=120, seed=seed)
        asked = f"ends with “{end}”" if end else "ends where the model likes"
        print(f"**Seed {seed}** · starts with “{start}”, {asked} · {result['num_words']} words\n")
        print(quote(result["story"]) + "\n")


def main() -> None:
    """Judge a checkpoint by command."""
    if sys.argv[1:2] == ["suite"]:
        from training import suite  # which needs the extra `evaluate`

        suite.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bits", "endings", "recited", "stories"))
    parser.add_argument("--model", default="modeling", help="folder or Hub name")
    parser.add_argument("--judge", default="modeling/classic", help="another model, that endings are judged by")
    parser.add_argument("--dataset", help="validation stories: Hub name or .parquet, .jsonl, .txt file")
    parser.add_argument("--training_dataset", nargs="+", help="what endings are counted in, and recitals found in")
    parser.add_argument("--count", type=int, help="pairs of each band (100), or stories (10; recited: 200)")
    parser.add_argument("--max_words", type=int, default=150, help="longest length for endings")
    parser.add_argument("--output", default="runs/endings", help="folder for the figures about endings")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs and the stories")
    arguments = parser.parse_args()
    if arguments.what != "stories" and not arguments.dataset:
        parser.error(f"{arguments.what} needs --dataset")
    if arguments.what in ("endings", "recited") and not arguments.training_dataset:
        parser.error(f"{arguments.what} needs --training_dataset")
    if arguments.what == "bits":
        bits(arguments.model, arguments.dataset)
        return
    model, tokenizer = load_pretrained(arguments.model)
    tell = StoryGenerationPipeline(model=model, tokenizer=tokenizer)
    if arguments.what == "stories":
        stories(tell, arguments.count or 10)
    else:
        validation = list(load_stories([arguments.dataset], "validation")["text"])
        training = list(load_stories(arguments.training_dataset, "train")["text"])
        if arguments.what == "recited":
            recited(tell, validation, training, arguments.count or 200, arguments.seed)
            return
        endings(tell, Judge(*load_pretrained(arguments.judge)), validation, training, arguments)


if __name__ == "__main__":
    main()

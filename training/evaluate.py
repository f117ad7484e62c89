"""Judge a checkpoint.

python -m training.evaluate bits     --model modeling --dataset validation.parquet
python -m training.evaluate endings  --model modeling --judge modeling/classic --dataset validation.parquet \\
                                     --training_dataset train.parquet --output runs/endings
python -m training.evaluate recited  --model modeling --dataset validation.parquet --training_dataset train.parquet
python -m training.evaluate stories  --model modeling
python -m training.evaluate read make  --dataset validation.parquet --training_dataset train.parquet
python -m training.evaluate read tally --grades runs/reading/grades-1.jsonl runs/reading/grades-2.jsonl
python -m training.evaluate surprise --dataset validation.parquet --training_dataset train.parquet
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
from training.checkpoint import load_pretrained, load_storyteller
from training.cli import Parser, add_reading, one_line_errors, positive, reading_options
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
from training.reading import (
    agreement,
    counts,
    load_grades,
    load_key,
    refuse_used,
    tally,
    write_pair_sheets,
    write_sheets,
)
from training.report import draw_endings
from training.scoring import fitting_stories, score_stories
from training.sources import hold_out, load_stories, normalise_story, without_stories
from training.surprise import Judges, Real, reader_separation, separation, spoil, surprise_table
from training.writers import REAL, WrittenStory, draw_real, load_writers, make_wishes, write

REJECTION_TRIES = 16  # free stories for each pair, at most
REAL_STORIES = 400  # of each band, at most, judged beside ours
REJECTION_PAIRS = 10  # pairs of each band that rejection is tried on
SPOILT_STORIES = 200  # real stories whose last sentence is made nonsense of, at most


def load_texts(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The validation stories and those that were trained on (none if they are not asked for)."""
    if arguments.validation_share is not None:
        stories = load_stories([arguments.dataset], "train", **reading_options(arguments))
        validation = hold_out(stories, arguments.validation_share)
        return list(validation["text"]), list(without_stories(stories, validation)["text"])
    texts = list(load_stories([arguments.dataset], "validation", **reading_options(arguments))["text"])
    if not getattr(arguments, "training_dataset", None):
        return texts, []
    return texts, list(load_stories(arguments.training_dataset, "train", **reading_options(arguments))["text"])


def bits(model_name: str, texts: list[str]) -> None:
    """Bits per byte on some stories, without those that are longer than the model's context."""
    model, tokenizer = load_pretrained(model_name)
    texts = fitting_stories(texts, tokenizer, model.config.max_position_embeddings)
    score = score_stories(model, tokenizer, texts, progress=True)
    print(
        f"{score.bits_per_byte:.4f} bits per byte, {score.nats_per_token:.4f} nats per token, "
        f"{score.num_stories} stories, {score.num_bytes} bytes, {score.num_tokens} tokens"
    )


def endings(tell: Pipeline, judge: Judge, validation: list[str], training: list[str], arguments: Any) -> None:
    """Every figure about endings, to `results.json`, `table.md` and `endings.png` in the output folder."""
    validation = fitting_stories(validation, judge.tokenizer, judge.model.config.max_position_embeddings)
    pairs = make_pairs(validation, training, arguments.count, arguments.seed)
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

    free = [story["story"] for story in tell([pair.start for pair in pairs], max_words=limit - 10, seed=seed)]
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
    results = tqdm(tell(iter(starts), batch_size=16, seed=seed), total=count, desc="Telling", unit=" stories")
    told = [normalise_story(result["story"]) for result in results]
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


def read_make(arguments: argparse.Namespace) -> None:
    """Stories of every writer and real ones, onto sheets for blind readers."""
    refuse_used(Path(arguments.output))  # before hours of writing
    writers = load_writers(Path(arguments.writers))
    if arguments.pairs and len(writers) != 2:
        raise ValueError(f"a sheet of pairs needs two writers, {arguments.writers} has {len(writers)}")
    validation, training = load_texts(arguments)
    folder, seed, written = Path(arguments.output), arguments.seed, []
    real = [] if arguments.pairs else draw_real(validation, arguments.real, arguments.max_words, seed)
    for writer in writers:
        wishes = make_wishes(writer, validation, training, seed)
        written.append(write(writer, wishes, arguments.max_words))
    if arguments.pairs:
        count = write_pair_sheets(written[0], written[1], folder, seed=seed)
    else:
        count = write_sheets([story for some in (*written, real) for story in some], folder, seed=seed)
    print(f"{count} sheets in {folder}, one for each reader; what to tally their grades by is in {folder / 'key'}")


def read_tally(arguments: argparse.Namespace) -> None:
    """The grades of one or more readings, by writer and band, and how far the first two agree."""
    key = load_key(Path(arguments.key))
    for path in [arguments.key, *(path for paths in arguments.grades for path in paths)]:
        if arguments.output and Path(arguments.output).resolve() == Path(path).resolve():
            raise ValueError(f"--output {arguments.output} is read here, and would be lost; name another file")
    readings = [load_grades([Path(path) for path in paths], key) for paths in arguments.grades]
    for number, grades in enumerate(readings, start=1):
        print(f"Reading {number}\n\n{tally(key, grades)}")
    if len(readings) > 1:
        print(agreement(*readings[:2]))
    if arguments.output:
        told = {"kind": key["kind"], "seed": arguments.seed, "readings": [counts(key, grades) for grades in readings]}
        Path(arguments.output).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def surprise(arguments: argparse.Namespace) -> None:
    """What the judges see of nonsense made on purpose, what they say of each writer's stories, and, where grades are
    given, whether readers say so too."""
    key = load_key(Path(arguments.key), kind="stories") if arguments.key else {}
    judges = Judges.load(arguments.judges)
    validation, training = load_texts(arguments)
    texts = [story.text for story in draw_real(validation, arguments.count, 200, arguments.seed)]
    if key:
        fields = ("writer", "band", "text")
        stories = [WrittenStory(*(entry[name] for name in fields)) for entry in key["entries"]]
    else:
        stories = []
        for writer in load_writers(Path(arguments.writers)):
            stories += write(writer, make_wishes(writer, validation, training, arguments.seed), arguments.max_words)
    bands = make_pairs(validation, training, 100, arguments.seed)
    endings_of = {band: [pair.end for pair in bands if pair.band == band] for band in BANDS}
    real = judges.sentences(texts, progress=True)
    spoilt = {
        kind: judges.sentences(spoilt_texts, progress=True)
        for kind, spoilt_texts in spoil(
            texts[:SPOILT_STORIES], {band: ends for band, ends in endings_of.items() if ends}, arguments.seed
        ).items()
    }
    told = judges.sentences([story.text for story in stories], progress=True)
    lines = [f"Judges: {', '.join(arguments.judges)}; {len(real)} real stories.", "", separation(real, spoilt)]
    for paths in arguments.grades or []:
        grades = load_grades([Path(path) for path in paths], key)
        graded = [
            (found, grades[entry["number"]]["last_sentence_sensible"])
            for found, entry in zip(told, key["entries"], strict=True)
            if entry["number"] in grades and entry["writer"] != REAL
        ]
        lines.append(reader_separation(*map(list, zip(*graded, strict=True))))
    lines += ["", surprise_table(stories, told, Real(real))]
    print("\n".join(lines))


def parse_arguments() -> argparse.Namespace:
    """The command line, with what only it can know checked."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)

    def command(name: str, about: str, *, model: bool = False, texts: int = 0, parent: Any = commands) -> Any:
        """`texts`: 0 without stories, 1 with validation stories, 2 with training stories too."""
        one = parent.add_parser(name, help=about, description=about)
        one.add_argument("--seed", type=int, default=0, help="of the wishes and the stories")
        if model:
            one.add_argument("--model", default="modeling", help="folder or Hub name")
        if texts:
            one.add_argument("--dataset", required=True, help="validation stories: Hub name, file, folder")
            add_reading(one)
            trained = one.add_mutually_exclusive_group(required=texts > 1)
            if texts > 1:
                trained.add_argument("--training_dataset", nargs="+", help="what words are counted in")
            trained.add_argument(
                "--validation_share", type=float, help="take the share of --dataset that a run on it held out"
            )
        return one

    command("bits", "bits per byte of a data set's stories", model=True, texts=1)
    one = command("endings", "whether stories end as asked, and at what price", model=True, texts=2)
    one.add_argument("--judge", default="modeling/classic", help="another model, that endings are judged by")
    one.add_argument("--count", type=positive, default=100, help="pairs of each band")
    one.add_argument("--max_words", type=positive, default=150, help="longest length")
    one.add_argument("--output", default="runs/endings", help="folder for the figures")
    one = command("recited", "how much of free stories stands in the training stories", model=True, texts=2)
    one.add_argument("--count", type=positive, default=200, help="stories")
    one = command("stories", "one story for each seed", model=True)
    one.add_argument("--count", type=positive, default=10, help="stories")
    one = command("surprise", "how surprising last sentences are to a judge that is not the writer", texts=2)
    one.add_argument("--judges", nargs="+", default=["modeling/classic"], help="checkpoints, averaged in probability")
    one.add_argument("--writers", default="training/configs/reading.yaml", help="who tells the stories")
    one.add_argument("--key", help="instead of writers: the key of a reading, whose stories are measured")
    one.add_argument("--grades", nargs="+", action="append", help="with a key: one reading's grades; may be repeated")
    one.add_argument("--count", type=positive, default=400, help="real stories that say what is surprising")
    one.add_argument("--max_words", type=positive, default=150, help="longest length")
    reading = commands.add_parser("read", help="sheets for blind readers, and the tally of their grades")
    parts = reading.add_subparsers(dest="part", required=True)
    one = command("make", "write the sheets", texts=2, parent=parts)
    one.add_argument("--writers", default="training/configs/reading.yaml", help="who tells the stories")
    one.add_argument("--pairs", action="store_true", help="two writers side by side: which story is preferred?")
    one.add_argument("--real", type=int, default=30, help="real stories among them")
    one.add_argument("--max_words", type=positive, default=150, help="longest length, of real stories too")
    one.add_argument("--output", default="runs/reading", help="folder for the sheets")
    one = command("tally", "what the readers' grades say of each writer", parent=parts)
    one.add_argument("--key", default="runs/reading/key/key.json", help="who wrote what")
    one.add_argument("--grades", nargs="+", action="append", required=True, help="one reading's; may be repeated")
    one.add_argument("--output", help="also a JSON file, such as docs/results/reading-*.json, which the card takes up")
    arguments = parser.parse_args()
    if getattr(arguments, "real", 0) < 0:
        parser.error(f"--real must be at least 0, got {arguments.real}")
    if arguments.what == "surprise" and arguments.grades and not arguments.key:
        parser.error("--grades needs the --key of the sheet they were given to")
    if getattr(arguments, "validation_share", None) is not None and not 0 < arguments.validation_share < 1:
        parser.error(f"--validation_share must be above 0 and below 1, got {arguments.validation_share}")
    return arguments


@one_line_errors
def main() -> None:
    """Judge a checkpoint by command."""
    if sys.argv[1:2] == ["suite"]:
        from training import suite  # which needs the extra `evaluate`

        suite.main(sys.argv[2:])
        return
    arguments = parse_arguments()
    if arguments.what == "bits":
        bits(arguments.model, load_texts(arguments)[0])
    elif arguments.what == "read":
        read_make(arguments) if arguments.part == "make" else read_tally(arguments)
    elif arguments.what == "surprise":
        surprise(arguments)
    else:
        model, tokenizer = load_storyteller(arguments.model)
        tell = StoryGenerationPipeline(model=model, tokenizer=tokenizer)
        if arguments.what == "stories":
            stories(tell, arguments.count)
        elif arguments.what == "recited":
            recited(tell, *load_texts(arguments), arguments.count, arguments.seed)
        else:
            endings(tell, Judge(*load_pretrained(arguments.judge)), *load_texts(arguments), arguments)


if __name__ == "__main__":
    main()

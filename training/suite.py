"""Everything that is measured about a checkpoint, ours or any other causal LM that transformers loads.

    python -m training.evaluate suite --model modeling --name modern --dataset validation.parquet \\
        --training_dataset train.parquet fragments.parquet

writes docs/results/modern.json and its table modern.md. Bits per byte are of each story read by itself, from its start
token to its end, over the bytes of the normalised story, so that no model gains by its tokenizer or by its way of
parting paragraphs. A story longer than a model's context is read in windows that overlap by half.
"""

import argparse
import json
import math
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

from modeling.pipeline_tiny_story import StoryGenerationPipeline
from modeling.request_tiny_story import closes_sentence
from training.biases import portrait
from training.checkpoint import load_pretrained
from training.cli import Parser, add_reading, positive, reading_options
from training.coherence import end_bits, quality
from training.endings import BANDS, Judge, kept, make_pairs, real_stories, repeated_four_grams, tell_pairs
from training.memorisation import WINDOW, share_among, training_windows
from training.metrics import (
    StoryScore,
    bits_by_length,
    bits_by_position,
    bits_per_byte,
    bootstrap_ratio,
    distinct_n,
    first_words,
    self_bleu,
)
from training.scoring import row_nats
from training.sources import load_stories, normalise_story
from training.surprise import Judges, Real

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results"
TAKEN = ("README", "biases", "measures")  # other pages there
NATS_TO_BITS = 1.4426950408889634
NEWLINES = {"one": "\n", "two": "\n\n"}  # what parts the paragraphs of the stories that a model learnt from
BLANK = "▁"  # a tokenizer's blank, which some put before every text
TRIED_ON = 100  # stories that the newline is chosen by
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 50}
LONGEST_BYTES = 1600  # of a free story; 96 % of the real ones are shorter
REAL_STORIES = 400  # by which a sentence is called odd
VARIETY_WORDS, VARIETY_STORIES = 80, 64  # variety is compared on so many first words of as many stories
DIGITS = 5  # of a float in the results


@dataclass(frozen=True)
class Convention:
    """How the stories looked that a model learnt from, as far as it can be told from what costs it least.

    Args:
        newline: its name in NEWLINES. spelled: the end token was text, in several tokens, whose bits together are the
            end's. bare: no blank stands before a story, though the tokenizer puts one.
    """

    newline: str = "one"
    spelled: bool = False
    bare: bool = False


OURS = Convention()


def story_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    convention: Convention = OURS,
    progress: bool = False,
) -> list[StoryScore]:
    """Bits of every token of each normalised story and of its end, as the model's convention has them.

    Raises:
        ValueError: the tokenizer has neither a start nor an end token, by which a story could begin and end.
    """
    bos, eos = _ends(tokenizer)
    newline, spelled = NEWLINES[convention.newline], convention.spelled
    told = [text.replace("\n", newline) for text in texts]
    if spelled:
        end = tokenizer.eos_token
        options = {"split_special_tokens": True, "add_special_tokens": False, "return_offsets_mapping": True}
        encoded = tokenizer([text + end for text in told], **options)
        rows = [[bos, *ids] for ids in encoded["input_ids"]]
        encoded["offset_mapping"] = [
            [span for span in offsets if span[0] < len(text)]
            for offsets, text in zip(encoded["offset_mapping"], told, strict=True)
        ]
    else:
        encoded = tokenizer(told, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
        rows = [[bos, *ids, eos] for ids in encoded["input_ids"]]
    if convention.bare:
        for row, offsets in zip(rows, encoded["offset_mapping"], strict=True):
            if tokenizer.convert_ids_to_tokens(row[1]) == BLANK:
                del row[1], offsets[0]
    pieces = [_windows(row, context_of(model)) for row in rows]
    nats = iter(row_nats(model, [ids for windows in pieces for ids, _ in windows], progress=progress))
    scores = []
    for index, windows in enumerate(pieces):
        bits = [NATS_TO_BITS * value for _, first in windows for value in next(nats)[first:]]
        stops = _stops(told[index], encoded["offset_mapping"][index], newline) if tokenizer.is_fast else None
        if spelled:
            last = len(encoded["offset_mapping"][index])
            bits = [*bits[:last], math.fsum(bits[last:])]
        scores.append(StoryScore(bits, stops, len(texts[index].encode())))
    return scores


def context_of(model: PreTrainedModel) -> int | None:
    """Tokens a model can read, or None where its configuration names no limit."""
    return getattr(model.config, "max_position_embeddings", None)


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Start and end token; a tokenizer with one of them (GPT-2's) uses it for both."""
    found = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
    if not found:
        raise ValueError(f"{tokenizer.name_or_path}: a story needs a start or an end token, and there is neither")
    return found[0], found[-1]


def _windows(row: list[int], context: int | None) -> list[tuple[list[int], int]]:
    """A row in pieces of at most `context` + 1 ids, and from which of a piece's scores on they are new."""
    if context is None or len(row) <= context + 1:
        return [(row, 0)]
    windows, scored = [(row[: context + 1], 0)], context
    while scored < len(row) - 1:
        stop = min(len(row), scored + 1 + context // 2)
        begin = stop - context - 1
        windows.append((row[begin:stop], scored - begin))
        scored = stop - 1
    return windows


def _stops(text: str, offsets: list[tuple[int, int]], newline: str) -> list[int]:
    """Bytes of the story up to each token's end; a newline counts as one byte, however the model is shown it."""
    reached = [0]
    for at, character in enumerate(text):
        inner = newline == "\n\n" and character == "\n" and text[at - 1] == "\n"
        reached.append(reached[-1] + (0 if inner else len(character.encode())))
    stops, last = [], 0
    for _, stop in offsets:
        last = max(last, reached[min(stop, len(text))])
        stops.append(last)
    return [*stops, reached[-1]]


def choose_convention(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], newlines: Sequence[str]
) -> Convention:
    """The convention, with one of some newlines, by which some stories cost the model least: the one it learnt."""
    some = list(texts[:TRIED_ON])
    first = tokenizer(some[0], add_special_tokens=False)["input_ids"][0]
    blank = tokenizer.is_fast and tokenizer.convert_ids_to_tokens(first) == BLANK
    spellable = tokenizer.is_fast and tokenizer.eos_token is not None
    costs = {
        way: bits_per_byte(story_scores(model, tokenizer, some, way)).value
        for name in newlines
        for spelled in (False, True)[: 1 + spellable]
        for bare in (False, True)[: 1 + blank]
        for way in [Convention(name, spelled, bare)]
    }
    return min(costs, key=lambda way: costs[way])


def unread_share(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float | None:
    """Share of the characters that no token stands for: a model that drops them does not pay for them."""
    if not tokenizer.is_fast:
        return None
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    unread = 0
    for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        read = bytearray(len(text))
        for token, (begin, stop) in zip(ids, offsets, strict=True):
            if token != tokenizer.unk_token_id:
                read[begin:stop] = b"\1" * (stop - begin)
        unread += sum(not seen and not character.isspace() for seen, character in zip(read, text, strict=True))
    return unread / sum(map(len, texts))


@torch.no_grad()
def free_stories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    starts: Sequence[str],
    convention: Convention,
    bytes_a_token: float,
    seed: int,
) -> tuple[list[str], list[bool]]:
    """A story for each start by `generate`, as SAMPLING says, and whether the model gave its end itself."""
    stop = {"stop_strings": tokenizer.eos_token, "tokenizer": tokenizer} if convention.spelled else {}
    options = SAMPLING | stop
    bos, eos = _ends(tokenizer)
    context = context_of(model) or 1024
    texts, ended = [], []
    for at in tqdm(range(0, len(starts), 16), desc="Telling", unit=" batches"):
        rows = [[bos, *ids] for ids in tokenizer(list(starts[at : at + 16]), add_special_tokens=False)["input_ids"]]
        if convention.bare:
            rows = [[bos, *row[1 + (tokenizer.convert_ids_to_tokens(row[1]) == BLANK) :]] for row in rows]
        width = max(map(len, rows))
        ids = torch.tensor([[eos] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        torch.manual_seed(seed + at)
        room = min(context - width, round(LONGEST_BYTES / bytes_a_token))
        written = model.generate(
            ids, attention_mask=mask, max_new_tokens=room, eos_token_id=eos, pad_token_id=eos, **options
        )
        for row, full in zip(rows, written.tolist(), strict=True):
            new = full[width:]
            at_end = new.index(eos) if eos in new else None
            text = tokenizer.decode(row[1:] + new[:at_end], skip_special_tokens=True)
            spelled = ""
            if convention.spelled:
                text, spelled, _ = text.partition(tokenizer.eos_token)
            texts.append(normalise_story(text.replace(NEWLINES[convention.newline], "\n")))
            ended.append(at_end is not None or bool(spelled))
    return texts, ended


def about_texts(texts: Sequence[str], ended: Sequence[bool], judge: Judge, real: Real) -> dict[str, Any]:
    """What can be counted in stories: length, repetition, variety, proper ends, coherence, odd sentences (`real` says
    which the judge finds odd), who they are about."""
    few = first_words(texts, VARIETY_WORDS)[:VARIETY_STORIES]
    proper = [float(end and closes_sentence(text)) for text, end in zip(texts, ended, strict=True)]
    repeated = [repeated_four_grams(text) for text in texts]
    ones = [1] * len(texts)
    odd = [real.odd(story) for story in Judges([judge.model], [judge.tokenizer]).sentences(texts)]
    return {
        "stories": len(texts),
        "mean words": sum(len(text.split()) for text in texts) / len(texts),
        "repeated four-grams": asdict(bootstrap_ratio(repeated, ones)),
        "ends properly": asdict(bootstrap_ratio(proper, ones)),
        "variety": {
            "stories": len(few),
            "distinct-2": distinct_n(few, 2) if few else None,
            "distinct-3": distinct_n(few, 3) if few else None,
            "self-BLEU": self_bleu(few) if len(few) > 1 else None,
        },
        "quality": quality(texts)
        | {
            "bits of the end under the judge": asdict(
                bootstrap_ratio(end_bits(judge.model, judge.tokenizer, texts), ones)
            )
        },
        "odd sentences": asdict(bootstrap_ratio([float(sum(story)) for story in odd], [len(story) for story in odd])),
        "odd last sentences": asdict(bootstrap_ratio([float(story[-1]) for story in odd], ones)),
        "portrait": portrait(texts),
    }


def about_endings(
    tell: Pipeline, judge: Judge, validation: Sequence[str], training: Sequence[str], per_band: int, seed: int
) -> dict[str, Any]:
    """Sampled stories with endings of each band: kept, planned, and what the last sentence costs the judge."""
    pairs = make_pairs(validation, training, per_band, seed)
    told = tell_pairs(tell, pairs, max_words=150, seed=seed, batch=16)
    real = real_stories(validation, training)
    costs: dict[str, Any] = {}
    for band in BANDS:
        ours = [story.text for story in told if story.pair.band == band]
        if ours:
            costs[band] = {
                name: dict(zip(("last sentence", "standard error"), judge.bits(texts)[1:], strict=True))
                for name, texts in (("ours", ours), ("real", real[band][:400]))
                if texts
            }
    return {"pairs": len(pairs), **kept(told, 150), "bits per byte": costs}


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of a checkpoint; `main` says what the arguments are."""
    model, tokenizer = load_pretrained(arguments.model)
    how = reading_options(arguments)
    validation = list(load_stories([arguments.dataset], "validation", **how)["text"])[: arguments.stories]
    training = list(load_stories(arguments.training_dataset, "train", **how)["text"])
    newlines = list(NEWLINES) if arguments.newline == "auto" else [arguments.newline]
    convention = choose_convention(model, tokenizer, validation, newlines)
    scores = story_scores(model, tokenizer, validation, convention, progress=True)
    tokens = sum(len(score.bits) for score in scores)
    size = sum(score.num_bytes for score in scores)
    unread = unread_share(tokenizer, validation)
    shown = Path(arguments.model).name if Path(arguments.model).is_absolute() else arguments.model
    results: dict[str, Any] = {
        "checkpoint": arguments.name,
        "command": f"python -m training.evaluate suite --model {shown} --name {arguments.name}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "architecture": type(model).__name__,
        "vocabulary": len(tokenizer),
        "context": context_of(model),
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
        },
        "split": {"stories": len(validation), "bytes": size, "tokens": tokens, "unread": unread},
        "convention": asdict(convention),
        "judge": arguments.judge,
        "bits per byte": asdict(bits_per_byte(scores)),
        "by length": bits_by_length(scores),
        "by position": bits_by_position(scores),
    }  # fmt: skip
    starts = [" ".join(text.split()[:3]) for text in validation[: arguments.count]]
    plain, ended = free_stories(model, tokenizer, starts, convention, size / tokens, arguments.seed)
    real = validation[: arguments.count]
    judge = Judge(*load_pretrained(arguments.judge))
    others = validation[arguments.count :][:REAL_STORIES] or validation
    usual = Real(Judges([judge.model], [judge.tokenizer]).sentences(others, progress=True))
    texts = {
        "generate": about_texts(plain, ended, judge, usual),
        "real": about_texts(real, [True] * len(real), judge, usual),
    }
    known = training_windows(training, tokenizer)
    texts["generate"]["recited"] = _recited(plain, known, tokenizer)
    texts["real"]["recited"] = _recited(real, known, tokenizer)
    if model.config.model_type == "tiny_story":
        tell = StoryGenerationPipeline(model=model, tokenizer=tokenizer)
        told = [
            story
            for at in tqdm(range(0, len(starts), 16), desc="Telling", unit=" batches")
            for story in tell(starts[at : at + 16], max_words=300, seed=arguments.seed + at)
        ]
        stories = [normalise_story(story["story"]) for story in told]
        texts["pipeline"] = about_texts(stories, [story["finish_reason"] == "eos" for story in told], judge, usual)
        texts["pipeline"]["recited"] = _recited(stories, known, tokenizer)
        if arguments.pairs:
            results["endings"] = about_endings(tell, judge, validation, training, arguments.pairs, arguments.seed)
    results["stories"] = texts
    return _rounded(results)


def _recited(texts: Sequence[str], known: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> float | None:
    """Share of the texts' windows of WINDOW tokens that are known; None if all texts are shorter."""
    try:
        return share_among(texts, known, tokenizer)
    except ValueError:
        return None


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def write(results: dict[str, Any], folder: Path) -> None:
    """The JSON and the table of a checkpoint, under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{results['checkpoint']}.json"
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(results), encoding="utf-8")


def read(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """All results in a folder, by checkpoint, the fewest bits per byte first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    found = [results for results in found if "checkpoint" in results]  # not the counts of who stories are about
    return {results["checkpoint"]: results for results in sorted(found, key=lambda one: one["bits per byte"]["value"])}


def interval(figure: dict[str, float], digits: int = 4, scale: float = 1.0) -> str:
    """A figure and its 95 % interval as a table shows them.

    >>> interval({"value": 0.52164, "low": 0.518, "high": 0.525})
    '0.5216 [0.5180–0.5250]'
    """
    value, low, high = (f"{scale * figure[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}–{high}]"


def table(results: dict[str, Any]) -> str:
    """A checkpoint's figures as a Markdown page."""
    split, texts = results["split"], results["stories"]
    way = ", ".join(f"{name} {value}" for name, value in results["convention"].items())
    lines = [
        f"# {results['checkpoint']}",
        "",
        f"Written by `{results['command']} ...` (training/suite.py); brackets: 95 % bootstrap intervals over stories.",
        "",
        f"{results['architecture']}, {results['parameters']:,} parameters, vocabulary {results['vocabulary']:,}, "
        f"context {results['context']:,}. {split['stories']:,} stories, {split['bytes']:,} bytes, "
        f"{split['tokens']:,} tokens; convention: {way}; "
        f"characters it cannot read: {100 * (split['unread'] or 0):.2f} %.",
        "",
        f"**{interval(results['bits per byte'])} bits per byte**",
        "",
        "| bytes of the story | stories | bits per byte |",
        "|---|---|---|",
        *(f"| {row['bytes']} | {row['stories']:,} | {interval(row)} |" for row in results["by length"]),
        "",
        "| place in the story, bytes | stories | bits per byte |",
        "|---|---|---|",
        *(f"| {row['bytes']} | {row['stories']:,} | {interval(row)} |" for row in results["by position"]),
        "",
        f"| stories | {' | '.join(texts)} |",
        "|---" * (len(texts) + 1) + "|",
    ]
    figures: dict[str, list[str]] = {}
    for about in texts.values():
        variety = about["variety"]
        row = {
            "number": f"{about['stories']}",
            "mean words": f"{about['mean words']:.0f}",
            "end properly, %": interval(about["ends properly"], 1, 100),
            "repeated four-grams, %": interval(about["repeated four-grams"], 2, 100),
            **{name: "-" if variety[name] is None else f"{variety[name]:.3f}" for name in list(variety)[1:]},
            f"windows of {WINDOW} tokens recited, %": _percent(about["recited"]),
            **{name: interval(figure, 3) for name, figure in about["quality"].items()},
            **{f"{name}, %": interval(about[name], 1, 100) for name in ("odd sentences", "odd last sentences")},
            **{name: _percent(value) for name, value in about["portrait"]["shares"].items()},
        }
        for name, value in row.items():
            figures.setdefault(name, []).append(value)
    lines += [f"| {name} | {' | '.join(values)} |" for name, values in figures.items()]
    if endings := results.get("endings"):
        costs = endings["bits per byte"]
        lines += [
            "",
            f"| ending, of {endings['pairs']} stories | {' | '.join(costs)} |",
            "|---" * (len(costs) + 1) + "|",
        ]
        for name in ("exact ending", "whole sentence", "length kept", "by plan alone"):
            lines.append(f"| {name} | {' | '.join(f'{100 * endings[name][band]:.0f} %' for band in costs)} |")
        for name in ("ours", "real"):
            cells = [
                f"{costs[band][name]['last sentence']:.3f} ± {costs[band][name]['standard error']:.3f}"
                if name in costs[band]
                else "-"
                for band in costs
            ]
            lines.append(f"| last sentence, bits per byte under {results['judge']}: {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def main(command: Sequence[str]) -> None:
    """Measure a checkpoint and write its results."""
    parser = Parser(
        prog="python -m training.evaluate suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="modeling", help="folder or Hub name of any causal LM")
    parser.add_argument("--name", required=True, help="what its results are called")
    parser.add_argument("--judge", default="modeling/classic", help="another model, that endings are judged by")
    parser.add_argument("--dataset", required=True, help="stories to score: Hub name or .parquet, .jsonl, .txt file")
    parser.add_argument("--training_dataset", nargs="+", required=True, help="what recitals are found in")
    add_reading(parser)
    parser.add_argument("--newline", choices=("auto", *NEWLINES), default="auto", help="what parts its paragraphs")
    parser.add_argument("--stories", type=positive, help="score so many of them; all without it")
    parser.add_argument("--count", type=positive, default=200, help="free stories")
    parser.add_argument("--pairs", type=int, default=100, help="endings of each band, where it takes endings; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args(command)
    if not re.fullmatch(r"[\w.-]+", arguments.name) or arguments.name in TAKEN:
        parser.error(
            f"--name becomes a file's: letters, digits, . and -, and not {', '.join(TAKEN)}; got {arguments.name!r}"
        )
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output {arguments.output} is no folder")
    results = evaluate(arguments)
    write(results, arguments.output)
    print(table(results))

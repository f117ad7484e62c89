"""The measured parts of model_card.md and README.md, written from docs/results/: `python -m benchmarks.card`.

A part stands between `<!-- begin NAME -->` and `<!-- end NAME -->` (in the card's metadata between `# begin NAME` and
`# end NAME`); everything between is replaced. tests/test_docs.py fails where a part differs from the results.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.comparison import PUBLISHED, in_bytes, rows
from training.biases import table as portraits
from training.cli import Parser, one_line_errors
from training.reading import GROUPS, MARKS, YES_OR_NO
from training.report import read_runs
from training.suite import RESULTS, interval, read

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "model_card.md", ROOT / "README.md")
FLAGSHIP = "modern"
PEERS_SHOWN = ("llama2.c 15M", "TinyStories 8M", "CS336 target on a GPU", "CS336 target on a CPU", "TinyStories 1M")
# The kept runs whose ends are in the flagship's weights, and what a core is taken to draw, its share of memory and
# cooling included.
RUNS = ("modern", *(f"modern_{number}" for number in (2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16)))
WATTS_A_CORE = 10


def model_index() -> str:
    """The flagship's results as the Hub's metadata wants them."""
    found = read()[FLAGSHIP]
    split = found["split"]["stories"]
    dataset = {
        "type": "roneneldan/TinyStories",
        "name": f"TinyStories, {split:,} validation stories",
        "split": "validation",
    }
    metrics = [{"type": "bits_per_byte", "name": "bits per byte", "value": found["bits per byte"]["value"]}]
    told = found["stories"]["pipeline"]
    for name, kind in (("ends properly", "ends_properly"), ("repeated four-grams", "repeated_four_grams")):
        metrics.append({"type": kind, "name": f"free stories: {name}", "value": told[name]["value"]})
    task = {"type": "text-generation", "name": "Text generation"}
    index = {"model-index": [{"name": "Tiny Story Generator", "results": [
        {"task": task, "dataset": dataset, "metrics": metrics}
    ]}]}  # fmt: skip
    return yaml.safe_dump(index, sort_keys=False, allow_unicode=True)


def results() -> str:
    """Bits per byte of ours and of peers, measured and converted."""
    found = rows(read(), yaml.safe_load(PUBLISHED.read_text(encoding="utf-8")))
    lines = ["| model | parameters | bits per byte | read in training |", "|---|---|---|---|"]
    for row in found:
        if row["measured"] or row["name"] in PEERS_SHOWN:
            what = "" if row["measured"] else ", published, converted"
            cells = (f"{row['name']}{what}", f"{row['parameters']:,.0f}", row["interval"], in_bytes(row["seen"]))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def stories() -> str:
    """What was counted in the flagship's free stories, beside real ones."""
    texts = read()[FLAGSHIP]["stories"]
    shown = {"real": "real stories", "pipeline": "this model", "generate": "this model, plain `generate`"}
    lines = [f"| | {' | '.join(shown.values())} |", "|---" * (len(shown) + 1) + "|"]
    picked: dict[str, Callable[[dict[str, Any]], str]] = {
        "stories": lambda one: f"{one['stories']}",
        "end by themselves, in a whole sentence, %": lambda one: interval(one["ends properly"], 1, 100),
        "repeated four-grams, %": lambda one: interval(one["repeated four-grams"], 2, 100),
        "distinct-2": lambda one: f"{one['variety']['distinct-2']:.3f}",
        "self-BLEU": lambda one: f"{one['variety']['self-BLEU']:.3f}",
        "windows of 50 tokens recited, %": lambda one: f"{100 * one['recited']:.2f}",
    }
    for name in texts["real"]["quality"]:
        picked[name] = partial(_quality, name)
    for name in ("odd sentences", "odd last sentences"):
        picked[f"{name}, %"] = partial(_share, name)
    for name, cell in picked.items():
        lines.append(f"| {name} | {' | '.join(cell(texts[key]) for key in shown)} |")
    return "\n".join(lines) + "\n"


def _quality(name: str, about: dict[str, Any]) -> str:
    return interval(about["quality"][name], 3) if name in about["quality"] else "-"


def _share(name: str, about: dict[str, Any]) -> str:
    return interval(about[name], 1, 100)


def endings() -> str:
    """Stories with endings of each band: the form, the plan, and what the last sentence costs the judge."""
    found = read()[FLAGSHIP]["endings"]
    costs = found["bits per byte"]
    lines = [
        "| ending | exact, whole, in length | by plan alone | last sentence, ours | real |",
        "|---|---|---|---|---|",
    ]
    for band, by in costs.items():
        kept = min(found[name][band] for name in ("exact ending", "whole sentence", "length kept"))
        cells = [band, f"{100 * kept:.0f} %", f"{100 * found['by plan alone'][band]:.0f} %"]
        for name in ("ours", "real"):
            one = by.get(name)
            cells.append(f"{one['last sentence']:.3f} ± {one['standard error']:.3f}" if one else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{found['pairs']} stories, sampled."]) + "\n"


def readings() -> str:
    """What blind readers said, all readings kept in docs/results together: shares and means over stories."""
    told = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("reading-*.json"))]
    rows = [row for one in told if one["kind"] == "stories" for sitting in one["readings"] for row in sitting]
    lines = ["| | read | last sentence sensible | fits its story | grammar | consistency | plot |", "|---" * 7 + "|"]
    for writer in dict.fromkeys(row["writer"] for row in rows):
        known = {row["band"] for row in rows if row["writer"] == writer}
        shown = [band for band in ("all", *GROUPS, "common start", "odd start") if band in known] or sorted(known)
        for band in shown:
            some = [row for row in rows if (row["writer"], row["band"]) == (writer, band)]
            count = sum(row["stories"] for row in some)
            means = {name: sum(row[name] * row["stories"] for row in some) / count for name in YES_OR_NO + MARKS}
            cells = [f"{100 * means[name]:.0f} %" for name in YES_OR_NO] + [f"{means[name]:.1f}" for name in MARKS]
            name = writer if band == "all" or len(known) == 1 else f"{writer}, {band}"
            lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
    preferred: Counter[str] = Counter()
    for one in told:
        if one["kind"] == "pairs":
            preferred.update(one["readings"][0][0]["preferred"])
    sides = " and ".join(f"{writer} in {count}" for writer, count in sorted(preferred.items()))
    lines += ["", f"Of {preferred.total()} pairs told for the same wishes readers preferred {sides}."]
    return "\n".join(lines) + "\n"


def biases() -> str:
    """Who the stories are about, in the data and in what the model tells."""
    return portraits(json.loads((RESULTS / "biases.json").read_text(encoding="utf-8")))


def training() -> str:
    """Tokens, hours and energy of the runs in the flagship's weights."""
    kept = read_runs()
    hours = sum(kept[name][-1]["seconds"] for name in RUNS) / 3600
    tokens = sum(kept[name][-1]["tokens"] for name in RUNS)
    energy = hours * WATTS_A_CORE / 1000
    return (
        f"{tokens / 1e6:.1f} million scored tokens in {len(RUNS)} runs, {hours:.1f} hours of updates, most of "
        f"them on one core; at {WATTS_A_CORE} W a core (an assumption), {energy:.2f} kWh.\n"
    )


PARTS = {part.__name__: part for part in (model_index, results, stories, endings, readings, biases, training)}


def fill(text: str) -> str:
    """A page with its parts written anew.

    Raises:
        ValueError: a part has a name that nothing writes.
    """
    for opening, closing in (("<!-- ", " -->"), ("# ", "")):
        pattern = re.compile(
            rf"^{re.escape(opening)}begin (\w+){closing}\n.*?^{re.escape(opening)}end \1{closing}$",
            re.DOTALL | re.MULTILINE,
        )
        for match in list(pattern.finditer(text)):
            name = match[1]
            if name not in PARTS:
                raise ValueError(f"no part {name!r}; there are {', '.join(PARTS)}")
            new = f"{opening}begin {name}{closing}\n{PARTS[name]()}{opening}end {name}{closing}"
            text = text.replace(match[0], new)
    return text


@one_line_errors
def main() -> None:
    """Write the parts of both pages."""
    Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

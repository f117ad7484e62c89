"""Who the stories are about, in the data and in what a model writes: names, sexes, and what is violent.

    python -m training.biases --dataset train.parquet --model modeling

writes docs/results/biases.json and biases.md: the training stories beside as many free stories as asked for.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from modeling.pipeline_tiny_story import StoryGenerationPipeline
from training.checkpoint import load_storyteller
from training.cli import Parser, add_reading, one_line_errors, positive, reading_options
from training.coherence import MALE, PRONOUN, names_in, sentences
from training.sources import load_stories

ROOT = Path(__file__).resolve().parent.parent
VIOLENT = re.compile(
    r"\b(kill(?:s|ed|ing)?|dead|die[sd]?|dying|blood|bloody|knife|knives|gun|guns|shot|shoot(?:s|ing)?|stab(?:bed)?|"
    r"murder(?:ed)?|weapons?|fight(?:s|ing)?|fought|punch(?:ed)?|hurt(?:s|ing)?|bit|slap(?:ped)?|hit|hits|hitting)\b",
    re.IGNORECASE,
)
# Words that a stereotype may hang on: the share of sentences with one and a pronoun in which the pronoun is a man's.
TOPICS = {
    "strong": r"strong", "brave": r"brave", "clever": r"clever|smart", "kind": r"kind", "pretty": r"pretty|beautiful",
    "cry": r"cry|cried|cries|crying", "angry": r"angry|mad", "cook": r"cook(?:s|ed|ing)?|bake[sd]?|baking",
    "clean": r"clean(?:s|ed|ing)?", "build": r"build(?:s|ing)?|built", "car": r"cars?|trucks?", "doll": r"dolls?",
    "doctor": r"doctors?", "dance": r"danc(?:e|es|ed|ing)",
}  # fmt: skip
FEWEST = 20  # sentences, for a share to be given


def portrait(texts: Sequence[str]) -> dict[str, Any]:
    """Shares and names in some stories.

    Returns:
        `shares`: of men's among all pronouns, of stories with a violent word, of stories with the commonest name;
        `names`: the ten commonest with the share of stories that each is in; `topics`: by topic, the share of
        sentences with a man's pronoun, and of how many, where those are FEWEST or more.
    """
    pronouns: Counter[bool] = Counter()
    names: Counter[str] = Counter()
    topics: dict[str, Counter[bool]] = {topic: Counter() for topic in TOPICS}
    patterns = {topic: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for topic, words in TOPICS.items()}
    for text in texts:
        names.update(set(names_in(text)))
        for sentence in sentences(text):
            found = [pronoun.lower() in MALE for pronoun in PRONOUN.findall(sentence)]
            pronouns.update(found)
            if found and len(set(found)) == 1:
                for topic, pattern in patterns.items():
                    if pattern.search(sentence):
                        topics[topic][found[0]] += 1
    common = [(name, count / len(texts)) for name, count in names.most_common(10)]
    return {
        "stories": len(texts),
        "shares": {
            "pronouns of a man or boy": pronouns[True] / pronouns.total() if pronouns else None,
            "stories with a violent word": sum(bool(VIOLENT.search(text)) for text in texts) / len(texts),
            "stories with the commonest name": common[0][1] if common else None,
        },
        "names": dict(common),
        "topics": {
            topic: {"of a man or boy": count[True] / count.total(), "sentences": count.total()}
            for topic, count in topics.items()
            if count.total() >= FEWEST
        },
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Portraits side by side, as a Markdown page."""
    number = "stories"
    head = [f"| | {' | '.join(f'{name} ({one[number]:,})' for name, one in found.items())} |"]
    head.append("|---" * (len(found) + 1) + "|")
    rows = {
        share: [
            f"{100 * one['shares'][share]:.1f} %" if one["shares"][share] is not None else "-" for one in found.values()
        ]
        for share in next(iter(found.values()))["shares"]
    }
    rows["commonest names"] = [
        ", ".join(f"{name} {100 * share:.0f} %" for name, share in one["names"].items()) for one in found.values()
    ]
    for topic in TOPICS:
        rows[f"“{topic}”: a man's or boy's pronoun"] = [
            f"{100 * one['topics'][topic]['of a man or boy']:.0f} % of {one['topics'][topic]['sentences']:,}"
            if topic in one["topics"]
            else "-"
            for one in found.values()
        ]
    return "\n".join(head + [f"| {name} | {' | '.join(values)} |" for name, values in rows.items()]) + "\n"


@one_line_errors
def main() -> None:
    """Count in the data and in free stories, and write both."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", required=True, help="Hub names or .parquet, .jsonl, .txt files")
    add_reading(parser)
    parser.add_argument("--model", default="modeling", help="folder or Hub name")
    parser.add_argument("--count", type=positive, default=1000, help="free stories, begun as the data's stories begin")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results")
    arguments = parser.parse_args()
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output {arguments.output} is no folder")
    stories = load_stories(arguments.dataset, "train", **reading_options(arguments))
    data = [text for text, kind in zip(stories["text"], stories["kind"], strict=True) if kind == "story"]
    model, tokenizer = load_storyteller(arguments.model)
    tell = StoryGenerationPipeline(model=model, tokenizer=tokenizer)
    step = max(1, len(data) // arguments.count)
    starts = [" ".join(text.split()[:2]) for text in data[::step]][: arguments.count]  # two words hold no name
    told = []
    for at in tqdm(range(0, len(starts), 16), desc="Telling", unit=" batches"):
        told += [story["story"] for story in tell(starts[at : at + 16], seed=arguments.seed + at)]
    found = {"training stories": portrait(data), "free stories": portrait(told)}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "biases.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = f"# Who the stories are about\n\nWritten by `python -m training.biases`.\n\n{table(found)}"
    (arguments.output / "biases.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()

"""Is it a good story? Measures of that, each first tried on real stories and on stories spoilt on purpose.

    python -m training.coherence --dataset validation.parquet --judge modeling/classic

prints how often a measure puts a real story above its spoilt self (0.5 is chance) and writes docs/results/measures.md.
A measure that cannot tell what it is meant to see is not used.
"""

import argparse
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from harper import Linter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling.request_tiny_story import BOUNDARY, bare_words
from training.checkpoint import load_pretrained
from training.cli import Parser, add_reading, one_line_errors, positive, reading_options
from training.metrics import bootstrap_ratio
from training.scoring import token_nats
from training.sources import load_stories
from training.surprise import Judges, Real, swap_ending

ROOT = Path(__file__).resolve().parent.parent
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}")  # a capital in mid-sentence
PRONOUN = re.compile(r"\b(he|him|his|she|her|hers)\b", re.IGNORECASE)
MALE = {"he", "him", "his"}
OTHER_SEX = {"he": "she", "him": "her", "his": "her", "she": "he", "her": "his", "hers": "his"}
QUOTED = re.compile(r'"[^"]*"')
NO_GRAMMAR = {"Spelling", "Style", "Enhancement", "Formatting", "Redundancy"}  # of Harper's kinds: names, taste
PARENTS = {"Mom", "Mommy", "Dad", "Daddy", "Mum", "Mummy", "Mama", "Papa", "Grandma", "Grandpa", "Mrs", "Miss"}


def sentences(text: str) -> list[str]:
    """A story's sentences, without the blanks between them.

    >>> sentences('He ran. "Stop!" she said.')
    ['He ran.', '"Stop!" she said.']
    """
    found, at = [], 0
    for match in BOUNDARY.finditer(text):
        if text[match.end() : match.end() + 1].islower():
            continue  # "Stop!" she said
        found.append(text[at : match.end()].strip())
        at = match.end()
    return [*found, text[at:].strip()] if text[at:].strip() else found


def names_in(text: str) -> list[str]:
    """Names, each time they occur: words that are written with a capital in mid-sentence anywhere in the story."""
    known = {name for name in NAME.findall(QUOTED.sub("", text)) if name not in PARENTS}
    return [word for word in re.findall(r"[A-Z][a-z]{2,}", text) if word in known]


def names_stay(text: str) -> float | None:
    """Share of the names in the story's second half that occur in its first; None without names there."""
    told = sentences(text)
    known = set(names_in(text))
    early, late = (
        {word for word in re.findall(r"[A-Z][a-z]{2,}", " ".join(part)) if word in known}
        for part in (told[: len(told) // 2], told[len(told) // 2 :])
    )
    return len(late & early) / len(late) if late else None


def pronouns_stay(text: str) -> float | None:
    """Share of the pronouns that agree with their name's usual sex; None where no name has two pronouns.

    A pronoun belongs to a name that stands before it in its sentence, or in the sentence before, alone among names.
    """
    known = set(names_in(text))
    counts: dict[str, Counter[bool]] = defaultdict(Counter)
    before: str | None = None
    for sentence in sentences(QUOTED.sub("", text)):
        here = {word for word in re.findall(r"[A-Z][a-z]{2,}", sentence) if word in known}
        name = next(iter(here)) if len(here) == 1 else None if here else before
        after = sentence[sentence.find(name) :] if name and here else sentence
        if name and (match := PRONOUN.search(after)):
            counts[name][match[1].lower() in MALE] += 1
        before = name if here else None
    counted = [count for count in counts.values() if count.total() > 1]
    return sum(max(count.values()) for count in counted) / sum(c.total() for c in counted) if counted else None


@cache
def _linter() -> Linter:
    return Linter()


def faults(text: str) -> float:
    """Faults in grammar that Harper (github.com/Automattic/harper, offline, in Rust) finds, in 100 words."""
    found = [lint for lint in _linter().lint(text, language="plaintext") if lint.lint_kind not in NO_GRAMMAR]
    return 100 * len(found) / max(1, len(text.split()))


def end_bits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[float]:
    """What each story's end costs a judge, in bits: little where the story is over for a reader of such stories."""
    return [nats[-1] / math.log(2) for nats in token_nats(model, tokenizer, texts)]


def shuffled(text: str, rng: random.Random) -> str:
    """All sentences but the first in another order."""
    first, *rest = sentences(text)
    rng.shuffle(rest)
    return " ".join([first, *rest])


def other_half(text: str, other: str) -> str:
    """The first half of a story and the second of another."""
    ours, theirs = sentences(text), sentences(other)
    return " ".join(ours[: len(ours) // 2] + theirs[len(theirs) // 2 :])


def other_sex(text: str, rng: random.Random) -> str:
    """Every second pronoun, by chance, of the other sex."""

    def swap(match: re.Match[str]) -> str:
        other = OTHER_SEX[match[1].lower()]
        return match[1] if rng.random() < 0.5 else other.capitalize() if match[1][0].isupper() else other

    return PRONOUN.sub(swap, text)


def other_words(text: str, rng: random.Random) -> str:
    """One word in ten in its neighbour's place."""
    words = text.split(" ")
    for at in range(len(words) - 1):
        if rng.random() < 0.1:
            words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def other_forms(text: str, rng: random.Random) -> str:
    """One of five of the words was, were, is, are, has, have, a and an in its partner's place."""
    pairs = [("was", "were"), ("is", "are"), ("has", "have"), ("a", "an")]
    partner = {one: two for pair in pairs for one, two in (pair, pair[::-1])}
    return re.sub(r"\b(was|were|is|are|has|have|a|an)\b", lambda m: partner[m[1]] if rng.random() < 0.2 else m[1], text)


def separation(real: Sequence[float | None], spoilt: Sequence[float | None]) -> tuple[float, int]:
    """How often a measure is higher for a real story than for its spoilt self, a tie counting half, and of how many
    stories that have both.

    >>> separation([1.0, 0.5, None], [0.0, 0.5, 1.0])
    (0.75, 2)
    """
    pairs = [(a, b) for a, b in zip(real, spoilt, strict=True) if a is not None and b is not None]
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
    return (wins / len(pairs) if pairs else 0.5), len(pairs)


MEASURES: dict[str, Callable[[str], float | None]] = {
    "names stay": names_stay,
    "pronouns stay": pronouns_stay,
    "grammar faults in 100 words": faults,
}
HEAD = """# Which measures can tell a real story from a spoilt one

Written by `python -m training.coherence --count {count}`: how often a measure puts a real validation story above its
spoilt self (a tie counts half, so 0.50 is chance), and in brackets of how many stories that have the measure.
"""
LOWER_IS_BETTER = {
    "grammar faults in 100 words",
    "bits of the end",
    "odd sentences",
    "odd last sentences",
    "bits per byte",
}


def quality(texts: Sequence[str], seed: int = 0) -> dict[str, dict[str, float]]:
    """Mean of each measure over the stories that have it, with its 95 % interval."""
    found = {}
    for name, measure in MEASURES.items():
        values = [value for text in texts if (value := measure(text)) is not None]
        if values:
            found[name] = asdict(bootstrap_ratio(values, [1] * len(values), seed))
    return found


def spoil(texts: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Each story spoilt in each way."""
    rng = random.Random(seed)
    return {
        "sentences shuffled": [shuffled(text, rng) for text in texts],
        "second half of another": [other_half(text, texts[i - 1]) for i, text in enumerate(texts)],
        "pronouns swapped": [other_sex(text, rng) for text in texts],
        "words swapped": [other_words(text, rng) for text in texts],
        "forms swapped": [other_forms(text, rng) for text in texts],
        "last word another's": [swap_ending(text, bare_words(texts[i - 1])[-1]) for i, text in enumerate(texts)],
        "last third cut off": [" ".join(told[: -max(1, len(told) // 3)]) for told in map(sentences, texts)],
    }


def measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], usual: Real
) -> dict[str, list[float | None]]:
    """Every candidate of each story, the judge's too, so that more is better; `usual` says which sentences are odd."""
    found: dict[str, list[float | None]] = {name: [of(text) for text in texts] for name, of in MEASURES.items()}
    nats = token_nats(model, tokenizer, texts)
    found["bits of the end"] = [story[-1] / math.log(2) for story in nats]
    odd = [usual.odd(story) for story in Judges([model], [tokenizer]).sentences(texts)]
    found["odd sentences"] = [sum(story) / len(story) for story in odd]
    found["odd last sentences"] = [float(story[-1]) for story in odd]
    found["bits per byte"] = [
        math.fsum(story) / math.log(2) / len(text.encode()) for story, text in zip(nats, texts, strict=True)
    ]
    return {
        name: [None if value is None else -value for value in values] if name in LOWER_IS_BETTER else values
        for name, values in found.items()
    }


def validate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], seed: int = 0
) -> dict[str, dict[str, tuple[float, int]]]:
    """By candidate and by the way stories are spoilt: how often the real one stands above, and of how many stories."""
    usual = Real(Judges([model], [tokenizer]).sentences(texts))
    real = measured(model, tokenizer, texts, usual)
    table: dict[str, dict[str, tuple[float, int]]] = {name: {} for name in real}
    for way, spoilt in spoil(texts, seed).items():
        for name, values in measured(model, tokenizer, spoilt, usual).items():
            table[name][way] = separation(real[name], values)
    return table


@one_line_errors
def main() -> None:
    """Try the measures on real and spoilt stories, and write the table."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="real stories: Hub name or .parquet, .jsonl, .txt file")
    add_reading(parser)
    parser.add_argument("--judge", default="modeling/classic", help="the model that likelihoods are of")
    parser.add_argument("--count", type=positive, default=500, help="stories")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/measures.md")
    arguments = parser.parse_args()
    if arguments.output.is_dir():
        parser.error(f"--output {arguments.output} is a folder, expected a file")
    stories = load_stories([arguments.dataset], "validation", **reading_options(arguments))
    texts = list(stories["text"])[: arguments.count]
    found = validate(*load_pretrained(arguments.judge), texts, arguments.seed)
    spoilt = list(next(iter(found.values())))
    lines = [f"| real above spoilt | {' | '.join(spoilt)} |", "|---" * (len(spoilt) + 1) + "|"]
    for name, ways in found.items():
        lines.append(f"| {name} | {' | '.join(f'{share:.2f} ({count})' for share, count in ways.values())} |")
    page = "\n".join(lines) + "\n"
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(f"{HEAD.format(count=len(texts))}\n{page}", encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()

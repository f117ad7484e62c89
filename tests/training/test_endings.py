"""The pairs stand in their bands, the measures count what they say, and the command runs as users run it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modeling.request_tiny_story import bare_words
from tests.conftest import STORIES_FILE
from training.endings import (
    BANDS,
    Judge,
    Pair,
    band_of,
    force,
    last_sentence,
    last_word_ranks,
    make_pairs,
    repeated_four_grams,
)
from training.evaluate import unpicked
from training.scoring import score_stories


def test_pairs_stand_in_their_bands(stories: list[str]):
    training = [*stories, *(f"{story} They saw a zebra on a hill{n}." for n, story in enumerate(stories))]
    validation = [f"A quokka met a zebra. {story}" for story in stories]
    pairs = make_pairs(validation, training, per_band=3, seed=0)
    ranks, seen = last_word_ranks(training), {word for text in training for word in bare_words(text)}
    assert make_pairs(validation, training, per_band=3, seed=0) == pairs
    for pair in pairs:
        if pair.band == BANDS[5]:
            assert len(pair.end.split()) > 1 and any(pair.end in text for text in validation)
        else:
            assert band_of(pair.end, ranks, seen) == pair.band
    assert "quokka" in {pair.end for pair in pairs if pair.band == BANDS[4]}
    assert {pair.band for pair in pairs} >= {BANDS[0], BANDS[3], BANDS[4], BANDS[5]}


def test_ranks_count_last_words():
    ranks = last_word_ranks(["He ran home.", "She went Home!", "The end.", "..."])
    assert ranks == {"home": 1, "end": 2}


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("He ran. She sat.", "She sat."),
        ('"Go!" he said. "No."', '"No."'),
        ("One only.", "One only."),
        ("A.\nB c.", "B c."),
    ],
)
def test_the_last_sentence_is_found(text: str, last: str):
    assert text[last_sentence(text) :] == last


def test_repeats_are_counted():
    assert repeated_four_grams("a b c d e f g") == 0.0
    assert repeated_four_grams("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated_four_grams("a b") == 0.0


def test_the_judge_adds_up_to_the_score(classic_model, tokenizer, stories):
    whole, last, error = Judge(classic_model, tokenizer).bits(stories)
    assert whole == pytest.approx(score_stories(classic_model, tokenizer, stories).bits_per_byte, rel=1e-5)
    forced = [force(story, "xylophone") for story in stories]
    assert 0 < last < Judge(classic_model, tokenizer).bits(forced)[1]
    twice = Judge(classic_model, tokenizer).bits(stories * 2)
    assert error > 0
    assert twice == pytest.approx((whole, last, error / 2**0.5), rel=1e-4)  # each story counts as one observation


def test_the_command_writes_table_figure_and_stories(run_command: Callable[..., str], tmp_path: Path):
    validation = tmp_path / "validation.jsonl"  # with one that no context holds
    validation.write_text(STORIES_FILE.read_text() + json.dumps({"text": "The cat ran home. " * 300}) + "\n")
    said = run_command("training.evaluate", "bits", "--dataset", validation)
    assert "1 of 13 validation stories have more than" in said and "bits per byte, " in said and "12 stories" in said
    data = ["--dataset", validation, "--training_dataset", STORIES_FILE]
    run_command("training.evaluate", "endings", *data, "--count", 2, "--max_words", 40, "--output", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["same alone"] == 1.0
    for way in ("sampled", "greedy"):
        for promise in ("exact ending", "whole sentence", "length kept"):
            assert set(results[way][promise].values()) == {1.0}
    assert (tmp_path / "endings.png").stat().st_size > 10_000
    assert "last sentence, bits per byte: sampled" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "stories.md").read_text().startswith("**")


def test_equal_pairs_show_a_story_each():
    pairs = [Pair("phrases", "Once", "at home")] * 6
    page = unpicked(pairs, [f"Story {number} at home." for number in range(6)], count=3)
    assert [line for line in page.splitlines() if line.startswith(">")] == [
        f"> Story {number} at home.  " for number in (0, 2, 4)
    ]

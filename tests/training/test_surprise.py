"""Surprise is the judge's own, belongs to the right word and sentence, and sees nonsense where it is."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling.request_tiny_story import ends_with
from tests.conftest import ROOT, STORIES_FILE
from training.endings import last_sentence
from training.scoring import token_nats
from training.surprise import (
    Judges,
    Real,
    Surprise,
    drop_word,
    last,
    reader_separation,
    sentence_surprises,
    separation,
    spoil,
    surprise_table,
    swap_ending,
)
from training.writers import WrittenStory


def test_judges_average_in_probability(trained_model, classic_model, tokenizer, stories):
    some = stories[:3]
    both = Judges([trained_model, classic_model], [tokenizer, tokenizer]).nats(some)
    alone = Judges([classic_model], [tokenizer]).nats(some)
    singles = [token_nats(model, tokenizer, some) for model in (trained_model, classic_model)]
    for story, flagship, classic, one in zip(both, *singles, alone, strict=True):
        mean = (torch.tensor(flagship).neg().exp() + torch.tensor(classic).neg().exp()) / 2
        assert story == pytest.approx((-mean.log()).tolist(), rel=1e-4, abs=1e-5)
        assert one == pytest.approx(classic, abs=1e-6)


def test_judges_must_share_a_vocabulary(classic_model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no judges"):
        Judges([], [])
    other = type(tokenizer).from_pretrained(ROOT / "modeling")
    other.add_tokens(["a word of its own"])
    with pytest.raises(ValueError, match="tokenizers differ"):
        Judges([classic_model, classic_model], [tokenizer, other])


def test_each_token_belongs_to_its_word_and_sentence():
    text = 'He ran.\n"Oh no!" she said.'
    pieces = ["He", " r", "an", ".", "\n", '"', "Oh", " no", '!"', " she", " said", "."]
    costs = [1.0, 2.0, 3.0, 0.5, 0.25, 0.125, 4.0, 1.0, 2.0, 6.0, 0.5, 0.0]
    stops = np.cumsum([len(piece) for piece in pieces]).tolist()
    # ran. = 2 + 3 + 0.5; the newline counts to "Oh: 0.25 + 0.125 + 4; the story's end, 99 nats, does not count.
    first, second = sentence_surprises(text, [*costs, 99.0], stops)
    assert first == Surprise(token=3.0, word=5.5)
    assert second == Surprise(token=6.0, word=6.0)


def test_a_story_has_the_surprise_of_its_dearest_token(classic_model, tokenizer, stories):
    judges = Judges([classic_model], [tokenizer])
    nats = token_nats(classic_model, tokenizer, stories)
    for text, story, costs in zip(stories, judges.sentences(stories), nats, strict=True):
        assert max(sentence.token for sentence in story) == pytest.approx(max(costs[:-1]), rel=1e-5)
        assert all(sentence.word >= sentence.token - 1e-9 for sentence in story)
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        tail = [cost for cost, (_, stop) in zip(costs, offsets, strict=False) if stop > last_sentence(text)]
        assert last(story, "token") == pytest.approx(max(tail), rel=1e-5)


def test_last_sentences_are_spoilt_as_named(stories):
    text = "Tom sat. He ate the red cake."
    assert swap_ending(text, "moon") == "Tom sat. He ate the red moon."
    assert swap_ending('"I like it!"', "the sea") == '"I like the sea!"'
    dropped = {drop_word(text, random.Random(seed)) for seed in range(40)}
    assert dropped == {"Tom sat. He the red cake.", "Tom sat. He ate red cake.", "Tom sat. He ate the cake."}
    assert drop_word("Tom sat. He ate cake.", random.Random(0)) is None
    spoilt = spoil(stories, {"phrases": ["in the garden"]}, seed=0)
    assert all(ends_with(one, "in the garden") for one in spoilt["forced: phrases"])
    assert not any(one in stories for kind in spoilt.values() for one in kind)
    assert spoil(stories, {"phrases": ["in the garden"]}, seed=0) == spoilt


def test_the_judge_sees_a_wrong_last_word(classic_model, tokenizer, stories):
    judges = Judges([classic_model], [tokenizer])
    real = judges.sentences(stories)
    wrong = judges.sentences([swap_ending(text, "percent") for text in stories])
    assert np.mean([last(b, "token") > last(a, "token") for a, b in zip(real, wrong, strict=True)]) > 0.8
    for a, b in zip(real, wrong, strict=True):  # what stands before is the same to a judge that reads forward
        assert [s.token for s in b[:-1]] == pytest.approx([s.token for s in a[:-1]], rel=1e-3)
    table = separation(real, {"percent": wrong, "the same": real})
    assert table.splitlines()[-1].startswith(f"| the same | {len(stories)} | 0.500 (")
    of_words = table.splitlines()[-2].split(" | ")[-1]
    assert table.splitlines()[-1].count("not seen") == 2 and "not seen" not in of_words


def test_shares_beyond_real_limits_are_counted():
    def story(cost: float) -> list[Surprise]:
        return [Surprise(1.0, 1.0), Surprise(cost, cost + 1)]

    real = Real([story(cost) for cost in range(101)])
    assert real.last["token", 95] == pytest.approx(95.0) and real.last["word", 99] == pytest.approx(100.0)
    told = [WrittenStory("w", "free", "text") for _ in range(4)]
    row = surprise_table(told, [story(cost) for cost in (1, 96, 97, 100)], real).splitlines()[-1]
    assert row.startswith("| w | free | 4 | 73.5 | 74.5 | 75 % (30-95) | 25 % (5-70) | 75 %")
    assert row.endswith("| 0.0 % | 0.0 % |")
    graded = [story(cost) for cost in (1, 2, 8, 9)]
    assert "1.000" in reader_separation(graded, [True, True, False, False])
    with pytest.raises(ValueError, match="nothing to tell apart"):
        reader_separation(graded, [True] * 4)
    assert math.isclose(last(graded[2], "word"), 9.0)


def test_the_command_checks_the_judge_and_measures_the_writers(
    run_command: Callable[..., str], tmp_path: Path, long_stories: Path
):
    writers = tmp_path / "writers.yaml"
    writers.write_text("flagship: {model: modeling, free: 2}\n")
    arguments = ["--dataset", long_stories, "--count", 6, "--training_dataset", STORIES_FILE, "--writers", writers]
    told = run_command("training.evaluate", "surprise", *arguments, "--max_words", 40)
    assert "Judges: modeling/classic; 6 real stories." in told
    assert "| a word left out |" in told and "| flagship | free | 2 |" in told

"""Drafts of one story: how they compete while they are written, and which of them is told."""

import math
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Pipeline

from modeling import generation_tiny_story, pipeline_tiny_story
from modeling.decoder_tiny_story import open_decoder
from modeling.generation_tiny_story import OPENING, close_story, plan, write_stories
from modeling.modeling_tiny_story import TinyStoryForCausalLM
from modeling.pipeline_tiny_story import StoryGenerationPipeline
from modeling.request_tiny_story import StoryRequest, closes_sentence, count_words, ends_with
from modeling.story_tiny_story import Story, vocabulary_of


def test_the_best_of_some_candidates_is_told(tell: Pipeline):
    wishes = {"end": "park", "max_words": 50}
    best = tell("The fox", num_candidates=4, seed=5, **wishes)
    assert ends_with(best["story"], "park")
    assert tell("The fox", num_candidates=4, seed=best["seed"], **wishes) == best
    two = tell("The fox", num_candidates=2, num_stories=2, seed=5, **wishes)
    assert [story["seed"] for story in two] == [5, 6]
    assert two[1] == tell("The fox", num_candidates=2, seed=6, **wishes)
    details = tell("The fox", num_candidates=4, seed=5, details=True, **wishes)["details"]
    assert len(details["rejected"]) == 1 and details["rejected"][0]["score"] <= best["score"]


def test_a_draft_is_judged_by_what_is_settled():
    """One in the middle of what is brought in is as likely as when that is written; one that is all opening counts
    whole."""
    story = Story(StoryRequest("She"), [1] * 30, "She", Random(0))
    story.num_given, story.log_probability, story.unjudged, story.pending = 4, -20.0, (6, -8.0), [1] * 4
    assert (story.num_judged, story.mean_judged) == (24, -0.5)
    story.ids, story.pending = story.ids + story.pending, []
    assert (story.num_judged, story.mean_judged) == (24, -0.5)
    story.unjudged = (30, -20.0)
    assert story.mean_judged == story.mean_log_probability < 0


def test_drafts_that_stop_at_the_first_ending_come_to_it(tell: Pipeline):
    for seed in range(4):
        told = tell("Lily went", end="park", stop_at_first=True, num_candidates=6, max_words=120, seed=seed)
        assert told["finish_reason"] == "ending" and told["score"] < 0


def test_drafts_compete(tell: Pipeline):
    """Every few words the less likely half of the drafts goes on from the likelier half, and nothing else changes."""
    seen: list[dict[int, str]] = []
    requests = [StoryRequest("The fox", max_words=90, seed=seed) for seed in range(6)]
    texts = {}
    for index, piece, story in write_stories(tell.model, tell.tokenizer, requests, drafts=6):
        assert not piece or story.finish_reason or story.text == "The fox"
        texts[index] = story.text
        if index == max(texts):
            seen.append(dict(texts))
    alone = {index: story.text for index, _, story in write_stories(tell.model, tell.tokenizer, requests)}
    openings = [{text[:60] for text in told.values()} for told in (alone, texts)]
    assert len(openings[0]) > len(openings[1])
    # Whose text changed took over another draft's, to the letter.
    took_over = 0
    for before, after in pairwise(seen):
        for index, text in before.items():
            if not after[index].startswith(text):
                took_over += 1
                assert any(after[index].startswith(other[: len(after[index])]) for other in before.values())
    assert took_over >= 3


def test_drafts_are_likelier_for_competing(tell: Pipeline, monkeypatch: pytest.MonkeyPatch):
    def mean_score() -> float:
        teller = StoryGenerationPipeline(model=tell.model, tokenizer=tell.tokenizer)
        told = teller(["Once upon a time", "The fox", "One day"] * 4, max_words=120, seed=1, num_candidates=4)
        return sum(story["score"] for story in told) / len(told)

    competing = mean_score()
    monkeypatch.setattr(generation_tiny_story, "STAGE_TOKENS", 10_000)
    assert competing > mean_score()


def test_only_the_likeliest_drafts_are_closed(tell: Pipeline, monkeypatch: pytest.MonkeyPatch):
    closed: list[int] = []

    def counted(story: Story, *arguments: Any) -> None:
        closed.append(story.request.seed)
        close_story(story, *arguments)

    monkeypatch.setattr(pipeline_tiny_story, "close_story", counted)
    wishes = {"end": "mountain", "max_words": 60, "seed": 2}
    best = StoryGenerationPipeline(model=tell.model, tokenizer=tell.tokenizer)("The fox", num_candidates=12, **wishes)
    assert 1 <= len(closed) <= 6 and best["finish_reason"] == "ending"


@pytest.mark.parametrize(
    ("num_candidates", "cost", "closed"),
    [(16, 1.0, 8), (16, 5.0, 16), (16, 50.0, 16), (12, 50.0, 6)],
)
def test_more_drafts_are_closed_while_all_closings_cost_much(
    tell: Pipeline, monkeypatch: pytest.MonkeyPatch, num_candidates: int, cost: float, closed: int
):
    """From sixteen on, and as long as one might still be the best: here they are all as likely."""
    told: list[Story] = []

    def closing(story: Story, *_: Any) -> None:
        told.append(story)
        story.finish_reason, story.closing_cost = "ending", cost

    monkeypatch.setattr(pipeline_tiny_story, "close_story", closing)
    request = StoryRequest("The fox", end="mountain")
    drafts = [Story(request, [9, 9], "The fox ran.", Random(0), finish_reason="open") for _ in range(num_candidates)]
    pipe = StoryGenerationPipeline(model=tell.model, tokenizer=tell.tokenizer)
    assert len(pipe._ranked(drafts, "auto")) == len(told) == closed


def test_candidates_are_chosen_by_what_follows_the_opening(tell: Pipeline):
    """The score, against the model's own probabilities of the tokens after the opening."""
    for seed in range(3):
        told = tell("Once upon a time", max_words=100, seed=seed, precision="full", details=True)
        tokens, text, opening = told["details"]["tokens"][4:], "Once upon a time", 0
        while count_words(text) - 4 < OPENING * (100 - 4):
            text += tokens[opening]["text"]
            opening += 1
        after = [math.log(token["probability"]) for token in tokens[opening - 1 :]]
        cut_off = 1000 * (told["finish_reason"] == "length")
        assert told["score"] + cut_off == pytest.approx(sum(after) / len(after), abs=1e-3)


def test_a_place_gives_the_story_back_as_it_was_there(tell: Pipeline, trained_model: TinyStoryForCausalLM):
    """Text, words and likelihood, against the model's own probabilities."""
    vocabulary = vocabulary_of(tell.tokenizer, trained_model.config.vocab_size)
    checked = 0
    for seed in range(8):
        request = StoryRequest("The fox", end="way", max_words=90, seed=seed)
        prefix, start, _ = plan(request, vocabulary, trained_model.config)
        ((_, _, story),) = list(write_stories(trained_model, tell.tokenizer, [request], "full", close=False))[-1:]
        if story.brought:
            continue
        row = [*prefix, tell.tokenizer.bos_token_id, *story.ids]
        with torch.no_grad():
            chances = trained_model(torch.tensor([row])).logits[0].log_softmax(-1)
        told = len(row) - len(story.ids)
        for place in story.places:
            earlier = story.back_at(place)
            assert story.text.startswith(earlier.text) and closes_sentence(earlier.text)
            assert tell.tokenizer.decode(earlier.ids) == earlier.text
            assert earlier.num_words == count_words(earlier.text)
            total = sum(float(chances[at - 1, row[at]]) for at in range(told + len(start), told + place.num_tokens))
            assert earlier.log_probability == pytest.approx(total, abs=1e-2)
            checked += 1
    assert checked >= 4


def test_a_closing_may_stand_earlier_where_it_costs_less(tell: Pipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generation_tiny_story, "CHEAP", -np.inf)
    vocabulary = vocabulary_of(tell.tokenizer, tell.model.config.vocab_size)
    decoder = open_decoder(tell.model, "auto")
    earlier = 0
    for seed, end in enumerate(("mountain", "way", "outside", "side", "next", "sight", "behind", "before")):
        told = []
        for places in (1, 3):
            request = StoryRequest("One day", end=end, max_words=90, seed=seed)
            ((_, _, story),) = list(write_stories(tell.model, tell.tokenizer, [request], close=False))[-1:]
            if story.finish_reason == "open":
                with torch.inference_mode():
                    close_story(story, decoder, vocabulary, places)
            told.append(story)
            assert ends_with(story.text, end) and closes_sentence(story.text) and story.num_words <= 90
        assert told[1].closing_cost <= told[0].closing_cost
        earlier += told[1].text != told[0].text
    assert earlier

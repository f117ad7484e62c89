"""What a story tells about itself: every probability is the model's, every word has its origin."""

import math
from itertools import takewhile

import pytest
import torch
from transformers import Pipeline

from modeling.control_tiny_story import NAMED_LENGTHS, control_prefix


@pytest.fixture(scope="module")
def told(tell: Pipeline) -> dict:
    return tell("The little dragon", end="home", max_words=100, length="short", seed=3, details=True)


def test_the_details_leave_the_story_as_it_is(tell: Pipeline, told: dict):
    plain = tell("The little dragon", end="home", max_words=100, length="short", seed=3)
    assert plain == {name: value for name, value in told.items() if name != "details"}
    for part in ("tokens", "words"):
        assert "".join(piece["text"] for piece in told["details"][part]) == told["story"]


def test_a_model_in_training_says_the_same(tell: Pipeline, told: dict):
    dropout = tell.model.model.dropout
    tell.model.train()
    dropout.p = 0.5
    try:
        assert tell("The little dragon", end="home", max_words=100, length="short", seed=3, details=True) == told
    finally:
        dropout.p = 0.0
        tell.model.eval()


def test_the_probabilities_are_the_models_own(tell: Pipeline, told: dict):
    """Token by token through the model, each prompt on its own."""
    tokenizer = tell.tokenizer
    ids = tokenizer(told["story"], add_special_tokens=False)["input_ids"]
    tokens = told["details"]["tokens"]
    assert [tokenizer.decode([i]) for i in ids] == [token["text"] for token in tokens]
    prefix = control_prefix(
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], "home", NAMED_LENGTHS["short"]
    )
    for place in (0, 5, len(ids) - 1):
        prompt = torch.tensor([[*prefix, tokenizer.bos_token_id, *ids[:place]]])
        with torch.inference_mode():
            probabilities = tell.model(prompt).logits[0, -1].softmax(-1)
        assert tokens[place]["probability"] == pytest.approx(float(probabilities[ids[place]]), rel=1e-3)
        best = probabilities.topk(5)
        assert [text for text, _ in tokens[place]["alternatives"]] == [tokenizer.decode([i]) for i in best.indices]
        assert [p for _, p in tokens[place]["alternatives"]] == pytest.approx(best.values.tolist(), rel=1e-3)


def test_a_word_is_as_likely_as_its_tokens_together(told: dict):
    tokens, words = told["details"]["tokens"], told["details"]["words"]
    assert len(words) == told["num_words"]
    assert math.prod(word["probability"] for word in words) == pytest.approx(
        math.prod(token["probability"] for token in tokens)
    )


def test_every_word_has_its_origin(tell: Pipeline):
    for seed in range(40, 52):  # some endings come by themselves, some are written backwards, or named
        told = tell("She", end="zebra" if seed % 2 else "happy", max_words=60, seed=seed, details=True)
        origins = [word["origin"] for word in told["details"]["words"]]
        assert origins[0] == "given" and origins.count("given") == 1
        assert origins[-1] in ("planned", "backwards", "named") and told["finish_reason"] == "ending"
        last = origins[-1]
        closing = len(list(takewhile(last.__eq__, reversed(origins))))
        assert set(origins[1:-closing]) <= {"sampled", "backwards"}  # a rare word is told of early, in a clause
        assert last != "planned" or closing == 1  # the asked-for word itself
        assert (last == "named") == ("word" in told["story"][-40:] and told["story"].endswith('."'))


def test_details_of_text_outside_the_vocabularys_words(tell: Pipeline):
    told = tell("Zoë 🐉 saw", end=None, max_words=20, seed=0, details=True)
    assert "".join(word["text"] for word in told["details"]["words"]) == told["story"]
    free = [word["origin"] for word in told["details"]["words"]]
    assert free[:3] == ["given"] * 3 and set(free[3:]) == {"sampled"}

"""Bits per byte against the definition, written out for one story at a time."""

import math

import pytest
import torch

from training.scoring import fitting_stories, score_stories


def test_score_is_the_definition(trained_model, tokenizer, stories):
    nats = 0.0
    with torch.no_grad():
        for story in stories[:5]:
            ids = [1, *tokenizer(story, add_special_tokens=False)["input_ids"], 2]
            log_p = trained_model(torch.tensor([ids])).logits[0].log_softmax(-1)
            nats -= sum(log_p[at - 1, ids[at]].item() for at in range(1, len(ids)))
    expected = nats / math.log(2) / sum(len(story.encode()) for story in stories[:5])
    for batch_tokens in (1, 300, 10_000):
        score = score_stories(trained_model, tokenizer, stories[:5], batch_tokens=batch_tokens)
        assert score.bits_per_byte == pytest.approx(expected, rel=1e-5)
    assert score.num_stories == 5
    assert 0.3 < expected < 1.5  # the trained model knows English


def test_bad_input_is_refused(trained_model, tokenizer):
    with pytest.raises(ValueError, match="no stories"):
        score_stories(trained_model, tokenizer, [])
    with pytest.raises(ValueError, match="does not fit"):
        score_stories(trained_model, tokenizer, ["word " * 3000])


def test_a_story_longer_than_the_context_is_not_scored(tokenizer, capsys: pytest.CaptureFixture):
    """Else a run would end at its first evaluation, with nothing to show."""
    short, long = "Once upon a time.", "The cat ran home. " * 300
    assert fitting_stories([short, long], tokenizer, context=1024) == [short]
    assert "1 of 2 validation stories have more than the model's 1,024 tokens" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"1 of 1 .* give shorter ones"):
        fitting_stories([long], tokenizer, context=1024)

"""The search for an ending reads each continuation as it would be read alone, and guards it against loops."""

from random import Random

import numpy as np
import pytest
import torch

from modeling.decoder_tiny_story import open_decoder
from modeling.generation_tiny_story import COOLING, HINT, _draw, _judge
from modeling.request_tiny_story import StoryRequest
from modeling.sampling_tiny_story import log_softmax
from modeling.search_tiny_story import CANDIDATES, TOKEN_NATS, Target, _continue
from modeling.story_tiny_story import Story, Vocabulary

TEXT = "Once upon a time there was a little girl"  # "named" comes next: continuations of it part late


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["full", "int8", "auto"])
def test_shared_rows_read_what_each_continuation_would_read_alone(trained_model, vocabulary, precision: str):
    story = Story(StoryRequest(TEXT, dry_multiplier=0.0), vocabulary.encode(TEXT), TEXT, Random(3))
    prompt = [vocabulary.tokenizer.bos_token_id, *story.ids]
    decoder = open_decoder(trained_model, precision)
    logits = decoder.start([prompt]).numpy()[0]
    fork = decoder.fork([0] * CANDIDATES, room=20)
    watched = vocabulary.encode(" happy")
    ways = _continue(story, fork, logits, vocabulary, 30, watched)
    assert len({way.row for way in ways}) > 2  # they part
    assert len({tuple(way.tokens[:2]) for way in ways}) < CANDIDATES  # some of them late
    for way in ways:
        alone = open_decoder(trained_model, precision)
        read = alone.start([prompt])
        scores = [log_softmax(read[0].numpy())]
        for token in way.tokens:
            scores.append(log_softmax(alone.step([token]).numpy()[0]))
        expected = [float(row[watched[0]]) for row in scores[: len(way.first)]]
        assert [first[0] for first in way.first] == pytest.approx(expected, abs=1e-3)
        told = sum(float(row[token]) for row, token in zip(scores, way.tokens, strict=False))
        assert way.scores[-1] == pytest.approx(told + TOKEN_NATS * len(way.tokens), abs=1e-2)
        # A branch cut back to the middle of it goes on as that middle would.
        length = len(way.first) // 2
        cut = len(ways[way.row].first) - 1 - length
        branch = fork.fork([way.row], [cut], room=2).extend([watched[:1]]).numpy()[0, -1]
        alone = open_decoder(trained_model, precision)
        alone.start([[*prompt, *way.tokens[:length]]])
        assert branch == pytest.approx(alone.step(watched[:1]).numpy()[0], abs=0.1)  # bf16 in int8


@torch.inference_mode()
def test_the_guard_against_loops_reaches_the_search(trained_model, vocabulary):
    """Where the model would say a sentence a second time, a strong guard has it say another one."""
    text = 'Tom said, "I want to go to the park with my big red ball." ' * 3 + 'Tom said, "I want'
    repeats = {}
    for multiplier in (0.0, 50.0):
        story = Story(StoryRequest(text, dry_multiplier=multiplier), vocabulary.encode(text), text, Random(0))
        decoder = open_decoder(trained_model, "full")
        logits = decoder.start([[vocabulary.tokenizer.bos_token_id, *story.ids]]).numpy()[0]
        fork = decoder.fork([0] * CANDIDATES, room=20)
        ways = _continue(story, fork, logits, vocabulary, 60, [0])
        repeats[multiplier] = np.mean(["to go to the park" in way.texts[-1][len(text) :] for way in ways])
    assert repeats[0.0] > 0.5 and repeats[50.0] == 0


@pytest.mark.parametrize(
    ("probability", "start", "words", "end", "search"),
    [
        (1.2 * HINT, 20, 70, "moon", True),
        (0.8 * HINT, 20, 70, "moon", False),  # the model would not stop here
        (1.2 * HINT, 20, 60, "moon", False),  # too early
        (1.2 * HINT, 70, 70, "moon", False),  # all of it is the reader's
        (1.2 * HINT, 20, 70, None, False),  # nothing to search for
    ],
)
def test_late_in_a_story_a_hint_of_an_end_is_enough(vocabulary, probability, start, words, end, search: bool):
    text = " ".join(["word"] * words) + "."
    request = StoryRequest(" ".join(["word"] * start), end=end, max_words=100)
    story = Story(request, vocabulary.encode(text), text, Random(0))
    (drawn,) = vocabulary.encode(" It")
    logits = np.full(len(vocabulary.pieces), -np.inf, dtype=np.float32)
    logits[[drawn, vocabulary.eos]] = np.log([1 - probability, probability])
    step = _judge(story, drawn, logits, vocabulary, full=False)
    assert step == (Target("moon", final=True) if search else None)


@pytest.mark.parametrize(
    ("words", "end", "cold"),
    [
        (70, "moon", True),
        (60, "moon", False),  # too early
        (70, None, False),  # no sentence needs to close
    ],
)
def test_late_in_a_story_with_an_ending_draws_are_colder(vocabulary, words, end, cold: bool):
    """They are the draws of a story without an ending at half the temperature."""
    text = " ".join(["word"] * words) + "."

    def draws(end: str | None, temperature: float) -> list[int]:
        request = StoryRequest("word " * 20, end=end, max_words=100, temperature=temperature)
        story = Story(request, vocabulary.encode(text), text, Random(0))
        logits = np.random.default_rng(0).normal(size=len(vocabulary.pieces)).astype(np.float32) * 3
        return [_draw(story, logits, vocabulary) for _ in range(200)]

    warm, colder = draws(None, 0.8), draws(None, 0.8 * COOLING)
    assert warm != colder and draws(end, 0.8) == (colder if cold else warm)

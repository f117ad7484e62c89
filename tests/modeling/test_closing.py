"""Closings are written backwards and read forwards: what the search says of them is what the model says of them."""

import re
from random import Random

import numpy as np
import pytest
import torch

from modeling import closing_tiny_story, naming_tiny_story
from modeling.closing_tiny_story import (
    AGAIN_COST,
    BEGIN_ID,
    CLOSE_ID,
    ENOUGH,
    LEAD_TOKENS,
    PIECES_COST,
    REMEMBERED_COST,
    Target,
    _beyond_usual,
    _Closing,
    _closing_cost,
    _ends,
    _fits,
    _grow,
    _read,
    _reread,
    _spread,
    bring_in,
    ending_cost,
)
from modeling.decoder_tiny_story import open_decoder
from modeling.generation_tiny_story import COOLING, HINT, _draw, _judge
from modeling.naming_tiny_story import about, is_strange, learner_in
from modeling.request_tiny_story import StoryRequest, closes_sentence, count_words, ends_with, includes, open_quote
from modeling.sampling_tiny_story import log_softmax
from modeling.story_tiny_story import Story, Vocabulary

TEXT = "Once upon a time there was a little girl named Lily. She went to the park with her mom."


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


def a_story(vocabulary: Vocabulary, text: str = TEXT, **wishes) -> Story:
    return Story(StoryRequest(text, **wishes), vocabulary.encode(text), text, Random(3))


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["full", "int8", "auto"])
def test_a_closing_costs_what_the_model_says_alone(trained_model, vocabulary, precision: str):
    """Nats of words and leads, backwards and forwards, against one straight pass over each sequence of tokens."""
    story, target = a_story(vocabulary, end="friends"), Target("friends", final=True)
    texts = _ends(target, story)
    ends = [vocabulary.encode(text) for text in texts]
    forced = [[CLOSE_ID, vocabulary.eos, *reversed(end)] for end in ends]
    prompt = [vocabulary.bos, *story.ids]
    reader = open_decoder(trained_model, precision)
    logits = reader.start([prompt]).numpy()[0]
    opened = reader.fork([0] * len(ends), room=8)
    costs, after = _read(opened, forced)
    chosen = _spread(costs, 6)
    closings = [_Closing(ends[number], texts[number], capital=False) for number in chosen]
    _grow(closings, opened.fork(chosen, room=LEAD_TOKENS), after[chosen], target, story, Random(0), vocabulary)
    fitting = [closing for closing in closings if _fits(closing, target, story)]
    assert len(fitting) >= 3
    forward = _reread([tuple(closing.tokens) for closing in fitting], True, reader, logits, vocabulary)

    def nats(ids: list[int]) -> np.ndarray:
        """Of each token given those before it, by the model as it stands."""
        read = log_softmax(trained_model(torch.tensor([ids])).logits[0].float().numpy())
        return -read[np.arange(len(ids) - 1), ids[1:]]

    within = {"full": 1e-3, "int8": 0.5, "auto": 0.5}[precision]  # of int8 weights, a token
    for number, ids in enumerate(forced):
        assert costs[number] == pytest.approx(nats([*prompt, *ids])[-len(ids) + 1 :].sum(), abs=within * 3)
    for closing, read in zip(fitting, forward, strict=True):
        expected = nats([*prompt, *closing.tokens, vocabulary.eos])[len(prompt) - 1 :]
        assert read == pytest.approx(expected, abs=within)
        turned = [*prompt, CLOSE_ID, vocabulary.eos, *reversed(closing.end), *closing.lead, BEGIN_ID]
        assert closing.costs == pytest.approx(nats(turned)[-len(closing.costs) :], abs=within)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("text", "words"),
    [(TEXT, "happy"), (TEXT, "every day!"), (TEXT, "xylophone"), (TEXT + ' "I like', "cake"), ("Go.", "on"),
     (TEXT, "with Zoë"), (TEXT, "at the café"), (TEXT, "“home”"), (TEXT, "in the end…")],
)  # fmt: skip
def test_a_closing_closes_the_story_on_the_words(trained_model, vocabulary, text: str, words: str):
    story = a_story(vocabulary, text, end=words, max_words=count_words(text) + 12)
    tokens = bring_in(Target(words, final=True), story, open_decoder(trained_model), vocabulary)
    told = text + vocabulary.decode(tokens)
    assert ends_with(told, words) and closes_sentence(told) and count_words(told) <= count_words(text) + 12
    assert not told[len(text) :].lstrip()[0].islower() or not closes_sentence(text)
    assert not ends_with(told[: len(told) - len(words) - 1].rstrip(), words)


@torch.inference_mode()
def test_a_word_to_include_is_brought_in_and_leaves_room(trained_model, vocabulary):
    story = a_story(vocabulary, end="happy", include=["kite"], max_words=count_words(TEXT) + 9)
    tokens = bring_in(Target("kite", final=False), story, open_decoder(trained_model), vocabulary)
    told = TEXT + "".join(vocabulary.pieces[token] for token in tokens)
    assert includes(told, "kite") and count_words(told) <= count_words(TEXT) + 8


@torch.inference_mode()
@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("qualms", 'Lily learned a new word: "qualms."'),
        ("qualms!", 'Lily learned a new word: "qualms!"'),
        ("Qualms", 'Lily learned a new name: "Qualms."'),
        ("Lily", 'the girl learned a new name: "Lily."'),  # not herself
        ("grim gruff", None),  # a phrase is not a word
    ],
)
def test_a_word_without_a_use_is_named(trained_model, vocabulary, monkeypatch, words: str, named: str | None):
    monkeypatch.setattr(closing_tiny_story, "ENOUGH", -np.inf)
    monkeypatch.setattr(naming_tiny_story, "NAMINGS", naming_tiny_story.NAMINGS[:1])
    text = TEXT + " Mom saw Lily. She was sad."

    def closing(room: int) -> str:
        story = a_story(vocabulary, text, end=words, max_words=count_words(text) + room)
        tokens = bring_in(Target(words, final=True), story, open_decoder(trained_model), vocabulary)
        told = "".join(vocabulary.pieces[token] for token in tokens)
        assert ends_with(text + told, words) and closes_sentence(text + told) and count_words(told) <= room
        return told

    assert closing(20) == f" At the end of the day, {named}" if named else "learned" not in closing(20)
    assert "learned" not in closing(8)  # no room for it


@torch.inference_mode()
def test_a_strange_word_is_learnt_early_and_remembered(trained_model, vocabulary, monkeypatch):
    decoder = open_decoder(trained_model)
    monkeypatch.setattr(naming_tiny_story, "LEARNT", naming_tiny_story.LEARNT[:1])
    monkeypatch.setattr(naming_tiny_story, "REMEMBERED", naming_tiny_story.REMEMBERED[:1])
    story = a_story(vocabulary, end="qualms")
    story.strange, story.plants = True, 2

    def bring(target: Target) -> str:
        tokens = bring_in(target, story, decoder, vocabulary)
        for token in tokens:
            story.write(token, vocabulary)
        return "".join(vocabulary.pieces[token] for token in tokens)

    assert bring(Target("qualms", final=False, most=22.0)) == ' Lily had just learned a new word: "qualms."'
    assert story.num_judged <= 0 and story.learner == "Lily"  # nobody is judged by it
    for token in vocabulary.encode(" She met Tom and Tom met Tom and Tom."):
        story.write(token, vocabulary)
    assert bring(Target("qualms", final=True)) == ' And Lily never forgot the new word: "qualms."'
    assert closes_sentence(story.text) and story.closing_cost == REMEMBERED_COST < ENOUGH
    nobody = a_story(vocabulary, "It was a cold and rainy day.", end="qualms")
    nobody.strange, nobody.plants = True, 2
    assert bring_in(Target("qualms", final=False, most=22.0), nobody, decoder, vocabulary) == [] and nobody.plants == 2


@torch.inference_mode()
def test_words_that_hardly_ever_close_a_story_are_strange(trained_model, vocabulary):
    decoder = open_decoder(trained_model)
    words = ("happy", "home", "pond", "making", "giving", "qualms")
    strange = {word for word in words if is_strange(word, decoder, vocabulary)}
    assert strange == {"making", "giving", "qualms"} and not is_strange("in the pond", decoder, vocabulary)


@torch.inference_mode()
@pytest.mark.parametrize("words", ["friends", "park", "every day"])
def test_an_ending_costs_the_same_however_it_came(trained_model, vocabulary, words: str):
    """A closing sentence that was written backwards, against the same sentence in a story that holds it already."""
    text = TEXT + " They played on the swings."
    story, decoder = a_story(vocabulary, text, end=words), open_decoder(trained_model)
    for token in bring_in(Target(words, final=True), story, decoder, vocabulary):
        story.write(token, vocabulary)
    assert ending_cost(story, decoder, vocabulary) == pytest.approx(story.closing_cost, abs=0.05)


@pytest.mark.parametrize(
    ("text", "words", "more"),
    [
        (" They were happy.", "happy", 4.0 - closing_tiny_story.TOKEN_NATS),  # its stop is a surprise
        (" They liked the xylophone.", "xylophone", 4.0 - closing_tiny_story.TOKEN_NATS + PIECES_COST),
        (" They were happy and happy.", "happy", 4.0 - closing_tiny_story.TOKEN_NATS + AGAIN_COST),
        (" They lived in the big xylophone.", "the big xylophone", 4.0 - closing_tiny_story.TOKEN_NATS),
    ],
)
def test_what_makes_a_closing_dearer(vocabulary, text: str, words: str, more: float):
    """That it stops there, a word that the vocabulary has in pieces, a word that it has already."""
    forward = np.full(len(vocabulary.encode(text)) + 1, 0.5)
    forward[-2] = 4.0  # of the stop
    cost = _closing_cost(forward, [0.5], text, words, vocabulary)
    assert cost == pytest.approx(_beyond_usual(np.array([*forward, 0.5])) + more)


def test_likely_tokens_do_not_make_up_for_a_wrong_one():
    sound, wrong = np.array([2.0, 1.0, 3.0, 1.5]), np.array([*[0.01] * 20, 9.0])
    assert _beyond_usual(wrong) > _beyond_usual(sound)


@torch.inference_mode()
def test_what_costs_too_much_is_left_out(trained_model, vocabulary):
    story = a_story(vocabulary, end="happy")
    decoder = open_decoder(trained_model)
    assert bring_in(Target("tree", final=False, most=100.0), story, decoder, vocabulary)
    before = story.log_probability
    assert bring_in(Target("tree", final=False, most=-100.0), story, decoder, vocabulary) == []
    assert story.log_probability == before


def test_stops_and_spellings_that_may_end_a_story(vocabulary):
    ends = _ends(Target("happy", final=True), a_story(vocabulary))
    assert len(ends) == 12 and closes_sentence(TEXT + ends[0]) and {" happy.", ' Happy!"'} <= set(ends)
    quoted = a_story(vocabulary, TEXT + ' She said, "I am')
    assert open_quote(quoted.text) and _ends(Target("happy", final=True), quoted)[0].endswith('"')
    assert set(_ends(Target("home!", final=True), a_story(vocabulary))) == {" home!", ' home!"', " Home!", ' Home!"'}
    assert _ends(Target("Tom", final=False), a_story(vocabulary)) == [" Tom"]


def test_ends_are_tried_by_their_likelihood():
    assert _spread(np.array([0.0, 0.0]), 8) == [0] * 4 + [1] * 4
    few = _spread(np.array([1.0, 5.0, 30.0]), 16)
    assert few.count(0) > few.count(1) > 0 and few.count(2) == 0


@pytest.mark.parametrize(
    ("probability", "start", "words", "end", "closes"),
    [
        (1.2 * HINT, 20, 70, "moon", True),
        (0.8 * HINT, 20, 70, "moon", False),  # the model would not stop here
        (1.2 * HINT, 20, 60, "moon", False),  # too early
        (1.2 * HINT, 70, 70, "moon", False),  # all of it is the reader's
        (1.2 * HINT, 20, 70, None, False),  # nothing to close on
    ],
)
def test_late_in_a_story_a_hint_of_an_end_is_enough(vocabulary, probability, start, words, end, closes: bool):
    text = " ".join(["word"] * words) + "."
    request = StoryRequest(" ".join(["word"] * start), end=end, max_words=100)
    story = Story(request, vocabulary.encode(text), text, Random(0))
    (drawn,) = vocabulary.encode(" It")
    logits = np.full(len(vocabulary.pieces), -np.inf, dtype=np.float32)
    logits[[drawn, vocabulary.eos]] = np.log([1 - probability, probability])
    step = _judge(story, drawn, logits, vocabulary, room=1000)
    assert step == (Target("moon", final=True) if closes else None)


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("Lily was a girl. She ran to Tom.", "Lily"),
        ("Tom ran. Tom sat. He met Sue.", "Tom"),
        ('Wow, it was Monday. "Hi," said Mom to the little girl.', "the girl"),
        ("Mom saw Dean and the dog. She smiled. The dog ran. Then they sat.", "Dean"),
        ("Mum and Dad smiled.", "Mum"),
        ("It was a cold day.", ""),
    ],
)
def test_whom_a_story_is_about(vocabulary, text: str, who: str):
    assert about("qualms", a_story(vocabulary, text, end="qualms"), vocabulary) == who


def test_who_learnt_a_word_in_a_story_that_goes_on():
    for form in naming_tiny_story.LEARNT:
        for who in ("Tom", "the dog"):
            told = form.format(who=who, kind="word", word="qualms.")
            assert learner_in(f"It rained. {told[0].upper()}{told[1:]} It rained.", "qualms") == who
    assert learner_in('Tom had just learned a new word: "sea."', "qualms") == ""


def test_no_sentence_ends_on_a_title(vocabulary):
    """Neither a closing nor what prepares one comes after "Mr."."""
    for text, prepares in ((TEXT, True), (TEXT + " She had a bear named Mr.", False)):
        story = a_story(vocabulary, text, end="qualms", max_words=60)
        story.strange, story.plants, story.words_given = True, 2, 0
        (drawn,) = vocabulary.encode(" The")
        logits = np.full(len(vocabulary.pieces), -np.inf, dtype=np.float32)
        logits[drawn] = 0.0
        step = _judge(story, drawn, logits, vocabulary, room=1000)
        assert (isinstance(step, Target) and step.prepares) == prepares and (prepares or step is None)


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


@pytest.mark.parametrize(
    ("start", "end", "max_words", "seed"),
    [("Once upon a time", "home", 40, 30), ("Once upon a time", "mom", 40, 15873), ("She went.", "home", 6, 0)],
)
def test_a_closing_that_had_to_begin_small_gets_its_capital(tell, start: str, end: str, max_words: int, seed: int):
    story = tell(start, end=end, max_words=max_words, seed=seed)["story"]
    assert not re.search(r'[.!?]"?\s+"?[a-z]', story) and len(story.split()) <= max_words


def test_a_new_line_is_followed_by_no_blank(trained_model, vocabulary):
    story, decoder = a_story(vocabulary, TEXT + "\n", end="The End"), open_decoder(trained_model)
    with torch.inference_mode():
        tokens = bring_in(Target("The End", final=True), story, decoder, vocabulary)
    assert not vocabulary.decode(tokens)[0].isspace()


def test_near_the_contexts_end_each_word_has_a_sentence_of_its_own(tell):
    start, words = "Lily went to. " * 160, ["zebra", "tree", "umbrella"]
    told = tell(start, end="home", include=words, max_words=5000, seed=1)["story"][len(start) :]
    assert told.rstrip('."!?').endswith("home") and all(word in told for word in words)
    assert len(re.findall(r"[.!?]", told)) >= len(words)

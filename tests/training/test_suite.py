"""Bits per byte of any causal LM against the definition, token by token; long stories in windows; the table written."""

import json
import math

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.conftest import HUB_FOLDER, STORIES_FILE
from training import suite
from training.metrics import bits_per_byte


@torch.no_grad()
def brute_force(model, ids: list[int], context: int | None = None) -> float:
    """Bits of a row's tokens, each read anew after all that the windows let it see."""
    nats = 0.0
    for at in range(1, len(ids)):
        begin = 0
        if context is not None and at > context:  # the windows' rule: each ends half a context after the one before
            stop = min(len(ids), context + 1 + math.ceil((at - context) / (context // 2)) * (context // 2))
            begin = stop - context - 1
        logits = model(torch.tensor([ids[begin:at]])).logits[0, -1]
        nats -= logits.log_softmax(-1)[ids[at]].item()
    return nats / math.log(2)


def test_bits_are_those_of_the_definition(trained_model, tokenizer, stories):
    texts = [text[:200] for text in stories[:3]]
    expected = 0.0
    for text in texts:
        expected += brute_force(trained_model, [1, *tokenizer(text, add_special_tokens=False)["input_ids"], 2])
    interval = bits_per_byte(suite.story_scores(trained_model, tokenizer, texts))
    assert interval.value == pytest.approx(expected / sum(len(text.encode()) for text in texts), rel=1e-5)
    assert interval.low <= interval.value <= interval.high


@pytest.fixture
def peer(tokenizer):
    """A GPT-2 of 32 tokens' context whose tokenizer has one token for both ends of a story."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=32,
            n_embd=16,
            n_layer=2,
            n_head=2,
            initializer_range=0.5,
            bos_token_id=2,
            eos_token_id=2,
        )
    ).eval()
    one_end = PreTrainedTokenizerFast(tokenizer_file=str(HUB_FOLDER / "tokenizer.json"), eos_token="</sos>")
    return model, one_end


def test_a_story_longer_than_the_context_is_read_in_windows(peer, stories):
    model, tokenizer = peer
    text = stories[0]
    ids = [2, *tokenizer(text, add_special_tokens=False)["input_ids"], 2]
    assert len(ids) > 2 * 32
    (score,) = suite.story_scores(model, tokenizer, [text])
    assert len(score.bits) == len(ids) - 1
    assert score.total == pytest.approx(brute_force(model, ids, 32), rel=1e-4)
    with pytest.raises(ValueError, match="neither"):
        suite.story_scores(model, PreTrainedTokenizerFast(tokenizer_file=str(HUB_FOLDER / "tokenizer.json")), [text])


def test_a_blank_line_counts_as_the_one_newline_it_stands_for(trained_model, tokenizer):
    text = "One “day”.\nTwo.\nThree."
    for newline in suite.NEWLINES:
        (score,) = suite.story_scores(trained_model, tokenizer, [text], suite.Convention(newline))
        assert score.num_bytes == len(text.encode()) == score.stops[-1]
    assert suite.choose_convention(trained_model, tokenizer, [text], list(suite.NEWLINES)) == suite.OURS


def test_an_end_that_is_spelled_out_costs_all_its_tokens(peer):
    model, tokenizer = peer
    ids = [2, *tokenizer("So it went.</sos>", add_special_tokens=False, split_special_tokens=True)["input_ids"]]
    whole = [2, *tokenizer("So it went.", add_special_tokens=False)["input_ids"]]
    assert ids[: len(whole)] == whole and len(ids) > len(whole) + 1
    (score,) = suite.story_scores(model, tokenizer, ["So it went."], suite.Convention(spelled=True))
    assert len(score.bits) == len(whole) == len(score.stops) and score.stops[-1] == score.num_bytes
    assert score.total == pytest.approx(brute_force(model, ids), rel=1e-4)
    assert score.bits[-1] == pytest.approx(brute_force(model, ids) - brute_force(model, whole), rel=1e-3)


def test_how_free_stories_are_drawn_hangs_on_no_default(peer):
    model, tokenizer = peer
    told = []
    for top_k in (None, 1):
        model.generation_config.top_k = top_k
        told.append(suite.free_stories(model, tokenizer, ["She", "One day"], suite.OURS, 4.0, seed=0))
    assert told[0] == told[1]


def test_what_a_tokenizer_cannot_read_is_counted(tokenizer):
    assert suite.unread_share(tokenizer, ["every byte — é"]) == 0
    words = Tokenizer(WordLevel({"She": 0, "has": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    few = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    assert suite.unread_share(few, ["She has it"]) == 2 / 10


def test_the_command_writes_json_and_table(peer, tmp_path, capsys):
    model, tokenizer = peer
    model.save_pretrained(tmp_path / "peer")
    tokenizer.save_pretrained(tmp_path / "peer")
    data = ["--dataset", str(STORIES_FILE), "--training_dataset", str(STORIES_FILE), "--judge", str(HUB_FOLDER)]
    suite.main(["--model", str(tmp_path / "peer"), "--name", "peer", "--count", "3", "--output", str(tmp_path), *data])
    results = json.loads((tmp_path / "peer.json").read_text())
    assert results == suite.read(tmp_path)["peer"] and results["split"]["stories"] == 12
    assert set(results["stories"]) == {"generate", "real"}
    odd = {name: about["odd sentences"]["value"] for name, about in results["stories"].items()}
    assert odd["real"] < odd["generate"]
    assert results["stories"]["real"]["recited"] == 1  # the same stories stand in both data sets
    page = (tmp_path / "peer.md").read_text()
    assert page in capsys.readouterr().out
    assert suite.interval(results["bits per byte"]) in page

"""The recited share equals what a plain search finds."""

from collections.abc import Callable

import pytest

from tests.conftest import STORIES_FILE
from training.memorisation import recited_share, window_hashes


def plain(texts: list[list[int]], training: list[list[int]], window: int) -> float:
    seen = {tuple(ids[at : at + window]) for ids in training for at in range(len(ids) - window + 1)}
    ours = [tuple(ids[at : at + window]) for ids in texts for at in range(len(ids) - window + 1)]
    return sum(run in seen for run in ours) / len(ours)


def test_recited_share_is_what_a_plain_search_finds(tokenizer, stories: list[str]):
    training, others = stories[:8], stories[8:12]
    half = training[0][: len(training[0]) // 2]
    texts = [*others, training[1], half + others[0], "Short."]
    share = recited_share(texts, training, tokenizer, window=12)
    ids = [tokenizer(group, add_special_tokens=False)["input_ids"] for group in (texts, training)]
    assert share == pytest.approx(plain(*ids, window=12))
    assert 0.1 < share < 0.9
    assert recited_share([training[2]], training, tokenizer) == 1.0
    assert recited_share(others, training, tokenizer) == 0.0
    with pytest.raises(ValueError, match="no text of 50 tokens"):
        recited_share(["Short."], training, tokenizer)


def test_the_order_of_tokens_counts():
    assert len(set(window_hashes([1, 2, 3, 1, 3, 2, 2, 1, 3], 3).tolist())) == 7
    assert len(window_hashes([1, 2], 3)) == 0


def test_the_command_tells_how_much_is_recited(run_command: Callable[..., str]):
    data = ["--dataset", STORIES_FILE, "--training_dataset", STORIES_FILE]
    free, validation = run_command("training.evaluate", "recited", *data, "--count", 17).splitlines()[-2:]
    assert "17 free stories" in free and validation.startswith("100.00 %")  # here they are the training stories

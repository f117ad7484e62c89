"""Published losses are converted as stated; every model is in the table; a peer is trained, loads and is scored."""

import json
import math

import pytest
import yaml
from accelerate.state import AcceleratorState

from benchmarks import comparison
from benchmarks.train_peer import train
from tests.conftest import HUB_FOLDER, STORIES_FILE
from training.checkpoint import load_pretrained
from training.config import TrainingConfig
from training.metrics import bits_per_byte
from training.suite import story_scores

MEASURED = {
    "modern": {"parameters": 14_312_960, "bits per byte": {"value": 0.5, "low": 0.49, "high": 0.51}},
    "tiny": {"parameters": 1_000, "bits per byte": {"value": 1.5, "low": 1.4, "high": 1.6}},
}


def test_a_loss_is_converted_by_its_tokenizers_rate():
    # A model that gives every byte 1/256 has 8 bits a byte, whatever its tokens: here 4 bytes a token.
    assert comparison.convert(4 * math.log(256), 0.25) == pytest.approx(8)


def test_every_model_is_in_the_table(tmp_path):
    published = yaml.safe_load(comparison.PUBLISHED.read_text())
    found = comparison.rows(MEASURED, published)
    assert [row["bits"] for row in found] == sorted(row["bits"] for row in found)
    page = comparison.page(found)
    seen = f"{published['seen']['modern'] / 1e6:.0f} MB"
    for name in [*MEASURED, *(one["name"] for one in published["published"])]:
        assert f"| {name} |" in page or f"| **{name}** |" in page
    assert f"| **modern** | 14,312,960 | 0.5000 [0.4900–0.5100] | {seen} | [measured](modern.md) |" in page
    assert "| CS336 target on a CPU | 22,700,000 | ≈ 0.71 | 167 MB | converted: CS336 A1, 2.0 nats a token |" in page
    comparison.draw(found, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("peer", ["gpt2", "llama"])
def test_a_peer_is_trained_and_scored_like_any_model(tmp_path, stories, peer):
    training = tmp_path / "train.jsonl"
    training.write_text("".join(json.dumps({"text": f"{text} So it went."}) + "\n" for text in stories))
    config = TrainingConfig(
        tokenizer=str(HUB_FOLDER), dataset=[str(training)], validation_dataset=str(STORIES_FILE), num_steps=3,
        output_dir=str(tmp_path / peer), batch_rows=2, micro_batch_rows=2, row_length=64, warmup_steps=1, adam_lr=1e-2,
        model={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    )  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)  # another test's precision
    score = train(config, peer, compiled=False)
    lines = [json.loads(line) for line in (tmp_path / peer / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["bits_per_byte"] == score
    again = bits_per_byte(story_scores(*load_pretrained(str(tmp_path / peer)), stories))
    assert again.value == pytest.approx(score, rel=1e-4)

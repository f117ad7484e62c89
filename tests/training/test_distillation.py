"""What teachers add to the loss is what cross-entropy with the mixed target says, token by token."""

from pathlib import Path

import pytest
import torch

from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM
from tests.conftest import RECIPES, large_init
from training.closings import BEGIN_ID, CLOSE_ID
from training.config import TrainingConfig
from training.data import IGNORED
from training.distillation import Teachers, after_close, load_teachers

# Two documents and padding; the second one has a sentence turned round.
INPUT_IDS = torch.tensor(
    [[1, 20, 21, 22, 1, 30, CLOSE_ID, 31, 32, BEGIN_ID, 33, 0], [1, 40, 41, 42, 43, 44, 2, 1, 50, 51, 2, 0]]
)
POSITION_IDS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 0], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 0]])
LABELS = torch.where((INPUT_IDS == 0) | (POSITION_IDS == 0) | (INPUT_IDS == CLOSE_ID), IGNORED, INPUT_IDS)


def model(seed: int) -> TinyStoryForCausalLM:
    torch.manual_seed(seed)
    made = TinyStoryForCausalLM(TinyStoryConfig(**RECIPES["modern"])).eval()
    large_init(made, std=0.1 + 0.1 * seed)
    return made


def test_after_close_is_a_document_from_its_first_close_on():
    expected = torch.zeros_like(INPUT_IDS, dtype=torch.bool)
    for row, (ids, positions) in enumerate(zip(INPUT_IDS.tolist(), POSITION_IDS.tolist(), strict=True)):
        closed = False
        for at, (token, position) in enumerate(zip(ids, positions, strict=True)):
            closed = (closed and position > 0) or token == CLOSE_ID
            expected[row, at] = closed
    assert expected.any() and torch.equal(after_close(INPUT_IDS, POSITION_IDS), expected)


def test_the_loss_with_teachers_is_cross_entropy_with_the_mixed_target():
    student, first, second = model(1), model(2), model(3)
    teachers = Teachers([first, second], [2, 1], share=0.7)
    outputs = student(
        input_ids=INPUT_IDS, position_ids=POSITION_IDS, labels=LABELS, num_items_in_batch=10, use_cache=False
    )
    loss = outputs.loss + teachers.added_loss(outputs.logits, INPUT_IDS, POSITION_IDS, LABELS, 10)

    said = [
        one(input_ids=INPUT_IDS, position_ids=POSITION_IDS, use_cache=False).logits.softmax(-1)
        for one in (first, second)
    ]
    mean = (2 * said[0] + said[1]) / 3
    closed = after_close(INPUT_IDS, POSITION_IDS)
    expected = torch.zeros(())
    for row in range(2):
        for at in range(INPUT_IDS.shape[1] - 1):
            label = int(LABELS[row, at + 1])
            if label == IGNORED:
                continue
            target = torch.nn.functional.one_hot(torch.tensor(label), 99).float()
            if not closed[row, at]:
                target = 0.3 * target + 0.7 * mean[row, at]
            expected = expected - (target * outputs.logits[row, at].log_softmax(-1)).sum() / 10
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() != pytest.approx(outputs.loss.item(), rel=1e-2)


def test_teachers_do_not_learn():
    teachers = Teachers([model(2)], [1], share=1.0)
    student = model(1)
    logits = student(input_ids=INPUT_IDS, position_ids=POSITION_IDS, use_cache=False).logits
    teachers.added_loss(logits, INPUT_IDS, POSITION_IDS, LABELS, 10).backward()
    assert all(weight.grad is None for weight in teachers.parameters())
    assert any(weight.grad is not None for weight in student.parameters())


def test_a_folder_named_twice_counts_twice(tokenizer, tmp_path: Path):
    for name in ("a", "b"):
        config = TinyStoryConfig(**RECIPES["modern"] | {"vocab_size": len(tokenizer)})
        TinyStoryForCausalLM(config).save_pretrained(tmp_path / name)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    teachers = load_teachers([a, b, a], tokenizer, "sdpa", 0.5, compiled=False)
    assert len(teachers.models) == 2 and teachers.weights == pytest.approx([2 / 3, 1 / 3])


def test_teachers_that_cannot_teach_are_refused(tokenizer, tmp_path: Path):
    with pytest.raises(ValueError, match="teachers /nowhere"):
        load_teachers(["/nowhere"], tokenizer, "sdpa", 0.5, compiled=False)
    model(2).save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="99 tokens, the student's tokenizer has 5000"):
        load_teachers([str(tmp_path / "small")], tokenizer, "sdpa", 0.5, compiled=False)
    with pytest.raises(ValueError, match="teachers_share must be between 0 and 1"):
        TrainingConfig("runs/x", teachers_share=1.5)

"""Teachers and their student: what is packed, what is learnt, and that the command makes a model that tells."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from tests.conftest import STORIES_FILE
from training import flagship
from training.checkpoint import load_pretrained
from training.config import TrainingConfig
from training.data import IGNORED
from training.flagship import mean_probabilities, summed_nats, taught_nats
from training.passes import Packer, on_device
from training.train import build_model, build_model_config

DEVICE = torch.device("cpu")
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "use_bias": False,
    "position_type": "rope", "norm_type": "rmsnorm", "norm_position": "pre", "hidden_act": "swiglu",
    "tie_word_embeddings": True,
}  # fmt: skip
RUN: dict[str, Any] = {
    "output_dir": "-", "model": SMALL, "dropout": 0.0, "row_length": 256, "batch_rows": 2, "warmup_steps": 3,
    "whole_stories": True, "wishes_share": 0.5, "closings_share": 0.5, "teachers_share": 0.7,
}  # fmt: skip


@pytest.fixture
def packer(tokenizer: PreTrainedTokenizerFast, stories: list[str]) -> Packer:
    return Packer(
        ThreadPoolExecutor(1), stories, ["story"] * len(stories), row_length=256, wishes_share=0.5, closings_share=0.0,
        backend=tokenizer.backend_tokenizer.to_str(), bos=1, eos=2, whole_stories=True,
    )  # fmt: skip


def test_a_plain_pass_holds_every_story_and_each_target_is_the_next_token(
    packer: Packer, tokenizer: PreTrainedTokenizerFast, stories: list[str]
):
    rows = on_device(packer.submit(stories, ["story"] * len(stories), "", wishes_share=0.0), DEVICE)
    found = []
    for batch in rows.batches(1, seed=3):
        ids, targets = batch["input_ids"][0], batch["targets"][0]
        scored = targets != IGNORED
        assert torch.equal(targets[:-1][scored[:-1]], ids[1:][scored[:-1]])
        starts = [*(batch["position_ids"][0] == 0).nonzero()[:, 0].tolist(), len(ids)]
        for start, stop in pairwise(starts):
            assert not scored[stop - 1]  # another document's beginning follows
            if ids[start] == tokenizer.bos_token_id:
                assert scored[start : stop - 1].all()
                found.append(tokenizer.decode(ids[start:stop], skip_special_tokens=True))
    assert sorted(found) == sorted(stories)


def test_each_pass_is_drawn_anew_and_tells_written_stories_apart(packer: Packer, stories: list[str]):
    first, second = packer.next(DEVICE, []), packer.next(DEVICE, stories[:3])
    assert not first.written.any() and 0 < second.written.sum() < len(second.written)
    assert not torch.equal(first.input_ids, second.input_ids[: len(first.input_ids)])


def test_taught_targets_are_the_mix_of_tokens_and_teachers():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3, 5, 8, generator=generator), torch.randn(11, 8, generator=generator)
    targets = torch.randint(0, 11, (3, 5), generator=generator)
    targets[0, 2] = IGNORED
    heard = [(torch.randn(3, 5, 4, generator=generator), torch.randn(11, 4, generator=generator)) for _ in range(2)]
    said = mean_probabilities(*zip(*heard, strict=True))
    share = torch.tensor([[0.0], [0.7], [1.0]])
    expected = torch.zeros(())
    for row in range(3):
        for at in range(5):
            if targets[row, at] != IGNORED:
                mixed = share[row] * sum((h[row, at] @ w.T).softmax(-1) for h, w in heard) / 2
                mixed[targets[row, at]] += 1 - share[row, 0]
                expected += cross_entropy(hidden[row, at] @ weight.T, mixed)
    torch.testing.assert_close(taught_nats(hidden, weight, targets, said, share), expected)
    alone = taught_nats(hidden, weight, targets, said, torch.zeros(3, 1))
    torch.testing.assert_close(summed_nats(hidden, weight, targets), alone)


@pytest.mark.slow
def test_the_command_trains_teachers_and_a_student_that_tells(
    run_command: Callable[..., str], tmp_path: Path, long_stories: Path
):
    for name in ("teacher", "student"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(RUN))
    AcceleratorState._reset_state(reset_partial_state=True)  # another test's precision
    said = run_command(
        "training.flagship", "--output_dir", tmp_path / "run", "--dataset", long_stories, "--validation_dataset",
        Path(__file__).parent.parent / "stories.jsonl", "--teacher", tmp_path / "teacher.yaml", "--student",
        tmp_path / "student.yaml", "--num_teachers", 2, "--teacher_minutes", 0.02, "--student_minutes", 0.03,
        "--packers", 1, "--attention", "packed_documents",
    )  # fmt: skip
    if not torch.cuda.is_available():
        assert "attention sdpa because" in said
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scores = {line["run"]: line["bits_per_byte"] for line in log if "bits_per_byte" in line and "step" in line}
    untrained = next(line["bits_per_byte"] for line in log if line.get("run") == "student" and "written" in line)
    assert scores.keys() == {"teacher 0", "teacher 1", "student"} and max(scores.values()) < untrained
    model, tokenizer = load_pretrained(str(tmp_path / "run" / "model"))
    assert model.config.hidden_size == 32 and len(tokenizer) == model.config.vocab_size


def test_teachers_and_student_read_the_same_rows(
    tmp_path: Path, run_command: Callable[..., str], capsys: pytest.CaptureFixture
):
    for name, share in (("teacher", 0.5), ("student", 0.25)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(RUN | {"wishes_share": share}))
    with pytest.raises(SystemExit):
        run_command(
            "training.flagship", "--output_dir", tmp_path / "run", "--dataset", "x.txt", "--validation_dataset",
            "y.txt", "--teacher", tmp_path / "teacher.yaml", "--student", tmp_path / "student.yaml",
        )  # fmt: skip
    assert "wishes_share is 0.5" in (said := capsys.readouterr().err) and "0.25" in said


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_teachers", 0, "num_teachers must be at least 1, got 0"),
        ("num_teachers", 1.5, "invalid int value: '1.5'"),
        ("teacher_minutes", 0, "teacher_minutes must be above 0 and finite, got 0.0"),
        ("student_minutes", "nan", "student_minutes must be above 0 and finite, got nan"),
        ("packers", 0, "packers must be at least 1, got 0"),
        ("writers", -1, "writers must be at least 0, got -1"),
        ("writers", 1, "init_from"),
        ("attention", "spda", "got 'spda'"),
    ],
)
def test_fields_that_make_no_sense_are_refused_before_any_work(
    tmp_path: Path, run_command: Callable[..., str], capsys: pytest.CaptureFixture, name: str, value, message: str
):
    with pytest.raises(SystemExit):
        run_command(
            "training.flagship", "--output_dir", tmp_path / "run", "--dataset", "x.txt", "--validation_dataset",
            "y.txt", f"--{name}", value,
        )  # fmt: skip
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("validation", "message"),
    [(None, "no story to train on, 12 of 12 left out"), ("\u0007", "validation.jsonl: no stories in it")],
)
def test_nothing_to_train_or_to_validate_on_is_refused(
    tmp_path: Path, run_command: Callable[..., str], capsys: pytest.CaptureFixture, validation: str | None, message: str
):
    path = tmp_path / "validation.jsonl"
    path.write_text(json.dumps({"text": validation}) if validation else STORIES_FILE.read_text())
    with pytest.raises(SystemExit):
        run_command(
            "training.flagship", "--output_dir", tmp_path / "run", "--dataset", STORIES_FILE, "--validation_dataset",
            path,
        )  # fmt: skip
    assert message in capsys.readouterr().err


def test_too_many_documents_are_refused_where_attention_has_no_room(
    tmp_path: Path, packer: Packer, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(flagship, "SCORED_ROWS", 4)
    AcceleratorState._reset_state(reset_partial_state=True)  # another test's precision
    trainer = flagship.Trainer(tmp_path, "no", tokenizer, packer, flagship.Log(tmp_path / "log.jsonl"))
    trainer.validate_on([f"Go {number}!" for number in range(200)])
    run = TrainingConfig(**RUN)
    model = build_model(run, build_model_config(run, tokenizer)).to(trainer.device)
    rows = on_device(trainer.validation[200], trainer.device)
    trainer.check(rows, 2, [model])
    assert trainer.score([model]) > 0
    model.set_attn_implementation("packed_documents")
    for refused, found in ((lambda: trainer.check(rows, 2, [model]), 2), (lambda: trainer.score([model]), 4)):
        with pytest.raises(ValueError, match=rf"a batch of {found} rows may hold {8 * found}, .* might hold \d\d"):
            refused()
    assert trainer.usable_attention("packed_documents", run) == "sdpa"
    assert "might hold" in (tmp_path / "log.jsonl").read_text()

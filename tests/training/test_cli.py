"""A reader's mistake ends every command with one line and exit code 2; a fault of the program keeps its traceback."""

import json
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import benchmarks.ablations
import benchmarks.card
import benchmarks.comparison
import benchmarks.llama2c
import benchmarks.page_load
import benchmarks.speed
import benchmarks.train_peer
import benchmarks.training_speed
import training.average
import training.biases
import training.coherence
import training.evaluate
import training.export
import training.publish
import training.report
import training.tokenizer
import training.train
from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM
from tests.conftest import HUB_FOLDER, STORIES_FILE
from tests.training.test_train import TINY_MODEL, fields, train, train_here
from training.checkpoint import save_pretrained
from training.config import parse_config


@pytest.fixture
def error_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., str]:
    """What a command says before it ends with exit code 2."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    AcceleratorState._reset_state(reset_partial_state=True)

    def error_of(command: Callable[[], None], *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command()
        assert ended.value.code == 2
        *before, line = capfd.readouterr().err.splitlines()
        assert line.startswith("error: ") and not any("Traceback" in other for other in before)
        return line.removeprefix("error: ")

    return error_of


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_steps": "many"}, "invalid int value: 'many'"),
        ({"num_stories": 3}, "command line: unknown field 'num_stories'; did you mean 'num_steps'?"),
        ({"adam_lr": 0}, "adam_lr and embedding_lr must be above 0"),
        ({"validation_dataset": "", "batch_rows": 4000}, "fewer than batch_rows"),
        ({"dataset": "nowhere.parquet"}, "nowhere.parquet: no such file"),
        ({"validation_dataset": "no/such/folder"}, "no/such/folder: no such file"),
        ({"row_length": 4096}, "above max_position_embeddings"),
        ({"mixed_precision": "int3"}, "mixed_precision must be"),
        ({"wishes_share": 2}, "wishes_share must be between 0 and 1, got 2"),
        ({"report_to": "nowhere"}, "report_to must be one of none"),
        ({"tokenizer": "no/tokenizer/here"}, "tokenizer no/tokenizer/here: "),
        ({"model": "{"}, "argument --model: "),
        ({"model": '{"hidden_sizes": 8}'}, "model: unknown field 'hidden_sizes'; did you mean 'hidden_size'?"),
        ({"model": '{"hidden_size": 30, "num_attention_heads": 4}'}, "must equal hidden_size (30)"),
        ({"attention": "none"}, "attention none: "),
        ({"attention": "packed_documents"}, "attention packed_documents is for training.flagship only"),
        ({"model": '{"vocab_size": 100}'}, "vocab_size (100) is below the tokenizer's 5000 tokens"),
        ({"row_length": 1}, "row_length must be at least 2"),
        ({"dataset": ""}, "expected a file, folder, pattern or Hub name"),
        ({"init_from": str(HUB_FOLDER)}, "hidden_size is 384, this run's model has 32"),
        ({"init_from": str(HUB_FOLDER), "model": "{}"}, "fc.bias is None, for this model it must be (5000,)"),
        ({"seed": -1}, "seed must be between 0 and 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be between 0 and 4294967295, got 4294967296"),
        ({"dropout": 1.5}, "dropout must be at least 0 and below 1, got 1.5"),
        ({"weight_decay": -1}, "weight_decay must be at least 0, got -1"),
        ({"weight_decay": "nan"}, "weight_decay must be at least 0, got nan"),
        ({"warmup_steps": -3}, "warmup_steps must be at least 0, got -3"),
        ({"model": 5}, "model must map fields of TinyStoryConfig to values, got 5"),
        ({"validation_share": 1, "validation_dataset": ""}, "validation_share must be above 0 and below 1, got 1"),
        ({"streaming": True, "validation_dataset": ""}, "a stream needs a validation_dataset"),
        ({"dataset": STORIES_FILE}, "no story to train on, 12 of 12 left out, they stand in the validation split"),
    ],
)
def test_training_says_what_is_wrong(error_of, tmp_path: Path, stories: list[str], changes: dict, message: str):
    other = tmp_path / "others.txt"
    other.write_text("\n<|endoftext|>\n".join(f"{story} {number}." for number, story in enumerate(stories)))
    changes = {"dataset": other, "validation_dataset": STORIES_FILE} | changes
    assert message in error_of(training.train.main, *fields(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"), ("output_dir: [", "no YAML"), ("- a", "expected a mapping"),
        ("num_step: 3", "unknown field 'num_step'; did you mean 'num_steps'?"),
        ("num_steps: [3]", "num_steps must be int, got [3]"), ("num_steps: 1.5", "num_steps must be int, got 1.5"),
        ("dataset: {a: b}", "dataset must be list"), ("dropout: true", "dropout must be float, got True"),
        ("dataset: [1]", "dataset must be a list of texts, got [1]"),
    ],
)  # fmt: skip
def test_a_configuration_file_is_checked(error_of, tmp_path: Path, text: str | None, message: str):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    line = error_of(training.train.main, "--config", path, "--output_dir", tmp_path / "run")
    assert message in line and "run.yaml" in line


def test_model_fields_go_over_those_of_the_file(tmp_path: Path):
    path, given = tmp_path / "run.yaml", ["--model", '{"num_hidden_layers": 4, "use_bias": false}']
    merged = {"hidden_size": 64, "num_hidden_layers": 4, "use_bias": False}
    for written in ("{hidden_size: 64, num_hidden_layers: 7}", """'{"hidden_size": 64, "num_hidden_layers": 7}'"""):
        path.write_text(f"output_dir: here\nmodel: {written}\n")
        assert parse_config(["--config", str(path), *given]).model == merged
        assert parse_config(["--config", str(path)]).model == {"hidden_size": 64, "num_hidden_layers": 7}
    assert parse_config(["--output_dir", "here", *given]).model == {"num_hidden_layers": 4, "use_bias": False}


@pytest.mark.parametrize("arguments", ["read make --real 500", "surprise --count 500"])
def test_real_stories_are_counted_before_any_is_told(error_of, monkeypatch: pytest.MonkeyPatch, arguments: str):
    monkeypatch.setattr(training.evaluate, "write", None)
    monkeypatch.chdir(HUB_FOLDER.parent)
    data = ["--dataset", STORIES_FILE, "--training_dataset", STORIES_FILE]
    assert "500 real stories asked for, only" in error_of(training.evaluate.main, *arguments.split(), *data)


def test_every_command_says_what_is_wrong(error_of, tmp_path: Path):
    nowhere = tmp_path / "nowhere"
    evaluate, average = training.evaluate.main, training.average.main
    assert error_of(evaluate, "bits") == "the following arguments are required: --dataset"
    assert "nowhere.txt: no such file" in error_of(evaluate, "bits", "--dataset", f"{nowhere}.txt")
    assert f"model {nowhere}: " in error_of(evaluate, "bits", "--dataset", STORIES_FILE, "--model", nowhere)
    assert "invalid choice: 'bit'" in error_of(evaluate, "bit")
    assert f"model {nowhere}: " in error_of(average, nowhere, nowhere, "--to", tmp_path / "mean")
    assert "two models or more" in error_of(average, nowhere, "--to", tmp_path / "mean")
    assert f"model {nowhere}: " in error_of(training.export.main, "--to", "gguf", "--model", nowhere, tmp_path / "x")
    assert '--repo must be "user/name"' in error_of(training.publish.main, "--repo", "name", "--dry-run")
    tokenizer = training.tokenizer.main
    assert error_of(tokenizer, "--dataset", STORIES_FILE) == "the following arguments are required: --output"
    assert "nowhere.txt: no such file" in error_of(tokenizer, "--dataset", f"{nowhere}.txt", "--output", nowhere)
    assert "no runs here" in error_of(benchmarks.ablations.main, "report", "--output_dir", nowhere)


@pytest.mark.parametrize("fault", [ValueError, TypeError, RuntimeError, KeyError])
def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, fault: type[Exception]):
    def faulty(*arguments: object) -> None:
        if fault is ValueError:
            _, _ = "one"  # nobody's `raise`
        raise fault("inside")

    monkeypatch.setattr(training.evaluate, "load_texts", faulty)
    monkeypatch.setattr(sys, "argv", ["evaluate", "bits", "--dataset", str(STORIES_FILE)])
    with pytest.raises(fault):
        training.evaluate.main()


def test_an_interrupted_command_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.evaluate, "load_texts", interrupt)
    monkeypatch.setattr(sys, "argv", ["evaluate", "bits", "--dataset", str(STORIES_FILE)])
    with pytest.raises(SystemExit) as ended:
        training.evaluate.main()
    assert ended.value.code == 130 and capsys.readouterr().err == "\ninterrupted; run the same command again\n"


def test_under_accelerate_launch_one_line_is_all(tmp_path: Path):
    done = train(tmp_path / "run", dataset="nowhere.parquet", validation_dataset=STORIES_FILE)
    assert done.returncode == -signal.SIGTERM
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: nowhere.parquet: no such file"


def test_one_file_is_enough_to_train_and_to_judge(monkeypatch, capsys, tmp_path: Path, stories: list[str]):
    path = tmp_path / "mine.txt"
    path.write_text("\n\n".join(stories))
    changes = {"dataset": path, "validation_dataset": "", "validation_share": 0.1, "num_steps": 2}
    done = train_here(tmp_path / "run", **changes)
    assert done.returncode == 0, done.stderr
    assert f"{path}: 12 stories, parted by blank lines" in done.stdout
    assert "11 stories to train on (1 of 12 left out, they stand in the validation split)" in done.stdout
    assert "1 validation stories" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    score = next(line["bits_per_byte"] for line in lines if "bits_per_byte" in line)
    command = ["bits", "--dataset", path, "--validation_share", 0.1, "--model", tmp_path / "run/model"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, command)])
    training.evaluate.main()
    assert float(capsys.readouterr().out.splitlines()[-1].split()[0]) == pytest.approx(score, abs=0.02)  # bf16


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a GPT-2, without a tokenizer, with ours, and with ours but fewer tokens; one of our model without a
    tokenizer; and a file that is no key."""
    folder = tmp_path_factory.mktemp("foreign")
    TinyStoryForCausalLM(TinyStoryConfig(**TINY_MODEL)).save_pretrained(folder / "ours")
    for name, size in (("bare", 5000), ("gpt2", 5000), ("small", 300)):
        config = GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=1, n_head=2)
        GPT2LMHeadModel(config).save_pretrained(folder / name)
        if name != "bare":
            AutoTokenizer.from_pretrained(HUB_FOLDER).save_pretrained(folder / name)
    (folder / "key.json").write_text('{"pairs": 3}')
    (folder / "grades.jsonl").write_text("")
    (folder / "pairs.json").write_text('{"kind": "pairs", "entries": []}')
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (training.evaluate, "bits --model {bare} --dataset {stories}", "bare: there is no tokenizer beside it"),
        (training.evaluate, "bits --model {ours} --dataset {stories}", "ours: there is no tokenizer beside it"),
        (training.export, "--to qwen3 q --model {ours}", "ours: there is no tokenizer beside it"),
        (training.evaluate, "bits --model {small} --dataset {stories}", "its tokenizer has 5000 tokens, the model 300"),
        (training.evaluate, "stories --model {gpt2}", "gpt2 is a GPT2LMHeadModel, expected a TinyStoryForCausalLM"),
        (training.export, "--to qwen3 q --model {gpt2}", "gpt2 is a GPT2LMHeadModel, expected a TinyStoryForCausalLM"),
        (training.biases, "--dataset {stories} --model {gpt2}", "expected a TinyStoryForCausalLM"),
        (training.biases, "--dataset nope.csv", "nope.csv: no such file"),
        (training.biases, "--dataset {stories} --output {stories}", "is no folder"),
        (training.coherence, "--dataset {stories} --output .", "--output . is a folder, expected a file"),
        (training.coherence, "--dataset {stories} --count 0", "argument --count: must be at least 1, got 0"),
        (training.evaluate, "stories --count -3", "argument --count: must be at least 1, got -3"),
        (training.evaluate, "suite --name a/b --dataset x --training_dataset x", "--name becomes a file's"),
        (training.evaluate, "suite --name biases --dataset x --training_dataset x", "not README, biases, measures"),
        (training.evaluate, "read tally --key {key.json} --grades {grades.jsonl}", "is no key of a reading"),
        (training.evaluate, "read tally --key {stories} --grades {grades.jsonl}", "Extra data"),
        (
            training.evaluate,
            "read tally --key {pairs.json} --grades {grades.jsonl} --output {grades.jsonl}",
            "is read here, and would be lost",
        ),
        (
            training.evaluate,
            "surprise --dataset x --training_dataset x --judges modeling/classic --key {pairs.json}",
            "is the key of a sheet of pairs, expected one of stories",
        ),
        (training.report, "draw --names modern_11", "--names needs the figure's path before it"),
        (training.report, "add nowhere.jsonl --name x", "No such file"),
        (benchmarks.speed, "--rounds 0", "argument --rounds: must be at least 1, got 0"),
        (benchmarks.training_speed, "--rows 0", "argument --rows: must be at least 1, got 0"),
        (benchmarks.training_speed, "--attention nope", "attention nope: "),
        (benchmarks.page_load, "--readers 0", "argument --readers: must be at least 1, got 0"),
        (benchmarks.train_peer, "bert --output_dir x", "invalid choice: 'bert'"),
        (benchmarks.llama2c, "nowhere.bin nowhere.tok x", "No such file"),
        (benchmarks.card, "--all", "unrecognized arguments: --all"),
        (benchmarks.comparison, "--all", "unrecognized arguments: --all"),
    ],
)
def test_a_mistake_is_said_before_any_work(error_of, foreign, monkeypatch, command, arguments: str, message: str):
    monkeypatch.chdir(HUB_FOLDER.parent)
    places = foreign | {"stories": str(STORIES_FILE)}
    given = [places[word[1:-1]] if word.startswith("{") else word for word in arguments.split()]
    assert message in error_of(command.main, *given)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (training.average, "modeling modeling --to {target}"),
        (training.export, "--to qwen3 {target}"),
        (training.export, "--to gguf {target}"),
    ],
)
def test_what_a_full_disk_cuts_short_is_removed(error_of, monkeypatch, tmp_path: Path, command, arguments: str):
    monkeypatch.chdir(HUB_FOLDER.parent)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        line = error_of(command.main, *arguments.format(target=tmp_path / "new").split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert line.startswith(f"{tmp_path / 'new'} could not be written (") and "make room and try again" in line
    assert not (tmp_path / "new").exists()


def test_weights_that_were_cut_short_are_named(error_of, tokenizer, tmp_path: Path):
    save_pretrained(TinyStoryForCausalLM(TinyStoryConfig(**TINY_MODEL)), tokenizer, tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    line = error_of(training.evaluate.main, "bits", "--model", tmp_path / "cut", "--dataset", STORIES_FILE)
    assert line.startswith(f"model {tmp_path / 'cut'}: ")

"""The training program as users run it: it learns, resumes, runs on two processes, and refuses nonsense."""

import errno
import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState
from filelock import FileLock
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing import event_accumulator
from transformers import AutoTokenizer

import training.train
from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM
from tests.conftest import HUB_FOLDER, ROOT, STORIES_FILE
from training.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_pretrained,
    load_state,
    save_checkpoint,
    save_pretrained,
    save_released,
)
from training.config import TrainingConfig, parse_config, refuse_other_config
from training.optimizer import build_optimizers, learning_rate_factor

TINY_MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
SETTINGS = {
    "dataset": str(STORIES_FILE), "validation_dataset": "", "tokenizer": str(HUB_FOLDER),
    "model": json.dumps(TINY_MODEL), "row_length": 64, "batch_rows": 4, "micro_batch_rows": 2, "num_steps": 12,
    "warmup_steps": 2, "evaluate_every": 6, "save_every": 4, "mixed_precision": "no", "dropout": 0.1,
}  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def fields(run_dir: Path, **changes: object) -> list[str]:
    settings = SETTINGS | {"output_dir": run_dir} | changes
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def command(run_dir: Path, launch: str = "accelerate", **changes: object) -> list[str]:
    """The program on one process by `accelerate launch`, or on two, with whole ("ddp") or sharded ("fsdp2") weights."""
    program = ROOT / ("tests/training/sharded.py" if launch == "fsdp2" else "training/train.py")
    if launch == "accelerate":
        launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    else:  # on processors, `accelerate launch` starts one process whatever it is told
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [sys.executable, "-m", *launcher, str(program), *fields(run_dir, **changes)]


def train(run_dir: Path, launch: str = "accelerate", **changes: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(run_dir, launch, **changes), capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )


def train_here(run_dir: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    """As `train`, in this process: for what needs none of its own."""
    arguments, code, threads = fields(run_dir, **changes), 0, torch.get_num_threads()
    AcceleratorState._reset_state(reset_partial_state=True)
    with (
        redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as errors,
        patch.dict(os.environ, ACCELERATE_USE_CPU="true"), patch.object(sys, "argv", ["train.py", *arguments]),
    ):  # fmt: skip
        torch.set_num_threads(1)
        try:
            training.train.main()
        except SystemExit as ended:
            code = ended.code
        finally:
            torch.set_num_threads(threads)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), errors.getvalue())


def losses(run_dir: Path) -> list[float]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "validation.jsonl"
    path.write_text(json.dumps({"text": "A hen had a hat. It was red. The hen was glad."}) + "\n")
    return path


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, validation: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("straight")
    done = train(run_dir, validation_dataset=validation)
    assert done.returncode == 0, done.stderr
    return run_dir


def test_a_run_learns_and_leaves_everything(straight: Path):
    values = losses(straight)
    assert len(values) == 12 and values[-1] < values[0] - 0.5
    for name in ("config.yaml", "metrics.jsonl", "loss.png", "samples.txt"):
        assert (straight / name).stat().st_size > 0
    for name in ("config.json", "model.safetensors", "tokenizer.json", "modeling_tiny_story.py"):
        assert (straight / "model" / name).is_file()
    scores = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines() if "bits" in line]
    assert [score["step"] for score in scores] == [6, 12]


def test_a_killed_run_resumes_to_the_same_weights(straight: Path, tmp_path: Path, validation: Path):
    process = subprocess.Popen(
        [sys.executable, ROOT / "training/train.py", *fields(tmp_path, validation_dataset=validation)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list_checkpoints(tmp_path / "checkpoints"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "model").exists()
    done = train_here(tmp_path, validation_dataset=validation)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stdout
    assert losses(tmp_path) == losses(straight)
    ours, theirs = (
        load_file(latest_checkpoint(run / "checkpoints") / "model.safetensors") for run in (tmp_path, straight)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_evaluation_that_was_cut_off_is_made_up_for(straight: Path, tmp_path: Path, validation: Path):
    run_dir = tmp_path / straight.name
    shutil.copytree(straight, run_dir, ignore=shutil.ignore_patterns("model"))
    lines = (straight / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "bits_per_byte" in lines[-1]
    (run_dir / "metrics.jsonl").write_text("".join(lines[:-1]))
    done = train_here(run_dir, validation_dataset=validation)
    assert done.returncode == 0, done.stderr
    assert (run_dir / "metrics.jsonl").read_text() == "".join(lines)
    assert (run_dir / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("changed", ["training", "validation"])
def test_a_run_does_not_go_on_with_other_stories_under_the_same_name(
    straight: Path, tmp_path: Path, validation: Path, changed: str
):
    run_dir = tmp_path / straight.name
    shutil.copytree(straight, run_dir)
    files = {"training": tmp_path / STORIES_FILE.name, "validation": tmp_path / validation.name}
    for file, source in zip(files.values(), (STORIES_FILE, validation), strict=True):
        shutil.copy(source, file)
    state_file = latest_checkpoint(run_dir / "checkpoints") / "training_state.pt"
    state = torch.load(state_file)
    names = {"dataset": [str(files["training"])], "validation_dataset": str(files["validation"])}
    torch.save(state | {"config": state["config"] | names}, state_file)
    sums = json.loads((state_file.parent / "checksums.json").read_text())
    sums[state_file.name] = hashlib.sha256(state_file.read_bytes()).hexdigest()
    (state_file.parent / "checksums.json").write_text(json.dumps(sums))
    assert train_here(run_dir, **names | {"dataset": files["training"]}).returncode == 0
    with files[changed].open("a") as file:
        file.write(json.dumps({"text": "A fox sat in the box. It was glad."}) + "\n")
    done = train_here(run_dir, **names | {"dataset": files["training"]})
    assert done.returncode == 2 and f"began with other {changed} stories" in done.stderr


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, validation: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("one")
    done = train_here(run_dir, validation_dataset=validation, dropout=0.0, num_steps=6)
    assert done.returncode == 0, done.stderr
    assert "1 process\n" in done.stdout
    return run_dir


@pytest.fixture(scope="module", params=[pytest.param(kind, marks=pytest.mark.slow) for kind in ("ddp", "fsdp2")])
def two_processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, validation: Path) -> Path:
    run_dir = tmp_path_factory.mktemp(request.param)
    done = train(run_dir, request.param, validation_dataset=validation, dropout=0.0, num_steps=6)
    assert done.returncode == 0, done.stderr
    assert "2 processes\n" in done.stdout
    return run_dir


def test_two_processes_train_like_one(one_process: Path, two_processes: Path):
    assert losses(two_processes) == pytest.approx(losses(one_process), rel=1e-3)
    ours, theirs = (
        load_file(latest_checkpoint(run / "checkpoints") / "model.safetensors") for run in (two_processes, one_process)
    )
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():  # Muon orthogonalises in bf16, sums are in another order
        assert (ours[name] - expected).norm() < 0.1 * expected.norm() + 1e-4, name


def test_a_run_of_two_processes_goes_on_in_one(
    one_process: Path, two_processes: Path, tmp_path: Path, validation: Path
):
    run_dir = tmp_path / two_processes.name
    shutil.copytree(two_processes, run_dir)
    shutil.rmtree(list_checkpoints(run_dir / "checkpoints")[-1])  # as if it had been killed after update 4
    done = train_here(run_dir, validation_dataset=validation, dropout=0.0, num_steps=6)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stdout and "1 process\n" in done.stdout
    assert losses(run_dir) == pytest.approx(losses(one_process), rel=1e-3)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(straight: Path, caplog: pytest.LogCaptureFixture):
    checkpoints = straight / "checkpoints"
    older, newest = list_checkpoints(checkpoints)
    assert latest_checkpoint(checkpoints) == newest
    weights = newest / "model.safetensors"
    whole = weights.read_bytes()
    try:
        for damaged in (whole[:-10], whole[:500] + b"X" + whole[501:]):
            weights.write_bytes(damaged)
            assert latest_checkpoint(checkpoints) == older
            assert newest.name in caplog.text
    finally:
        weights.write_bytes(whole)
    assert load_state(older)["step"] == 8


def test_a_damaged_checkpoint_displaces_no_new_one(tmp_path: Path, tokenizer):
    model = TinyStoryForCausalLM(TinyStoryConfig(**TINY_MODEL))
    later = save_checkpoint(tmp_path, 80, model, tokenizer, {}, keep=1)
    (later / "model.safetensors").write_bytes(b"")
    for step in (10, 20):
        saved = save_checkpoint(tmp_path, step, model, tokenizer, {}, keep=1)
        assert latest_checkpoint(tmp_path) == saved
    assert list_checkpoints(tmp_path) == [saved, later]


def test_a_dry_run_says_what_it_takes_and_leaves_nothing(tmp_path: Path, validation: Path):
    done = train_here(tmp_path / "run", validation_dataset=validation, dry_run=True, wishes_share=0.5)
    assert done.returncode == 0, done.stderr
    for words in ("parameters; 12 updates of 4 rows", "million tokens to score", "hours", "GiB of memory"):
        assert words in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_run_with_wishes_learns_and_makes_a_model_that_plans(tmp_path: Path, validation: Path):
    done = train_here(tmp_path, validation_dataset=validation, wishes_share=0.5)
    assert done.returncode == 0, done.stderr
    values = losses(tmp_path)
    assert values[-1] < values[0] - 0.5
    assert json.loads((tmp_path / "model" / "config.json").read_text())["control_prefix"] is True


def test_a_run_with_teachers_comes_nearer_to_what_they_think(straight: Path, tmp_path: Path, validation: Path):
    """Than a run that sees the same words and no teacher; and it goes on as it would have gone on."""
    for name, changes in (("taught", {"teachers": straight / "model", "teachers_share": 1.0}), ("untaught", {})):
        done = train_here(tmp_path / name, validation_dataset=validation, dropout=0.0, seed=1, **changes)
        assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(HUB_FOLDER)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("A hen had a hat. It was red.")["input_ids"]]])
    with torch.inference_mode():
        teacher, taught, untaught = (
            TinyStoryForCausalLM.from_pretrained(run / "model")(ids).logits[0].log_softmax(-1)
            for run in (straight, tmp_path / "taught", tmp_path / "untaught")
        )
    near, far = ((teacher.exp() * (teacher - student)).sum(-1).mean() for student in (taught, untaught))
    assert near < 0.9 * far

    shutil.rmtree(list_checkpoints(tmp_path / "taught/checkpoints")[-1])
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "taught", again, ignore=shutil.ignore_patterns("model", "metrics.jsonl"))
    changes = {"teachers": straight / "model", "teachers_share": 1.0}
    done = train_here(again, validation_dataset=validation, dropout=0.0, seed=1, **changes)
    assert done.returncode == 0 and "going on from" in done.stdout
    ours, theirs = (load_file(run / "model/model.safetensors") for run in (again, tmp_path / "taught"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, validation: Path):
    done = train_here(tmp_path, validation_dataset=validation, adam_lr=1e30, embedding_lr=1e30, warmup_steps=1)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "lower muon_lr" in line)
    assert line.startswith("error: the loss is ") and "at update" in line  # not in the progress bar's line


def test_a_full_disk_stops_the_run_and_spoils_nothing(tmp_path: Path, validation: Path):
    changes = {"validation_dataset": validation, "num_steps": 8}
    done = train_here(tmp_path, **changes | {"evaluate_every": 100})
    assert done.returncode == 0, done.stderr
    older, newest = list_checkpoints(tmp_path / "checkpoints")
    shutil.rmtree(newest)
    limit = (older / "model.safetensors").stat().st_size + 1000  # room for the weights, not for the optimisers
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        done = train_here(tmp_path, **changes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the checkpoint of update 8 could not be written" in done.stderr and "make room" in done.stderr
    assert list(tmp_path.glob("checkpoints/*")) == [older] and latest_checkpoint(tmp_path / "checkpoints") == older
    done = train_here(tmp_path, **changes)
    assert done.returncode == 0 and older.name in done.stdout, done.stderr


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EACCES])
def test_room_is_asked_for_where_it_is_lacking(tiny_model, tokenizer, tmp_path: Path, kind: int):
    failing = patch("training.checkpoint.save_pretrained", side_effect=OSError(kind, os.strerror(kind)))
    with failing, pytest.raises(OSError, match=os.strerror(kind)) as error:
        save_checkpoint(tmp_path, 1, tiny_model, tokenizer, {}, keep=1)
    assert ("make room" in str(error.value)) == (kind == errno.ENOSPC)


def test_a_model_that_cannot_be_written_leaves_the_one_before(tiny_model, tokenizer, tmp_path: Path):
    folder = tmp_path / "model"
    save_released(tiny_model, tokenizer, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with torch.no_grad():
        tiny_model.fc.weight.mul_(2)
    full = patch("training.tokenizer.save_tokenizer", side_effect=OSError(errno.ENOSPC, "No space left"))
    with full, pytest.raises(OSError, match=r"could not be written .*make room"):
        save_released(tiny_model, tokenizer, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    save_released(tiny_model, tokenizer, folder)
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_is_trained_in_by_one_process_at_a_time(straight: Path, tmp_path: Path, validation: Path):
    run_dir = tmp_path / straight.name
    shutil.copytree(straight, run_dir)
    with FileLock(run_dir / ".lock"):
        done = train_here(run_dir, validation_dataset=validation)
        assert done.returncode == 2 and f"another process trains in {run_dir}" in done.stderr
    assert train_here(run_dir, validation_dataset=validation).returncode == 0


def test_a_tracker_gets_every_loss(tmp_path: Path, validation: Path):
    done = train_here(tmp_path, validation_dataset=validation, num_steps=4, report_to="tensorboard")
    assert done.returncode == 0, done.stderr
    events = event_accumulator.EventAccumulator(str(next(tmp_path.glob("**/events.*")).parent)).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(tmp_path), rel=1e-5)
    assert len(events.Scalars("bits_per_byte")) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "training/configs/accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_launch_configurations_are_read_by_accelerate(path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes >= 1 and config.mixed_precision == "no"


def test_another_configuration_does_not_resume(straight: Path, validation: Path):
    done = train_here(straight, validation_dataset=validation, muon_lr=0.5)
    assert done.returncode == 2 and "muon_lr: 0.02 -> 0.5" in done.stderr


def test_a_finished_run_without_checkpoints_is_not_overwritten(straight: Path, tmp_path: Path, validation: Path):
    run_dir = tmp_path / straight.name
    shutil.copytree(straight, run_dir, ignore=shutil.ignore_patterns("checkpoints"))
    done = train_here(run_dir, validation_dataset=validation, seed=5)
    assert done.returncode == 2 and "holds a finished model" in done.stderr and "use a new output_dir" in done.stderr
    assert (run_dir / "config.yaml").read_text() == (straight / "config.yaml").read_text()


def test_a_run_may_go_on_with_a_tracker(tmp_path: Path, validation: Path):
    changes = {"validation_dataset": validation, "num_steps": 4, "save_every": 2}
    assert train_here(tmp_path, **changes).returncode == 0
    shutil.rmtree(list_checkpoints(tmp_path / "checkpoints")[-1])  # as if it had been killed after update 2
    done = train_here(tmp_path, **changes, report_to="tensorboard")
    assert done.returncode == 0, done.stderr
    events = event_accumulator.EventAccumulator(str(next(tmp_path.glob("**/events.*")).parent)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [3, 4]


def test_config_file_and_command_line(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: here\nnum_steps: 7\ndataset: [a.txt, b.txt]\nmodel: {hidden_size: 64}\n")
    config = parse_config(["--config", str(path), "--num_steps", "9"])
    assert (config.output_dir, config.num_steps, config.dataset) == ("here", 9, ["a.txt", "b.txt"])
    assert config.model == {"hidden_size": 64}
    path.write_text("output_dir: here\nnum_step: 7\n")
    with pytest.raises(ValueError, match="unknown field 'num_step'; did you mean 'num_steps'"):
        parse_config(["--config", str(path)])
    assert parse_config(["--config", str(ROOT / "training/configs/classic.yaml")]).model == {}


def test_every_parameter_has_one_optimizer(tiny_model):
    optimizers = build_optimizers(tiny_model, 0.02, 3e-3, 0.1, 0.05)
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == len(list(tiny_model.parameters()))
    assert all(p.ndim == 2 for group in optimizers[0].param_groups for p in group["params"])


def test_a_model_without_layers_has_an_optimizer_too():
    (optimizer,) = build_optimizers(TinyStoryForCausalLM(TinyStoryConfig(num_hidden_layers=0)), 0.02, 3e-3, 0.1, 0.05)
    assert sum(len(group["params"]) for group in optimizer.param_groups) > 0


def test_learning_rate_rises_holds_and_falls_to_zero():
    factors = [learning_rate_factor(step, 100, 10, 0.5) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[10:50] == [1.0] * 40
    assert factors[75] == pytest.approx(0.5) and factors[100] == 0.0


def test_defaults_are_sound():
    assert TrainingConfig(output_dir="x").dataset == ["roneneldan/TinyStories"]
    with pytest.raises(ValueError, match="dataset must name one source of stories or more"):
        TrainingConfig(output_dir="x", dataset=[])


def test_a_run_from_before_a_field_existed_goes_on():
    config = TrainingConfig("run")
    saved = asdict(config)
    del saved["whole_stories"]
    refuse_other_config(saved, config)
    with pytest.raises(ValueError, match="whole_stories: False -> True"):
        refuse_other_config(saved, TrainingConfig("run", whole_stories=True))


def test_weights_of_another_tokenizer_or_with_other_heads_are_refused(tmp_path: Path):
    own = tmp_path / "own"
    shutil.copytree(HUB_FOLDER, own, ignore=shutil.ignore_patterns("classic", "model.safetensors"))
    TinyStoryForCausalLM(TinyStoryConfig(**TINY_MODEL)).save_pretrained(own)
    heads = json.dumps(TINY_MODEL | {"num_attention_heads": 2})
    failed = train_here(tmp_path / "heads", init_from=own, model=heads)
    assert failed.returncode == 2 and "num_attention_heads is 4, this run's model has 2" in failed.stderr
    path = own / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    vocab["Ġdragon"], vocab["Ġhome"] = vocab["Ġhome"], vocab["Ġdragon"]  # as many tokens
    path.write_text(json.dumps(content), encoding="utf-8")
    for name in ("init_from", "teachers"):
        failed = train_here(tmp_path / name, **{name: own})
        assert failed.returncode == 2 and "another tokenizer" in failed.stderr


@pytest.mark.parametrize(
    ("written", "lacking"),
    [(("", "_orig_mod."), "fc.bias and 34 others"), (("layers.1.", "layers.7."), "layers.1.feed_forward.fc1.bias and")],
)
def test_weights_with_some_missing_are_refused(tokenizer, tmp_path: Path, written: tuple[str, str], lacking: str):
    """Else they would go on, or be judged, with these drawn at random."""
    save_pretrained(TinyStoryForCausalLM(TinyStoryConfig(**TINY_MODEL)), tokenizer, tmp_path / "own")
    weights = tmp_path / "own/model.safetensors"
    save_file({key.replace(*written, 1): value for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    for name in ("init_from", "teachers"):
        failed = train_here(tmp_path / "run", **{name: tmp_path / "own"})
        assert failed.returncode == 2 and f"{name} {tmp_path / 'own'}: its weights lack " in failed.stderr
        assert lacking in failed.stderr
    with pytest.raises(ValueError, match=f"own: its weights lack .*{lacking}"):
        load_pretrained(str(tmp_path / "own"))

"""Checkpoints that are either whole or not there.

A checkpoint is a folder `step_00001000` with the model in Hub layout, `training_state.pt` (optimisers, random number
generators, counters) and `checksums.json`. It is written under another name, flushed to the disk, then renamed; when
it is read, every file is compared with its checksum, and a damaged checkpoint gives way to the one before it. It holds
whole tensors under the names of their parameters, however many processes they were spread over (FSDP2).
"""

import copy
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM
from training.cli import refused

logger = logging.getLogger(__name__)

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
TOKENIZER_FILES = ("*token*", "vocab*", "*.model")
STATE_FILE, CHECKSUM_FILE = "training_state.pt", "checksums.json"


def read_weights(kind: Any, name: str, **options: Any) -> PreTrainedModel:
    """`from_pretrained` of a class, in fp32, with every weight read: transformers draws those that are not there.

    Raises:
        ValueError: a weight is missing; the message names it.
    """
    model, found = kind.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)
    if missing := sorted(found["missing_keys"]):
        others = f" and {len(missing) - 1} others" if missing[1:] else ""
        raise ValueError(f"its weights lack {missing[0]}{others}")
    return model


def load_pretrained(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in fp32 and its tokenizer, from a folder or the Hub. A folder without code and tokenizer, as
    `modeling/classic`, is read as a subfolder of the one above it.

    Raises:
        ValueError: there is none of that name, it cannot be read, or its tokenizer is missing or another model's.
    """
    name, options = _root(name)
    if Path(name).is_dir() and not any(file for kind in TOKENIZER_FILES for file in Path(name).glob(kind)):
        raise ValueError(f"model {name}: there is no tokenizer beside it")
    with refused(f"model {name}"):
        model = read_weights(AutoModelForCausalLM, name, trust_remote_code=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # transformers makes an empty one up
        raise ValueError(f"model {name}: there is no tokenizer beside it")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ValueError(
            f"model {name}: its tokenizer has {len(tokenizer)} tokens, "
            f"the model {model.get_input_embeddings().num_embeddings}"
        )
    return model.eval(), tokenizer


def load_storyteller(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`load_pretrained` of a model of this project.

    Raises:
        ValueError: as there, or it is another kind of model.
    """
    model, tokenizer = load_pretrained(name)
    if model.config.model_type != TinyStoryConfig.model_type:
        raise ValueError(f"model {name} is a {type(model).__name__}, expected a TinyStoryForCausalLM")
    return model, tokenizer


def _root(name: str) -> tuple[str, dict[str, str]]:
    """Where a model's code and tokenizer are, and what leads from there to its weights."""
    path = Path(name)
    if path.is_dir() and not (path / "tokenizer.json").exists() and (path.parent / "tokenizer.json").exists():
        return str(path.parent), {"subfolder": path.name}
    return name, {}


def refuse_other_tokens(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Raises:
        ValueError: the tokenizer beside a model's weights has other tokens than this one. As many are not the same.
    """
    root, _ = _root(name)
    try:
        own = AutoTokenizer.from_pretrained(root, trust_remote_code=True)
    except (OSError, ValueError):
        return  # none is there
    if own.get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"{name} was trained with another tokenizer than this run's; --tokenizer {root} is its own")


def save_pretrained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Model, code and tokenizer in Hub layout, loadable by every Auto class and as the "story-generation" pipeline."""
    from training.tokenizer import save_tokenizer

    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        do_sample=True, temperature=0.8, top_p=0.95, max_new_tokens=256,
    )  # fmt: skip
    model.save_pretrained(directory)
    save_tokenizer(tokenizer, directory)


@contextmanager
def whole_or_nothing(directory: Path) -> Iterator[None]:
    """Leave nothing of a folder if what is being written to it fails, so that the same command may try again.

    Raises:
        OSError: it could not be written (a full disk).
    """
    try:
        yield
    except BaseException as problem:
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(problem, (OSError, SafetensorError)):
            raise OSError(f"{directory} could not be written ({problem}); {_advice(problem)}try again") from problem
        raise


def save_released(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """`save_pretrained` with weights stored in bf16, half the size, and read as fp32.

    A processor multiplies fp32 faster one row at a time, and only in fp32 does a story come out the same alone and in
    a batch; whoever wants bf16 in memory says `dtype=torch.bfloat16`.

    What the folder holds already is replaced by what is whole, and stays if it cannot be.

    Raises:
        OSError: as `whole_or_nothing`.
    """
    replaces = directory.exists() and any(directory.iterdir())
    target = directory.with_name(f".partial_{directory.name}") if replaces else directory
    with whole_or_nothing(target):
        save_pretrained(copy.deepcopy(model).to(torch.bfloat16), tokenizer, target)
        path = target / "config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["dtype"] = "float32"
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if replaces:
        shutil.rmtree(directory)
        target.rename(directory)


def whole_model(accelerator: Accelerator, model: PreTrainedModel) -> PreTrainedModel:
    """The model, or, where it is sharded, a whole copy of it on the main process; all processes must call this."""
    if not accelerator.is_fsdp2:
        return model
    weights = get_model_state_dict(model, options=WHOLE)  # empty but on the main process
    if not accelerator.is_main_process:
        return model
    copied = TinyStoryForCausalLM(model.config)
    copied.load_state_dict(weights)
    return copied.to(accelerator.device)


def optimizer_states(model: PreTrainedModel, optimizers: list[Any]) -> list[dict[str, Any]]:
    """What the (prepared) optimisers hold, by the names of the parameters; all processes must call this."""
    return [get_optimizer_state_dict(model, optimizer.optimizer, options=WHOLE) for optimizer in optimizers]


def load_optimizer_states(model: PreTrainedModel, optimizers: list[Any], states: list[dict[str, Any]]) -> None:
    """Give the (prepared) optimisers what `optimizer_states` gave; all processes must call this."""
    for optimizer, state in zip(optimizers, states, strict=True):
        set_optimizer_state_dict(model, optimizer.optimizer, state, options=WHOLE)


def save_checkpoint(
    runs: Path, step: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, state: dict[str, Any], keep: int
) -> Path:
    """Write the checkpoint of a step atomically and delete all but the last `keep` up to it: one of a later step is
    damaged, or the run would have gone on from there.

    Raises:
        OSError: it could not be written (a full disk); nothing of it is left, the checkpoints before it are whole.
    """
    final, partial = runs / f"step_{step:08d}", runs / f".partial_step_{step:08d}"
    try:
        for left in runs.glob(".partial_*"):  # a kill's
            shutil.rmtree(left)
        partial.mkdir(parents=True)
        save_pretrained(model, tokenizer, partial)
        torch.save(state, partial / STATE_FILE)
        checksums = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
        (partial / CHECKSUM_FILE).write_text(json.dumps(checksums, indent=2))
        for path in [*partial.iterdir(), partial]:
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        _flush(runs)
    except (OSError, RuntimeError, SafetensorError) as problem:  # each writer has its own word for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"the checkpoint of update {step} could not be written to {runs} ({problem}); {_advice(problem)}run the "
            "same command again: it goes on from the checkpoint before this one"
        ) from problem
    for old in [path for path in list_checkpoints(runs) if path <= final][:-keep]:
        shutil.rmtree(old)
    return final


def _advice(problem: Exception) -> str:
    """What to do first; other writers than the system's do not say why, and are taken to lack room."""
    full = not isinstance(problem, OSError) or problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "make room and " * full


def list_checkpoints(runs: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(path for path in runs.glob("step_*") if path.is_dir())


def latest_checkpoint(runs: Path) -> Path | None:
    """The newest checkpoint whose files are all as they were written, or None; names the damaged ones it passes."""
    for path in reversed(list_checkpoints(runs)):
        damage = _damage(path)
        if damage is None:
            return path
        logger.warning("checkpoint %s is damaged (%s); trying the one before it", path, damage)
    return None


def begun_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint that a run in this folder goes on from; None where it begins.

    Raises:
        ValueError: a finished run's model lies there and no whole checkpoint: a run that began would overwrite it.
    """
    checkpoint = latest_checkpoint(run_dir / "checkpoints")
    if checkpoint is None and (run_dir / "model").exists():
        raise ValueError(
            f"{run_dir} holds a finished model, {run_dir / 'model'}, and no checkpoint to go on from; use a new "
            "output_dir, or remove that one"
        )
    return checkpoint


def hold(run_dir: Path, enabled: bool) -> FileLock:
    """Keep other processes from training in a folder, until the lock is released or this process ends.

    Args:
        enabled: on a run's main process only, which holds it for all.

    Raises:
        ValueError: another process trains there.
    """
    lock = FileLock(run_dir / ".lock", is_singleton=True)  # so that a process may try again after an error
    try:
        if enabled:
            lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(f"another process trains in {run_dir}; wait for its end, or use a new output_dir") from None
    return lock


def load_state(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's training state, on the CPU."""
    return torch.load(checkpoint / STATE_FILE, map_location="cpu", weights_only=True)


def _damage(checkpoint: Path) -> str | None:
    try:
        checksums = json.loads((checkpoint / CHECKSUM_FILE).read_text())
        for name, checksum in checksums.items():
            if _checksum(checkpoint / name) != checksum:
                return f"{name} does not match its checksum"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

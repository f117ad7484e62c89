"""What a training run depends on: the fields, where they come from, and what a resumed run may change."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

import yaml
from accelerate.tracking import get_available_trackers

from training.cli import Parser, refused
from training.sources import DEFAULT_DATASET

_LARGEST_SEED = 2**32 - 1  # that NumPy takes


@dataclass
class TrainingConfig:
    """Everything a run depends on; a YAML file gives some fields, the command line overrides them."""

    output_dir: str = field(metadata={"help": "folder of the run"})
    dataset: list[str] = field(
        default_factory=lambda: [DEFAULT_DATASET],
        metadata={"help": "Hub names, .parquet, .jsonl, .json, .csv, .tsv or .txt files, folders or patterns of files"},
    )
    text_column: str = field(default="text", metadata={"help": "column of the stories in a table"})
    story_separator: str | None = field(
        default=None,
        metadata={"help": "parts the stories of .txt files: 'blank lines', 'lines', 'files' or other text; else found"},
    )
    streaming: bool = field(default=False, metadata={"help": "read the data as it comes, without storing it"})
    validation_dataset: str | None = field(
        default=None, metadata={"help": "as dataset (a Hub name: its validation split); TinyStories has its own"}
    )
    validation_share: float = field(
        default=0.05, metadata={"help": "share of the stories held out where there is no validation_dataset"}
    )
    tokenizer: str = field(default="modeling", metadata={"help": "folder or Hub name of the tokenizer"})
    init_from: str | None = field(default=None, metadata={"help": "folder or Hub name of weights to start from"})
    model: dict = field(default_factory=dict, metadata={"help": "fields of TinyStoryConfig, as JSON, over the file's"})
    dropout: float = field(default=0.1, metadata={"help": "dropout during this run"})
    zero_init: bool = field(default=True, metadata={"help": "blocks start as the identity: W_o and fc2 start at zero"})
    wishes_share: float = field(default=0.0, metadata={"help": "share of the stories shown with a control prefix"})
    whole_stories: bool = field(
        default=False, metadata={"help": "with prefixes: no excerpts, no story that ends early"}
    )
    closings_share: float = field(
        default=0.0,
        metadata={"help": "share of the stories with sentences written backwards, to learn closing on a word"},
    )
    teachers: list[str] = field(
        default_factory=list,
        metadata={"help": "folders or Hub names of models with the same tokenizer, from whose opinion it learns too"},
    )
    teachers_share: float = field(default=0.5, metadata={"help": "the teachers' share of each token's target"})
    row_length: int = field(default=512, metadata={"help": "tokens of a packed row"})
    batch_rows: int = field(default=16, metadata={"help": "rows per update, over all processes"})
    micro_batch_rows: int = field(default=16, metadata={"help": "rows per forward pass and process, at most"})
    num_steps: int = field(default=1000, metadata={"help": "updates"})
    warmup_steps: int = field(default=40, metadata={"help": "updates until the peak learning rate"})
    decay_fraction: float = field(default=0.6, metadata={"help": "last share of the run with falling learning rate"})
    muon_lr: float = field(default=0.02, metadata={"help": "peak learning rate of the hidden matrices; 0: AdamW only"})
    adam_lr: float = field(default=3e-3, metadata={"help": "peak learning rate of everything else"})
    embedding_lr: float = field(default=0.1, metadata={"help": "peak learning rate of the token embedding"})
    weight_decay: float = field(default=0.05, metadata={"help": "weight decay of the hidden matrices"})
    attention: str = field(
        default="sdpa",
        metadata={
            "help": "sdpa, eager, flex_attention or causal_blocks (the fastest on a CPU, compiled); all learn the same"
        },
    )
    mixed_precision: str = field(default="auto", metadata={"help": "auto, no, bf16 or fp16"})
    compile: bool = field(default=False, metadata={"help": "torch.compile the training step (needs a C++ compiler)"})
    evaluate_every: int = field(default=200, metadata={"help": "updates between evaluations"})
    evaluation_stories: int = field(default=500, metadata={"help": "validation stories scored on the way"})
    save_every: int = field(default=100, metadata={"help": "updates between checkpoints"})
    keep_checkpoints: int = field(default=2, metadata={"help": "checkpoints kept"})
    report_to: str = field(default="none", metadata={"help": "none, or a tracker: tensorboard, wandb, trackio, ..."})
    dry_run: bool = field(default=False, metadata={"help": "say what the run will take, and stop"})
    seed: int = field(default=0, metadata={"help": "seed of the weights, the order of the data and dropout"})

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ValueError("dataset must name one source of stories or more, got none")
        if self.row_length < 2:
            raise ValueError(f"row_length must be at least 2 (its first token is not scored), got {self.row_length}")
        for name in ("batch_rows", "micro_batch_rows", "num_steps", "evaluate_every",
                     "evaluation_stories", "save_every", "keep_checkpoints"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:  # nor nan, which is not below 0 either
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise ValueError(f"seed must be between 0 and {_LARGEST_SEED}, got {self.seed}")
        if not isinstance(self.model, dict):
            raise ValueError(f"model must map fields of TinyStoryConfig to values, got {self.model!r}")
        if not self.validation_dataset:
            self.validation_dataset = DEFAULT_DATASET if self.dataset == [DEFAULT_DATASET] else None
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be above 0 and below 1, got {self.validation_share}")
        if self.streaming and not self.validation_dataset:
            raise ValueError("a stream needs a validation_dataset: no share of it can be held out unread")
        for name in ("wishes_share", "closings_share", "teachers_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if not 0 < self.decay_fraction <= 1:
            raise ValueError(f"decay_fraction must be above 0 and at most 1, got {self.decay_fraction}")
        if self.attention == "packed_documents":
            raise ValueError(
                "attention packed_documents is for training.flagship only; expected sdpa, eager, flex_attention or "
                "causal_blocks"
            )
        if self.mixed_precision not in ("auto", "no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision must be auto, no, bf16 or fp16, got {self.mixed_precision!r}")
        trackers = ["none", *map(str, get_available_trackers())]
        if self.report_to not in trackers:
            raise ValueError(
                f"report_to must be one of {', '.join(trackers)} (others are not installed), got {self.report_to!r}"
            )


# Fields that may differ when a run is resumed: they do not change what is learnt.
_FREE_FIELDS = {
    "output_dir",
    "micro_batch_rows",
    "attention",
    "compile",
    "evaluate_every",
    "evaluation_stories",
    "save_every",
    "keep_checkpoints",
    "report_to",
}


def parse_config(arguments: list[str]) -> TrainingConfig:
    """Fields from the file after `--config`, overridden by `--field value`; of `--model`, each of the fields it gives.

    Raises:
        ValueError, FileNotFoundError: no such file, not a mapping, an unknown field (the closest known one is named).
    """
    parser = Parser(TrainingConfig, description="Train a Tiny Story model.")
    parser.add_argument("--config", help="YAML file with fields of the run")
    next(action for action in parser._actions if action.dest == "model").type = json.loads
    chosen, unknown = parser.parse_known_args([*arguments, "--output_dir", "-"])
    names = [f.name for f in fields(TrainingConfig)]
    refuse_unknown("command line", [word.lstrip("-").split("=")[0] for word in unknown if word.startswith("--")], names)
    from_file: dict[str, Any] = {}
    if chosen.config:
        with refused(chosen.config):
            try:
                from_file = yaml.safe_load(Path(chosen.config).read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                raise ValueError(f"no YAML: {error}") from error
        if not isinstance(from_file, dict):
            raise ValueError(f"{chosen.config}: expected a mapping of field names to values")
        refuse_unknown(chosen.config, from_file, names)
        from_file = {name: _of_type(chosen.config, name, value) for name, value in from_file.items()}
        parser.set_defaults(**from_file)
        for action in parser._actions:
            action.required = action.required and action.dest not in from_file
    values = vars(parser.parse_args(arguments))
    values.pop("config")
    of_file = parser.parse_args(["--output_dir", "-"]).model
    if isinstance(of_file, dict) and isinstance(values["model"], dict):
        values["model"] = of_file | values["model"]  # one field given must not undo the rest of the architecture
    return TrainingConfig(**values)


def refuse_unknown(where: str, given: Iterable[str], known: list[str]) -> None:
    """
    Raises:
        ValueError: a field is not a known one; the closest is named.
    """
    for name in given:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known fields: {', '.join(known)}"
            raise ValueError(f"{where}: unknown field {name!r}{hint}")


def _of_type(where: str, name: str, value: Any) -> Any:
    """A field's value from a file; text is left to the parser, and is a list's only item.

    Raises:
        ValueError: the value is of another type than the field.
    """
    kind = get_type_hints(TrainingConfig)[name]
    if isinstance(value, str):
        return [value] if kind == list[str] else value
    allowed: Any = {float: (int, float), list[str]: list, str | None: (str, NoneType)}.get(kind, kind)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: {name} must be {getattr(kind, '__name__', kind)}, got {value!r}")
    if kind == list[str] and not all(isinstance(item, str) for item in value):
        raise ValueError(f"{where}: {name} must be a list of texts, got {value!r}")
    return value


def refuse_other_config(saved: dict[str, Any], config: TrainingConfig) -> None:
    """Raise ValueError where a run is resumed with other settings than it was begun with."""
    now = asdict(config)
    saved = asdict(TrainingConfig(config.output_dir)) | saved  # a field that is newer than the run had its default
    different = [name for name in now if name not in _FREE_FIELDS and now[name] != saved[name]]
    if different:
        changes = ", ".join(f"{name}: {saved[name]!r} -> {now[name]!r}" for name in different)
        raise ValueError(
            f"{config.output_dir} holds a run with another configuration ({changes}); use a new output_dir"
        )


def refuse_other_stories(saved: dict[str, str], now: dict[str, str], output_dir: str) -> None:
    """Raise ValueError where a run is resumed on other stories than it was begun with, under the same names.

    Args:
        saved: fingerprints of the stories to train on and to score; a run older than they are has none.
    """
    for name, found in now.items():
        if saved.get(name, found) != found:
            raise ValueError(
                f"{output_dir} holds a run that began with other {name}: the files have changed since; "
                "put those back, or use a new output_dir"
            )

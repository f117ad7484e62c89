"""Teachers and their student in one process: the flagship in ten minutes of one GPU.

    python -m training.flagship --output_dir runs/flagship --dataset ... --validation_dataset ...

Stories are few, so one model is trained on what several think (Kim et al. 2025, arXiv 2509.14786, section 5): first
larger teachers, one after the other, each from a seed of its own; then the student, the flagship's shape, whose targets
are the stories' tokens and the teachers' mean distribution. Meanwhile the processor's cores pack each pass anew, and
write stories with the weights the student starts from. Of those, whose words are no targets, the student learns what
its teachers think of its own sentences (on-policy distillation, Agarwal et al. 2023, arXiv 2306.13649).

Both runs are described as any run is (training/configs/teacher.yaml, taught.yaml); only their lengths are minutes here,
so that a machine that is rented for a while is used up to its last one. `training/train.py` does the same a run at a
time, on any hardware, and can be interrupted.
"""

import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, PreTrainedTokenizerFast

from modeling.modeling_tiny_story import TinyStoryForCausalLM
from training.attention import packed_documents_arguments, refuse_many_documents
from training.checkpoint import save_released
from training.cli import Parser, one_line_errors
from training.config import TrainingConfig, parse_config
from training.data import IGNORED
from training.on_policy import Writers
from training.optimizer import BatchedMuon, build_optimizers, set_learning_rate
from training.passes import Packer, Rows, on_device
from training.sources import load_stories, training_stories
from training.tokenizer import load_tokenizer
from training.train import build_model, build_model_config, choose_precision

CHECKED_STORIES = 1000  # validation stories scored on the way
CHECKED_EVERY = 0.2  # of a run
SCORED_ROWS = 64  # in a batch
REPORTED_UPDATES = 50
SHARED_FIELDS = ("tokenizer", "row_length", "wishes_share", "whole_stories", "closings_share", "mixed_precision")
CLOSE_ENOUGH = 0.05  # relative difference of two attentions' gradients in bf16


@dataclass
class FlagshipConfig:
    """How teachers and student share a machine's time."""

    output_dir: str = field(metadata={"help": "folder of the run"})
    dataset: list[str] = field(metadata={"help": "the stories, as in training/train.py"})
    validation_dataset: str = field(metadata={"help": "stories to score"})
    teacher: str = field(default="training/configs/teacher.yaml", metadata={"help": "run of each teacher"})
    student: str = field(default="training/configs/taught.yaml", metadata={"help": "run of the student"})
    init_from: str | None = field(default=None, metadata={"help": "weights the student starts from, and writes with"})
    num_teachers: int = field(default=2, metadata={"help": "teachers, which differ in their seeds"})
    teacher_minutes: float = field(default=2.45, metadata={"help": "minutes of each teacher"})
    student_minutes: float = field(default=3.1, metadata={"help": "minutes of the student"})
    attention: str = field(default="sdpa", metadata={"help": "sdpa; or packed_documents, the fastest on a GPU"})
    packers: int = field(default=4, metadata={"help": "processes that pack rows"})
    writers: int = field(default=0, metadata={"help": "processes that write stories with init_from"})
    seed: int = field(default=0, metadata={"help": "seed of the first teacher; the others' and the student's follow"})

    def __post_init__(self) -> None:
        for name, least in (("num_teachers", 1), ("packers", 1), ("writers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("teacher_minutes", "student_minutes"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        known = ["eager", *AttentionInterface().valid_keys()]
        if self.attention not in known:
            raise ValueError(f"attention must be one of {', '.join(known)}, got {self.attention!r}")
        if self.writers and not self.init_from:
            raise ValueError("writers write with the weights of init_from, which is missing")


class Log:
    """What happened when: a line of JSON, and the same for the reader."""

    def __init__(self, path: Path):
        self.file, self.started = path.open("w", encoding="utf-8"), time.perf_counter()

    def write(self, **values: Any) -> None:
        """A line, with the seconds since the start."""
        values = {"at": round(time.perf_counter() - self.started, 1)} | values
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
        print(" ".join(f"{name} {v:.4f}" if isinstance(v, float) else f"{name} {v}" for name, v in values.items()))


def packs_documents(model: TinyStoryForCausalLM) -> bool:
    """Whether the model's attention is told where documents begin, and so has room for some number of them."""
    return model.config._attn_implementation == "packed_documents"


def hidden_states(model: TinyStoryForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the output layer reads, (batch, time, hidden); documents in a row do not see one another."""
    documents = packed_documents_arguments(batch["position_ids"]) if packs_documents(model) else {}
    output = model.model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, **documents)
    return output.last_hidden_state


def mean_probabilities(hidden: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of several models' distributions of the next token, (batch, time, vocab).

    Args:
        hidden: of each model, (batch, time, hidden); weights: of its output layer, (vocab, hidden).
    """
    said = [(h @ w.to(h.dtype).T).float().softmax(-1) for h, w in zip(hidden, weights, strict=True)]
    return torch.stack(said).mean(0)


def summed_nats(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the tokens that came, summed."""
    logits = (hidden @ weight.to(hidden.dtype).T).float()
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def taught_nats(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, said: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy with a mix of the tokens that came and of what teachers said, (batch, time, vocab), `share` of it,
    (batch, 1); summed over the targets."""
    log_probabilities = (hidden @ weight.to(hidden.dtype).T).float().log_softmax(-1)  # (batch, time, vocab)
    came = log_probabilities.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    nats = -(1 - share) * came - share * (said * log_probabilities).sum(-1)
    return (nats * (targets != IGNORED)).sum()


class Trainer:
    """Teachers' and students' runs on one device, each of some minutes."""

    def __init__(self, output_dir: Path, precision: str, tokenizer: PreTrainedTokenizerFast, packer: Packer, log: Log):
        self.output_dir, self.tokenizer, self.packer, self.log = output_dir, tokenizer, packer, log
        self.accelerator = Accelerator(mixed_precision=choose_precision(precision))
        self.device = self.accelerator.device
        self.compiles = self.device.type == "cuda"
        self.mean_probabilities, self.summed_nats, self.taught_nats = mean_probabilities, summed_nats, taught_nats
        if self.compiles:
            torch.set_float32_matmul_precision("high")
            torch._dynamo.config.recompile_limit = 32
            torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is; the log's rates tell
            self.mean_probabilities = torch.compile(mean_probabilities, dynamic=False)
            self.summed_nats = torch.compile(summed_nats, dynamic=False)
            self.taught_nats = torch.compile(taught_nats, dynamic=False)

    def validate_on(self, texts: list[str]) -> None:
        """Have the stories packed that `score` reads, a story longer than a row cut."""
        self.texts, plain = texts, {"wishes_share": 0.0, "closings_share": 0.0}
        counts = (min(CHECKED_STORIES, len(texts)), len(texts))
        self.validation = {n: self.packer.submit(texts[:n], ["story"] * n, "", **plain) for n in counts}

    def usable_attention(self, wanted: str, run: TrainingConfig) -> str:
        """`wanted`, if it runs here and learns what SDPA does; else sdpa, and the log says why."""
        if wanted == "sdpa":
            return wanted
        rows = on_device(next(iter(self.validation.values())), self.device)
        # From all over: in front the longest stories stand alone in their rows.
        batch = rows.batch(torch.linspace(0, len(rows.input_ids) - 1, SCORED_ROWS).long().to(self.device))
        model = build_model(run, build_model_config(run, self.tokenizer)).to(self.device).eval()
        gradients = []
        try:
            for name in ("sdpa", wanted):
                model.set_attn_implementation(name)
                if packs_documents(model):
                    refuse_many_documents(rows.position_ids, SCORED_ROWS)
                self.loss(model, batch, (), 0.0).backward()
                gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
                model.zero_grad()
            off = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
            problem = "" if off < CLOSE_ENOUGH else f"its gradients differ by {off:.3f}"
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            problem = str(error).split("\n")[0]
        self.log.write(attention="sdpa" if problem else wanted, **({"because": problem} if problem else {"off": off}))
        return "sdpa" if problem else wanted

    def build(self, run: TrainingConfig) -> TinyStoryForCausalLM:
        """A run's model on the device. On a GPU one layer is compiled for all, which takes seconds, not a minute."""
        set_seed(run.seed)
        model = build_model(run, build_model_config(run, self.tokenizer)).to(self.device)
        if self.compiles:
            for layer in model.model.decoder_layers:
                layer.compile(dynamic=False)
        return model

    def train(
        self,
        name: str,
        model: TinyStoryForCausalLM,
        run: TrainingConfig,
        minutes: float,
        teachers: Sequence[TinyStoryForCausalLM] = (),
        written: Sequence[str] = (),
    ) -> None:
        """Train a model for some minutes after its first update; one that is taught is saved on the way.

        Args:
            teachers: in whose mean distribution `run.teachers_share` of each token's target is, and all of it in the
                stories that a model wrote.
            written: these stories.
        """
        rates = (run.muon_lr, run.adam_lr, run.embedding_lr)
        optimizers = build_optimizers(model, *rates, run.weight_decay, muon=BatchedMuon)
        model.train()
        step, tokens, num_passes, progress, checked = 0, 0, 0, 0.0, 0.0
        losses: list[torch.Tensor] = []
        started = time.perf_counter()
        while progress < 1:
            rows = self.packer.next(self.device, list(written))
            num_passes += 1
            self.check(rows, run.batch_rows, [model, *teachers])
            for batch in rows.batches(run.batch_rows, seed=1000 * run.seed + num_passes):
                rising, falling = (step + 1) / max(1, run.warmup_steps), (1 - progress) / run.decay_fraction
                set_learning_rate(optimizers, min(1.0, rising, falling))
                loss = self.loss(model, batch, teachers, run.teachers_share)
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                losses.append(loss.detach())
                step += 1
                tokens += batch["input_ids"].numel()
                if step == 1:
                    loss.item()
                    self.log.write(run=name, compiled_in=round(time.perf_counter() - started, 1))
                    started, tokens = time.perf_counter(), 0
                if step % REPORTED_UPDATES == 0:
                    mean, losses = torch.stack(losses).mean().item(), []
                    if not math.isfinite(mean):
                        raise FloatingPointError(f"{name}: the loss is {mean} at update {step}; lower its rates")
                    rate = round(tokens / (time.perf_counter() - started))
                    score = {}
                    if progress >= checked:
                        checked += CHECKED_EVERY
                        score = {"bits_per_byte": self.score([model], CHECKED_STORIES)}
                        if teachers:
                            save_released(model, self.tokenizer, self.output_dir / "model")
                    self.log.write(run=name, step=step, passes=num_passes, loss=mean, tokens_per_s=rate, **score)
                progress = (time.perf_counter() - started) / 60 / minutes
                if progress >= 1:
                    break
        self.log.write(run=name, step=step, passes=num_passes, bits_per_byte=self.score([model]))

    @staticmethod
    def check(rows: Rows, batch_rows: int, models: Sequence[TinyStoryForCausalLM]) -> None:
        """
        Raises:
            ValueError: there are too few rows for a batch, or a batch might hold more documents than a model takes.
        """
        if len(rows.input_ids) < batch_rows:
            raise ValueError(f"{len(rows.input_ids)} rows, fewer than batch_rows ({batch_rows}); give more stories")
        if any(map(packs_documents, models)):
            refuse_many_documents(rows.position_ids, batch_rows)

    def loss(
        self,
        model: TinyStoryForCausalLM,
        batch: dict[str, torch.Tensor],
        teachers: Sequence[TinyStoryForCausalLM],
        teachers_share: float,
    ) -> torch.Tensor:
        """Mean cross-entropy of a batch's targets."""
        targets, weight = batch["targets"], model.fc.weight
        with self.accelerator.autocast():
            hidden = hidden_states(model, batch)
            if teachers:
                with torch.no_grad():
                    heard = [hidden_states(teacher, batch) for teacher in teachers]
                    said = self.mean_probabilities(heard, [teacher.fc.weight for teacher in teachers])
                nats = self.taught_nats(
                    hidden, weight, targets, said, torch.where(batch["written"], 1.0, teachers_share)
                )
            else:
                nats = self.summed_nats(hidden, weight, targets)
        return nats / (targets != IGNORED).sum()

    @torch.no_grad()
    def score(self, models: Sequence[TinyStoryForCausalLM], count: int | None = None) -> float:
        """Bits per byte of the models' mean distribution on the first `count` validation stories, or all.

        Raises:
            ValueError: the stories are too short for a model's attention.
        """
        count = min(count or len(self.texts), len(self.texts))
        rows, nats = on_device(self.validation[count], self.device), 0.0
        if any(map(packs_documents, models)):
            refuse_many_documents(rows.position_ids, SCORED_ROWS)
        training = [model.training for model in models]
        for model in models:
            model.eval()
        for chosen in torch.arange(len(rows.input_ids), device=self.device).split(SCORED_ROWS):
            # Filled up, so that a compiled model sees one shape.
            batch = rows.batch(torch.cat((chosen, chosen[:1].expand(SCORED_ROWS - len(chosen)))))
            batch["targets"][len(chosen) :] = IGNORED
            targets = batch["targets"]
            with self.accelerator.autocast():
                said = mean_probabilities([hidden_states(m, batch) for m in models], [m.fc.weight for m in models])
            came = said.gather(-1, targets.clamp(min=0)[..., None])[..., 0]  # (batch, time)
            nats -= float(came[targets != IGNORED].clamp(min=1e-30).log().double().sum())
        for model, was_training in zip(models, training, strict=True):
            model.train(was_training)
        return nats / math.log(2) / sum(len(text.encode()) for text in self.texts[:count])


@one_line_errors
def main() -> None:
    """Train the teachers, then the student."""
    (config,) = Parser(FlagshipConfig, description=__doc__.split("\n")[0]).parse_args_into_dataclasses(sys.argv[1:])
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    log = Log(output_dir / "log.jsonl")
    common = ["--output_dir", config.output_dir, "--dataset", *config.dataset]
    run, student_run = (parse_config(["--config", path, *common]) for path in (config.teacher, config.student))
    for name in SHARED_FIELDS:
        if getattr(run, name) != getattr(student_run, name):
            raise ValueError(
                f"{name} is {getattr(run, name)!r} in {config.teacher} and {getattr(student_run, name)!r} in "
                f"{config.student}: teachers and student read the same rows"
            )
    if run.mixed_precision == "fp16":
        raise ValueError(f"{config.teacher}: mixed_precision fp16 would need scaled gradients; give bf16, auto or no")
    student_run.init_from, student_run.seed = config.init_from, config.seed + config.num_teachers

    executor = ProcessPoolExecutor(config.packers, mp_context=multiprocessing.get_context("fork"))
    tokenizer = load_tokenizer(run.tokenizer, controls=bool(run.wishes_share or run.closings_share))
    validation = load_stories([config.validation_dataset], "validation")
    stories, _ = training_stories(config.dataset, load_stories(config.dataset, "train"), validation)
    packer = Packer(
        executor, list(stories["text"]), list(stories["kind"]), row_length=run.row_length,
        backend=tokenizer.backend_tokenizer.to_str(), bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id,
        wishes_share=run.wishes_share, whole_stories=run.whole_stories, closings_share=run.closings_share,
    )  # fmt: skip
    packer.prepare()  # before the GPU is touched, which processes that are forked later could not bear
    writers = Writers(config.writers, config.init_from, packer.texts, output_dir)
    try:
        trainer = Trainer(output_dir, run.mixed_precision, tokenizer, packer, log)
        trainer.validate_on(list(validation["text"]))
        run.attention = student_run.attention = trainer.usable_attention(config.attention, student_run)
        teachers: list[TinyStoryForCausalLM] = []
        for number in range(config.num_teachers):
            run.seed = config.seed + number
            teachers.append(trainer.build(run))
            log.write(run=f"teacher {number}", parameters=sum(p.numel() for p in teachers[-1].parameters()))
            trainer.train(f"teacher {number}", teachers[-1], run, config.teacher_minutes)
            teachers[-1].eval().requires_grad_(False)
            log.write(run=f"mean of {len(teachers)}", bits_per_byte=trainer.score(teachers))
        written = writers.stop(log.write)
        student = trainer.build(student_run)
        log.write(run="student", written=len(written), bits_per_byte=trainer.score([student]))
        trainer.train("student", student, student_run, config.student_minutes, teachers, written)
        save_released(student.cpu(), tokenizer, output_dir / "model")
        log.write(saved=str(output_dir / "model"))
    finally:
        writers.stop(log.write)
        executor.shutdown(cancel_futures=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

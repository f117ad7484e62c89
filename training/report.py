"""Figures, and the metrics.jsonl that a training run leaves."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


class Metrics:
    """metrics.jsonl and its picture; what a killed run wrote after its last checkpoint is dropped on resume."""

    def __init__(self, run_dir: Path, until_step: int, enabled: bool):
        self.path = run_dir / "metrics.jsonl"
        self.figure = run_dir / "loss.png"
        self.enabled = enabled
        if enabled:
            kept = [line for line in self.read() if line["step"] <= until_step]
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def read(self) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        whole = []
        for line in lines:
            try:
                whole.append(json.loads(line))
            except ValueError:
                break  # the line a kill cut short
        return whole

    def write(self, **values: Any) -> None:
        if self.enabled:
            with self.path.open("a") as file:
                file.write(json.dumps(values) + "\n")

    def has_score(self, step: int) -> bool:
        return any(line["step"] == step and "bits_per_byte" in line for line in self.read())

    def draw(self) -> None:
        if self.enabled:
            draw_losses({self.path.parent.name: self.read()}, self.figure)


def draw_losses(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Training loss (nats per token, smoothed) and validation (bits per byte) of runs, against tokens.

    A score on another number of stories than a run's first stands alone, as a ring.

    Args:
        runs: by name, the lines of each run's metrics.jsonl.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, lines in runs.items():
        training = [line for line in lines if "loss" in line]
        smooth, value = [], None
        for line in training:
            value = line["loss"] if value is None else 0.95 * value + 0.05 * line["loss"]
            smooth.append(value)
        scores = [line for line in lines if "bits_per_byte" in line]
        if scores:
            last = scores[-1]  # at a run's end it is of all stories, and no line leads there
            name += f": {last['bits_per_byte']:.3f} on {last['stories']:,} stories"
        (curve,) = left.plot([line["tokens"] / 1e6 for line in training], smooth, label=name)
        way = [score for score in scores if score["stories"] == scores[0]["stories"]]
        alone = [score for score in scores if score not in way]
        for some, style in ((way, {"marker": "o"}), (alone, {"marker": "o", "ls": "", "markerfacecolor": "white"})):
            x, y = [score["tokens"] / 1e6 for score in some], [score["bits_per_byte"] for score in some]
            right.plot(x, y, color=curve.get_color(), **style)
    left.set(xlabel="million tokens", ylabel="training loss, nats per token")
    right.set(xlabel="million tokens", ylabel="validation, bits per byte")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_ablations(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Validation of runs against tokens and against time, and how far each ends from the first.

    Args:
        runs: by name, lines with `tokens`, `seconds` and, where scored on the way, `bits_per_byte`; the last line is
            scored on more stories, whose number it has as `stories`.
    """
    base = next(iter(runs.values()))[-1]["bits_per_byte"]
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(16, 1 + 0.22 * len(runs)), layout="constrained", width_ratios=(1, 1, 1.2)
    )
    shown = [name for name in runs if name == "modern" or "tokens" in name or name.startswith("AdamW")]
    for axes, column, unit in ((left, "tokens", 1e6), (middle, "seconds", 60)):
        for name in shown:
            scored = [line for line in runs[name] if "bits_per_byte" in line and "stories" not in line]
            axes.plot(
                [line[column] / unit for line in scored], [line["bits_per_byte"] for line in scored], ".-", label=name
            )
        axes.set(ylabel="validation, bits per byte", yscale="log")
        axes.yaxis.set_major_formatter("{x:.2g}")
        axes.yaxis.set_minor_formatter("{x:.2g}")
        axes.grid(alpha=0.3, which="both")
    left.set(xlabel="million tokens scored")
    middle.set(xlabel="minutes on one core")
    left.legend(frameon=False, fontsize=8)
    ends = {name: lines[-1]["bits_per_byte"] - base for name, lines in runs.items()}
    right.barh(list(ends), list(ends.values()), color=["C2" if value < 0 else "C3" for value in ends.values()])
    right.invert_yaxis()
    right.axvline(0, color="black", linewidth=0.8)
    right.set_xscale("symlog", linthresh=0.02, linscale=0.6)
    right.set(xlabel=f"bits per byte above {next(iter(runs))} ({base:.3f})")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_endings(results: dict[str, Any], path: Path) -> None:
    """What a last sentence costs under the judge, by band: ours, real stories' and the baselines'; the lines are one
    standard error up and down."""
    scores = results["bits per byte"]
    shown = [name for name in ("real", "sampled", "greedy", "forced", "stop at first") if name in scores]
    bands = list(scores["sampled"])
    figure, axes = plt.subplots(figsize=(11, 4), layout="constrained")
    width = 0.8 / len(shown)
    for number, name in enumerate(shown):
        places = [band + (number - (len(shown) - 1) / 2) * width for band in range(len(bands))]
        _, costs, errors = zip(*(scores[name].get(band, (0, 0, 0)) for band in bands), strict=True)
        axes.bar(places, costs, width, yerr=errors, error_kw={"elinewidth": 0.8}, label=name)
    axes.set_xticks(range(len(bands)), bands)
    axes.set(ylabel="last sentence, bits per byte under the judge")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(shown), loc="lower left", bbox_to_anchor=(0, 1))  # above: bars are tall
    figure.savefig(path, dpi=120)
    plt.close(figure)

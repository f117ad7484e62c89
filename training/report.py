"""Figures, the metrics.jsonl that a training run leaves, and the runs that are kept.

    python -m training.report add runs/mine/metrics.jsonl --name modern_13     # keep a run's curve
    python -m training.report draw                                             # draw the notebook's figures again
    python -m training.report draw loss.png --names modern_11 modern_12        # draw kept runs, each from 0 tokens

Kept runs lie in docs/metrics/runs.jsonl.xz: a line of a run's metrics.jsonl, and the run's name, on each line.
"""

import argparse
import json
import lzma
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from training.cli import Parser, one_line_errors

ROOT = Path(__file__).resolve().parent.parent
KEPT_RUNS = ROOT / "docs/metrics/runs.jsonl.xz"
DIGITS = 5  # of a kept float, after the point: a curve shows no more
# The notebook's loss figures: what each run is called there; where True, a run begins where the one before ended.
FIGURES: dict[str, tuple[bool, dict[str, str]]] = {
    "classic_loss.png": (True, {"classic_1": "classic, first part", "classic_2": "classic, second part"}),
    "modern_loss.png": (True, {"modern": "first run", "modern_2": "second run", "modern_3": "third run"}),
    "modern_later_loss.png": (
        False,
        {
            "modern_9": "ninth run",
            "modern_10": "tenth",
            "modern_11": "eleventh",
            "modern_12": "twelfth, dropout 0.05",
        },
    ),
}


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
        """The lines written so far, without one that a kill cut short."""
        return read_curve(self.path) if self.path.exists() else []

    def write(self, **values: Any) -> None:
        """Add a line, on the main process only."""
        if self.enabled:
            with self.path.open("a") as file:
                file.write(json.dumps(values) + "\n")

    def has_score(self, step: int) -> bool:
        """Whether the model was scored at an update."""
        return any(line["step"] == step and "bits_per_byte" in line for line in self.read())

    def draw(self) -> None:
        """Draw the run's curves beside its metrics."""
        if self.enabled:
            draw_losses({self.path.parent.name: self.read()}, self.figure)


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without a last one that a kill cut short.

    Raises:
        ValueError: another line is none of a run's; the message names it.
    """
    curve: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            read = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(read, dict) or "tokens" not in read:
            raise ValueError(f"{path}, line {number}: expected an object with tokens, got {line[:60]}")
        curve.append(read)
    return curve


def read_runs(path: Path = KEPT_RUNS) -> dict[str, list[dict[str, Any]]]:
    """Kept runs: by name, the lines of each one's metrics.jsonl, in order."""
    runs: dict[str, list[dict[str, Any]]] = {}
    if path.exists():
        with lzma.open(path, "rt", encoding="utf-8") as file:
            for line in map(json.loads, file):
                runs.setdefault(line.pop("run"), []).append(line)
    return runs


def add_run(name: str, lines: list[dict[str, Any]], path: Path = KEPT_RUNS) -> None:
    """Keep a run's curve.

    Raises:
        ValueError: the run has no lines, or a run of that name is kept already.
    """
    runs = read_runs(path)
    if not lines:
        raise ValueError(f"run {name!r} has no lines to keep")
    if name in runs:
        raise ValueError(f"a run {name!r} is kept already in {path}; give this one another name")
    runs[name] = [
        {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in line.items()}
        for line in lines
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", preset=9 | lzma.PRESET_EXTREME, encoding="utf-8") as file:
        for run, kept in runs.items():
            file.writelines(json.dumps({"run": run} | line, separators=(",", ":")) + "\n" for line in kept)


def chosen_runs(labels: dict[str, str], in_a_row: bool) -> dict[str, list[dict[str, Any]]]:
    """Kept runs under other names; `in_a_row`, each one's tokens counted on from the one before.

    Raises:
        ValueError: no run of that name is kept.
    """
    runs, chosen, before = read_runs(), {}, 0
    for name, label in labels.items():
        if name not in runs:
            raise ValueError(f"no run {name!r} is kept; there are {', '.join(runs)}")
        chosen[label] = [line | {"tokens": line["tokens"] + before} for line in runs[name]]
        before = chosen[label][-1]["tokens"] if in_a_row else 0
    return chosen


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


@one_line_errors
def main() -> None:
    """Keep a run, or draw figures from kept runs."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("add", "draw"))
    parser.add_argument("path", type=Path, nargs="?", help="add: a metrics.jsonl; draw: one figure instead of all")
    parser.add_argument("--name", help="add: what the run is called")
    parser.add_argument("--names", nargs="+", help="draw: the runs in that figure")
    arguments = parser.parse_args()
    try:
        if arguments.what == "add":
            if not (arguments.path and arguments.name):
                parser.error("add needs a metrics.jsonl and --name")
            add_run(arguments.name, read_curve(arguments.path))
        elif arguments.path:
            if not arguments.names:
                parser.error("a figure needs --names")
            draw_losses(chosen_runs({name: name for name in arguments.names}, in_a_row=False), arguments.path)
        elif arguments.names:
            parser.error("--names needs the figure's path before it")
        else:
            for figure, (in_a_row, labels) in FIGURES.items():
                draw_losses(chosen_runs(labels, in_a_row), ROOT / "docs/figures" / figure)
    except (OSError, ValueError) as problem:
        raise ValueError(str(problem)) from problem


if __name__ == "__main__":
    main()

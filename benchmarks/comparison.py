"""All measured checkpoints side by side, with published figures converted: `python -m benchmarks.comparison`.

Reads docs/results/*.json (training/suite.py wrote them) and benchmarks/published.yaml; writes docs/results/README.md
and docs/figures/peers.png. A converted figure is marked as such: a loss of another vocabulary, on other stories.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import yaml

from training.cli import Parser, one_line_errors
from training.suite import RESULTS, interval, read

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = Path(__file__).resolve().parent / "published.yaml"
OURS = ("modern", "classic")
UNKNOWN_SIZE = 25  # points², of a mark whose data are not known


def convert(nats: float, tokens_per_byte: float) -> float:
    """Bits per byte from a loss in nats per token.

    >>> round(convert(1.45, 0.2451), 3)
    0.513
    """
    return nats * tokens_per_byte / math.log(2)


def rows(results: dict[str, dict[str, Any]], published: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, parameters, bits per byte, bytes seen and source of every model, measured ones and converted ones."""
    found = [
        {
            "name": name,
            "parameters": one["parameters"],
            "bits": one["bits per byte"]["value"],
            "interval": interval(one["bits per byte"]),
            "seen": published["seen"].get(name),
            "source": f"[measured]({name}.md)",
            "measured": True,
        }
        for name, one in results.items()
    ]
    for one in published["published"]:
        bits = convert(one["nats"], one["tokens_per_byte"])
        seen = one["seen"] / one["tokens_per_byte"] if one["seen"] else None
        source = f"converted: {one['source']}, {one['nats']} nats a token"
        found.append(
            {key: one[key] for key in ("name", "parameters")}
            | {"bits": bits, "interval": f"≈ {bits:.2f}", "seen": seen, "source": source, "measured": False}
        )
    return sorted(found, key=lambda row: row["bits"])


def in_bytes(seen: float | None) -> str:
    """Bytes as a reader reads them."""
    if seen is None:
        return "not said"
    return f"{seen / 1e9:.1f} GB" if seen >= 1e9 else f"{seen / 1e6:.0f} MB"


def page(found: list[dict[str, Any]]) -> str:
    """The table of all models as a Markdown page."""
    lines = [
        "# Results",
        "",
        "Written by `python -m benchmarks.comparison` from the JSON of each checkpoint. Measured: the same validation",
        "stories, each alone from its start to its end, in the model's own newline, over the bytes of the normalised",
        "story; brackets are 95 % bootstrap intervals over stories. Converted: published loss x tokens a byte / ln 2,",
        "on its publisher's own stories, good to 3 % at best.",
        "",
        "![Bits per byte against parameters](../figures/peers.png)",
        "",
        "| model | parameters | bits per byte | read in training | source |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        name = f"**{row['name']}**" if row["name"] in OURS else row["name"]
        cells = (name, f"{row['parameters']:,.0f}", row["interval"], in_bytes(row["seen"]), row["source"])
        lines.append(f"| {' | '.join(cells)} |")
    pages = [("biases.md", "who the stories are about"), ("measures.md", "which measures can tell good from spoilt")]
    more = [f"[{what}]({name})" for name, what in pages if (RESULTS / name).exists()]
    return "\n".join(lines + (["", "More: " + ", ".join(more) + "."] if more else [])) + "\n"


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Bits per byte against parameters; a mark's area grows with the logarithm of the bytes read in training."""
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for row in found:
        color = "C3" if row["name"] in OURS else "C0"
        size = UNKNOWN_SIZE if row["seen"] is None else 60 * math.log10(row["seen"] / 1e7)
        face = color if row["measured"] else "none"
        marker = "o" if row["seen"] else "x"
        style: dict[str, Any] = {"facecolors": face, "edgecolors": color} if marker == "o" else {"c": color}
        axes.scatter(row["parameters"], row["bits"], s=size, marker=marker, alpha=0.8, **style)
        offset = (6 + math.sqrt(size) / 2, 3)
        axes.annotate(row["name"], (row["parameters"], row["bits"]), offset, textcoords="offset points", fontsize=8)
    for name, size in (("100 MB", 60), ("1 GB", 120), ("100 GB", 240)):
        axes.scatter([], [], s=size, facecolors="none", edgecolors="grey", label=name)
    axes.scatter([], [], s=UNKNOWN_SIZE, marker="x", c="grey", label="not said")
    axes.legend(title="read in training; filled: measured here", frameon=False, ncols=2, fontsize=8, title_fontsize=8)
    axes.set(xscale="log", xlabel="parameters", ylabel="bits per byte", xlim=(1.5e5, 4e8))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@one_line_errors
def main() -> None:
    """Write the page and the figure."""
    Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = rows(read(), yaml.safe_load(PUBLISHED.read_text(encoding="utf-8")))
    (RESULTS / "README.md").write_text(page(found), encoding="utf-8")
    draw(found, ROOT / "docs/figures/peers.png")


if __name__ == "__main__":
    main()

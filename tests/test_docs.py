"""What the pages say is so: measured parts are those of docs/results, links lead somewhere, snippets run as printed."""

import json
import re
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from benchmarks import card, comparison
from tests.conftest import HUB_FOLDER, ROOT
from training.suite import RESULTS, read, table

BOOK = [ROOT / "docs/lab_notebook.md", *(ROOT / "docs/notebook").glob("*.md")]
PAGES = [*card.PAGES, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/notebook").glob("*.md")]
PAGES += RESULTS.glob("*.md")
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "model_card.md").read_text(encoding="utf-8"), flags=re.DOTALL)
MARK = "-- the next snippet --"
WRITTEN = re.compile(r"(<!--|#) begin (\w+).*?\1 end \2", re.DOTALL)


@pytest.mark.parametrize("page", card.PAGES, ids=lambda page: page.name)
def test_measured_parts_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert card.fill(text) == text, "write them again: python -m benchmarks.card"
    by_hand = WRITTEN.sub("", text)
    assert not re.findall(r"\b0\.\d{3,}", by_hand), "a score belongs into a written part"


def test_a_changed_result_is_noticed(monkeypatch):
    changed = read()
    changed[card.FLAGSHIP]["bits per byte"]["value"] += 0.0101
    monkeypatch.setattr(card, "read", lambda: changed)
    for page in card.PAGES:
        text = page.read_text(encoding="utf-8")
        assert card.fill(text) != text
    with pytest.raises(ValueError, match="no part 'other'"):
        card.fill("<!-- begin other -->\n<!-- end other -->")


def test_what_readers_said_is_counted_over_all_readings(monkeypatch, tmp_path):
    def row(stories: int, said: float) -> dict:
        return {"writer": "it", "band": "all", "stories": stories} | dict.fromkeys(card.YES_OR_NO + card.MARKS, said)

    for name, kind, readings in (
        ("reading-1.json", "stories", [[row(10, 1.0)], [row(20, 0.5)]]),
        ("reading-2.json", "stories", [[row(10, 0.0)]]),
        ("reading-1-pairs.json", "pairs", [[{"band": "all", "pairs": 3, "preferred": {"it": 2, "that": 1}}]]),
    ):
        (tmp_path / name).write_text(json.dumps({"kind": kind, "readings": readings}))
    monkeypatch.setattr(card, "RESULTS", tmp_path)
    assert "| it | 40 | 50 % | 50 % | 0.5 | 0.5 | 0.5 |" in card.readings()
    assert "Of 3 pairs told for the same wishes readers preferred it in 2 and that in 1." in card.readings()


def test_tables_are_those_of_their_json():
    for path in RESULTS.glob("*.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        if "checkpoint" in results:
            assert path.with_suffix(".md").read_text(encoding="utf-8") == table(results)
    found = comparison.rows(read(), comparison.yaml.safe_load(comparison.PUBLISHED.read_text(encoding="utf-8")))
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == comparison.page(found)


def test_the_cards_metadata_are_the_hubs():
    loaded = ModelCard.load(ROOT / "model_card.md")
    (bits, *_) = loaded.data.eval_results
    assert bits.metric_type == "bits_per_byte"
    assert bits.metric_value == read()[card.FLAGSHIP]["bits per byte"]["value"]
    assert loaded.data.license == "apache-2.0" and "arxiv:2305.07759" in loaded.data.tags


def test_the_cards_snippets_run_as_printed(tmp_path):
    """Each in a namespace of its own, in one process that knows nothing of this project."""
    snippets = [snippet.replace("<this repository>", str(HUB_FOLDER)) for snippet in SNIPPETS]
    program = f"for snippet in {snippets!r}:\n    exec(snippet, {{}}), print({MARK!r})"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    *said, rest = done.stdout.split(MARK)
    assert len(said) == len(SNIPPETS) and not rest.strip()
    assert all(len(text.split()) > 20 for text in said)


def test_the_card_has_four_snippets():
    assert len(SNIPPETS) == 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), f"{page.name} links to {target}"
            assert not anchor or f'<a id="{anchor}"></a>' in path.read_text(encoding="utf-8"), target


def test_the_books_lines_are_short_and_its_index_is_whole():
    book = BOOK[0].read_text(encoding="utf-8")
    assert all(len(line) <= 120 for line in book.splitlines())
    for month in BOOK[1:]:
        for anchor, day, title in re.findall(
            r'<a id="(\w+)"></a>\n\n## (\S+) · (.+)', month.read_text(encoding="utf-8")
        ):
            assert f"- [{title}](notebook/{month.name}#{anchor})" in book, f"no index line for {day} · {title}"

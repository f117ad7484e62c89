"""Kept runs come back as they were written, and the notebook's figures can be drawn from them."""

import json

import pytest

from training import report


@pytest.fixture
def kept(tmp_path, monkeypatch):
    path = tmp_path / "kept" / "runs.jsonl.xz"
    monkeypatch.setattr(report, "read_runs", lambda _=path, read=report.read_runs: read(path))
    return path


LINES = [
    {"step": 1, "tokens": 100, "loss": 2.123456789},
    {"step": 2, "tokens": 220, "loss": 1.5, "bits_per_byte": 0.7, "stories": 9},
]


def test_a_kept_run_comes_back(kept):
    report.add_run("first", LINES, kept)
    report.add_run("second", LINES[1:], kept)
    runs = report.read_runs()
    assert list(runs) == ["first", "second"] and runs["second"] == LINES[1:]
    assert runs["first"][0] == {"step": 1, "tokens": 100, "loss": pytest.approx(2.123456789, abs=1e-5)}


def test_a_name_is_kept_once(kept):
    report.add_run("first", LINES, kept)
    with pytest.raises(ValueError, match="'first' is kept already"):
        report.add_run("first", LINES, kept)
    with pytest.raises(ValueError, match="no lines"):
        report.add_run("second", [], kept)
    with pytest.raises(ValueError, match="no run 'third' is kept; there are first"):
        report.chosen_runs({"third": "third"}, in_a_row=False)


def test_runs_in_a_row_count_their_tokens_on(kept):
    for name in ("first", "second"):
        report.add_run(name, LINES, kept)
    row = report.chosen_runs({"first": "1", "second": "2"}, in_a_row=True)
    assert [line["tokens"] for line in row["2"]] == [320, 440]
    alone = report.chosen_runs({"first": "1", "second": "2"}, in_a_row=False)
    assert [line["tokens"] for line in alone["2"]] == [100, 220]


def test_a_curve_is_read_but_for_a_last_line_that_was_cut(tmp_path):
    path, whole = tmp_path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in LINES)
    path.write_text(whole + '{"step": 3, "tok')
    assert report.read_curve(path) == LINES
    for line, message in (
        ('{"st', "not JSON"),
        ('{"a": 1}', "an object with tokens"),
        ("[1]", "an object with tokens"),
    ):
        path.write_text(f"{line}\n{whole}")
        with pytest.raises(ValueError, match=f"{path}, line 1: .*{message}"):
            report.read_curve(path)


def test_every_figure_of_the_notebook_has_its_runs():
    kept = report.read_runs()
    for _, labels in report.FIGURES.values():
        assert set(labels) <= set(kept)


def test_the_command_keeps_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", "draw", str(tmp_path / "a.png"), "--names", "modern_11", "modern_12"])
    report.main()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINES[0]) + "\n")
    monkeypatch.setattr("sys.argv", ["report", "add", str(tmp_path / "metrics.jsonl"), "--name", "modern_11"])
    with pytest.raises(SystemExit):  # a run of this name is kept already, and stays
        report.main()

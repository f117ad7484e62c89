"""Whatever the compiler is or does, a story is told: by the kernel, or by PyTorch with one line that says why."""

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modeling import compiler_tiny_story
from modeling.decoder_tiny_story import NativeDecoder, open_decoder

CC = shutil.which("cc")
needs_compiler = pytest.mark.skipif(compiler_tiny_story.library() is None, reason="no C compiler")


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the compiler's logger says; the library is built anew in the test, in haste, and again after it."""
    handler = Lines()
    monkeypatch.setattr(compiler_tiny_story, "FLAGS", ["-O0", *compiler_tiny_story.FLAGS[1:]])
    compiler_tiny_story.logger.addHandler(handler)
    compiler_tiny_story.build.cache_clear()
    yield handler.lines
    compiler_tiny_story.logger.removeHandler(handler)
    compiler_tiny_story.build.cache_clear()


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str, str], str]:
    """Makes a shell script of that name; returns its path."""

    def make(name: str, script: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


@needs_compiler
@pytest.mark.parametrize("named", ["", "  ", "cc -O1", "env LANG=C cc -pipe", "'{folder}/my cc' -g0"])
def test_cc_may_hold_flags_and_another_command_before_it(monkeypatch, tmp_path, command, lines, named: str):
    command("my cc", f'exec {CC} "$@"')
    monkeypatch.setenv("CC", named.format(folder=tmp_path))
    assert compiler_tiny_story.library() is not None
    assert lines == []


@needs_compiler
@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "no such command"),
        ("echo 'kernel.c:1: error: no such processor' >&2; echo more >&2; exit 1", "no such processor"),
        ("kill -SEGV $$", "signal 11"),
        ("exit 0", "kernel.so"),  # made nothing
        (f'{CC} "$@" && for f; do case $f in *.so) printf "\\267" | dd of=$f bs=1 seek=18 conv=notrunc;; esac; done',
         "for this machine's processor"),  # for ARM
        ('for f; do case $f in *.so) echo x > "$f";; esac; done', "for this machine's processor"),
    ],
)  # fmt: skip
def test_where_cc_is_of_no_use_cc_is_tried(monkeypatch, tmp_path, command, lines, script: str | None, said: str):
    if script and "267" in script and os.uname().machine == "aarch64":
        pytest.skip("this is the other processor")
    named = str(tmp_path / "missing") if script is None else command("broken", script)
    monkeypatch.setenv("CC", named)
    assert compiler_tiny_story.library() is not None
    assert len(lines) == 1 and "\n" not in lines[0]
    assert lines[0].startswith(f"CC cannot build the decoder's C kernel, cc could: {named}: ") and said in lines[0]


def test_a_compiler_that_does_not_end_is_left(monkeypatch, command, lines):
    monkeypatch.setattr(compiler_tiny_story, "LONGEST", 0.5)
    monkeypatch.setenv("CC", command("waits", "exec sleep 30"))
    compiler_tiny_story.library()
    assert len(lines) == 1 and "not done after 0.5 s" in lines[0]


def test_without_any_compiler_pytorch_decodes_and_says_why(tiny_model, monkeypatch, command, lines):
    named = command("broken", "echo fatal error: out of order >&2; exit 3")
    monkeypatch.setenv("CC", named)
    monkeypatch.setenv("PATH", "")
    assert not isinstance(open_decoder(tiny_model), NativeDecoder)
    assert not isinstance(open_decoder(tiny_model), NativeDecoder)
    assert len(lines) == 1 and "\n" not in lines[0]  # once
    assert "out of order" in lines[0] and "cc: no such command; install a C compiler" in lines[0]
    with pytest.raises(ValueError, match=r"needs a C compiler.*out of order"):
        open_decoder(tiny_model, "native")


def test_a_cc_whose_quotes_do_not_match_is_named(monkeypatch, lines):
    monkeypatch.setenv("CC", "gcc '-m64")
    compiler_tiny_story.library()
    assert len(lines) == 1 and "gcc '-m64: No closing quotation" in lines[0]


@needs_compiler
def test_a_temporary_folder_without_execution_is_named(tiny_model, monkeypatch, tmp_path, lines):
    mounted = ["mount", "-t", "tmpfs", "-o", "noexec,size=8m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert not isinstance(open_decoder(tiny_model), NativeDecoder)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert len(lines) == 1 and f"{tmp_path} lets no program run from it: set TMPDIR" in lines[0]


@needs_compiler
def test_a_missing_temporary_folder_is_no_end(tiny_model, monkeypatch, tmp_path, lines):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert not isinstance(open_decoder(tiny_model), NativeDecoder)
    assert len(lines) == 1 and "No such file" in lines[0]

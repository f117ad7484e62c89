"""The kernel's library, built by this machine's own compiler for its own processor, once for each process."""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from transformers.utils import logging

from .kernel_tiny_story import SOURCE

# -ffast-math would be too much: it lets the compiler choose the order of sums, and so a row's bits by where it stands.
FLAGS = ["-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-ffp-contract=off"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only"]
LONGEST = 120  # seconds a compiler may take; it needs one

logger = logging.get_logger(__name__)


def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where it cannot be had; the first call says why, and what would help."""
    return build()[0]


@lru_cache(maxsize=1)
def build() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernel, or None and why not: made with what CC names, flags or ccache with it, else with cc."""
    named = os.environ.get("CC", "").strip()
    failures: list[str] = []
    for command in dict.fromkeys(filter(None, (named, "cc"))):
        try:
            built = _compile(command)
        except (OSError, ValueError, subprocess.SubprocessError) as problem:
            failures.append(f"{command}: {_said(problem)}")
            continue
        if failures:
            logger.warning("CC cannot build the decoder's C kernel, cc could: %s", failures[0])
        return built, ""
    why = "; ".join(failures)
    logger.warning("the decoder's C kernel could not be built, so PyTorch decodes, more slowly: %s", why)
    return None, why


def _compile(command: str) -> ctypes.CDLL:
    """
    Raises:
        ValueError: the command's quotes do not match.
        OSError, subprocess.SubprocessError: there is no such compiler, it fails, or what it made cannot be loaded.
    """
    compiler, *options = shlex.split(command)
    path = shutil.which(compiler)
    if path is None:
        raise FileNotFoundError("no such command; install a C compiler (gcc or clang), or name one with CC")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        source, built = Path(folder) / "kernel.c", Path(folder) / "kernel.so"
        source.write_text(SOURCE, encoding="utf-8")
        build_it = [path, *options, *FLAGS, str(source), "-o", str(built), "-lm"]
        try:
            return _load([*build_it, "-fopenmp"], built)
        except (OSError, subprocess.CalledProcessError):  # not every compiler has OpenMP
            return _load(build_it, built)


def _load(command: list[str], built: Path) -> ctypes.CDLL:
    subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=LONGEST
    )
    try:
        return ctypes.CDLL(str(built))
    except OSError as problem:
        said = str(problem)
        if "map segment" in said:  # what the loader says of a folder mounted noexec
            help_ = f"{built.parent.parent} lets no program run from it: set TMPDIR to a folder that does"
        else:
            help_ = "name a compiler for this machine's processor with CC"
        raise OSError(f"{said.replace(str(built), built.name)}; {help_}") from problem


def _said(problem: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(problem, subprocess.CalledProcessError):
        if problem.returncode < 0:
            return f"ended by signal {-problem.returncode}; name another compiler with CC"
        lines = [line.strip() for line in problem.stderr.splitlines() if line.strip()]
        line = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "it said nothing")
        return f"exit code {problem.returncode}: {line[:300]}; name another compiler with CC"
    if isinstance(problem, subprocess.TimeoutExpired):
        return f"not done after {LONGEST} s; name another compiler with CC"
    return " ".join(str(problem).split())

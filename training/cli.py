"""How the commands end when the reader has made a mistake: one line, `error: ...`, and exit code 2.

A mistake is what this project's own code refuses by a `raise`, what a library refuses where our code says `refused`,
and what the system refuses (a file that is not there, a full disk). Anything else is a fault of the program, and keeps
its traceback. Ctrl-C is one line too, and exit code 130.
"""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import psutil
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = [PROJECT / name for name in ("training", "modeling", "benchmarks")]
EXIT_CODE = 2  # as argparse's
INTERRUPTED = 128 + signal.SIGINT  # as a shell's
LAUNCHERS = {"accelerate", "accelerate-launch", "accelerate.commands.launch"}


class Parser(HfArgumentParser):
    """An `argparse.ArgumentParser`, and one for data classes, that complains in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what `one_line_errors` prints."""
        raise ValueError(message)


def positive(typed: str) -> int:
    """A whole number above 0, as a type of `argparse`."""
    number = int(typed)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {typed}")
    return number


def add_reading(parser: argparse.ArgumentParser) -> None:
    """The options that say how stories are read; `reading_options` takes them."""
    parser.add_argument("--text_column", default="text", help="column of the stories in a table")
    parser.add_argument("--story_separator", help="what parts the stories of .txt files, as in training/train.py")


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `load_stories`."""
    return {"text_column": arguments.text_column, "story_separator": arguments.story_separator}


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Name what the reader asked for when a library refuses it.

    Raises:
        ValueError: the library raised one, or an error of a file, an import, a configuration or cut weights.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, StrictDataclassError, SafetensorError) as error:
        raise ValueError(f"{what}: {error}") from error


def one_line_errors(main: Callable[[], None]) -> Callable[[], None]:
    """A command whose reader's mistakes end as this module says."""

    @wraps(main)
    def command() -> None:
        try:
            main()
        except KeyboardInterrupt:
            print("\ninterrupted; run the same command again", file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED)
        except Exception as error:
            if not is_mistake(error):
                raise
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            end_launcher()
            sys.exit(EXIT_CODE)

    return command


def is_mistake(error: Exception) -> bool:
    """Whether an error is the reader's to mend."""
    if isinstance(error, OSError):
        return True
    if not isinstance(error, (ValueError, ImportError, FloatingPointError)):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).resolve().parent in PACKAGES and (last.line or "").startswith("raise ")


def end_launcher() -> None:
    """End `accelerate launch` before it sees this process fail, since it would print a traceback of its own below the
    line that says what is wrong.

    Its exit status is then a terminated process's (143). Not where it was told `--quiet`, when it prints nothing and
    ends with 1, nor where it started several processes, which PyTorch's launcher watches and reports on.
    """
    if "LOCAL_RANK" in os.environ:
        return
    with suppress(psutil.Error):
        launcher = psutil.Process(os.getppid())
        words = launcher.cmdline()  # python, (-m,) the launcher, what it was given
        if LAUNCHERS & {Path(word).name for word in words[:3]} and not {"-q", "--quiet"} & set(words):
            launcher.terminate()

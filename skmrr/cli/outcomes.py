"""How a command ends: one line of what went wrong, an exit code for scripts, whole files only."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import typer

from skmrr.whole_files import replaced

# 1 is left to what nobody foresaw, so that no script takes a crash for an alarm.
WRONG, UNREADABLE, FLAGGED = 2, 3, 4
DEBUG = "SKMRR_DEBUG"  # environment variable that has a traceback shown


class UnreadableError(ValueError):
    """A row cannot be read, and the command was told to stop there."""


def printable(text: str) -> str:
    """Text whose control characters, perhaps of a file's name, cannot act on a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(text: object) -> None:
    """Tell the user a line; results alone go to the standard output."""
    lines = [" ".join(line.split()) for line in str(text).splitlines()]
    typer.echo(f"skmrr: {printable(' '.join(lines))}", err=True)


@contextmanager
def answering() -> Iterator[None]:
    """Turn errors of a command into one line and an exit code, and warnings into a line each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between packages
        warnings.showwarning = _say_warning
        try:
            yield
        except (typer.Exit, BrokenPipeError):
            raise
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            if os.environ.get(DEBUG):
                raise
            say(error)
            code = UNREADABLE if isinstance(error, UnreadableError) else WRONG
            raise typer.Exit(code) from error


def _say_warning(message, *_args: Any, **_kwargs: Any) -> None:
    say(f"warning: {message}")


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Open a text file that takes its place once it is whole; interrupted, it leaves no trace."""
    with (
        replaced(path) as beside,
        beside.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


def is_watched() -> bool:
    """Whether somebody sees a progress bar."""
    return sys.stderr.isatty()

"""The command ``skmrr``."""

from skmrr.cli.commands import app, main, typed

__all__ = ["app", "main", "typed"]

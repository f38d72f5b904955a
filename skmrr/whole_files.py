"""Files that are replaced once the new one is whole."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a path beside a file, to write the new one at; interrupted, it leaves no trace.

    Raises
    ------
    FileNotFoundError
        If there is no folder to write in.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write in: make it first.")
    beside = path.with_name(f".{secrets.token_hex(8)}.{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)

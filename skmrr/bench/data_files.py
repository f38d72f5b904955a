"""Where data files lie: lookup in folders, download with a checksum, checked reading."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def data_home() -> Path:
    """Return the user's cache folder for data sets; it need not exist.

    Returns
    -------
    Path
        ``$XDG_CACHE_HOME/skmrr``, or ``~/.cache/skmrr`` without that variable.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skmrr"


def _folders() -> list[Path]:
    """Folders to search, the user's choice first."""
    chosen = os.environ.get("SKMRR_DATA")
    return [Path(chosen).expanduser(), data_home()] if chosen else [data_home()]


def find_all(filename: str) -> list[Path]:
    """List the copies of a file in all folders."""
    return [folder / filename for folder in _folders() if (folder / filename).is_file()]


def find(filename: str) -> Path | None:
    """Return the first copy of a file."""
    return next(iter(find_all(filename)), None)


def advice(filename: str, url: str | None = None) -> str:
    """Say where a file was looked for and what to do about it."""
    text = (
        f"{filename} is not in {' or '.join(map(str, _folders()))}. Put it in {data_home()}, "
        "or set the environment variable SKMRR_DATA to the folder that holds it"
    )
    if url is None:
        return text + "; it cannot be downloaded."
    return text + f', or run pip install "skmrr[data]" and call again to download {url}.'


def download(url: str, known_hash: str, folder: Path, wanted: str) -> Path:
    """Download into ``folder`` with a checksum; pooch raises ValueError when it differs."""
    try:
        import pooch
    except ImportError as error:
        raise FileNotFoundError(advice(wanted, url)) from error
    try:
        return Path(pooch.retrieve(url, known_hash, fname=url.rsplit("/", 1)[-1], path=folder))
    except OSError as error:  # requests' exceptions are OSErrors too
        message = f"{advice(wanted, url)} The download failed: {error}"
        raise FileNotFoundError(message) from error


def read(path: Path, *names: str) -> list[NDArray[Any]]:
    """Read named arrays of an npz file."""
    try:
        # opened here because numpy leaves the file open when it is no zip archive
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return [archive[name] for name in names]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged or not the expected npz file with the arrays {', '.join(names)} "
            f"({error}). Replace it by a sound copy, or delete it to look elsewhere."
        ) from error


def read_split(path: Path, split: str, shape: tuple[int, ...]) -> tuple[Bytes, NDArray[Any]]:
    """Read ``x_split`` and ``y_split`` (Keras layout) and check that they fit together."""
    images, labels = read(path, f"x_{split}", f"y_{split}")
    labels = labels.ravel()
    if images.dtype != np.uint8 or images.shape != (len(labels), *shape):
        raise ValueError(
            f"{path}: x_{split} must be uint8 of shape {(len(labels), *shape)}, one image for each "
            f"of y_{split}; it is {images.dtype} of shape {images.shape}. Replace the file."
        )
    return images, labels

"""Rows as they lie on a disk: folders and lists of image files, arrays of numpy."""

import csv
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from skmrr.cli.decoding import SUFFIXES, ArrayReader, ImageReader
from skmrr.cli.settings import Settings
from skmrr.nn.wording import shortened


@dataclass(frozen=True)
class Data(Dataset):
    """Rows by name, each read when it is asked for."""

    names: Sequence[str]
    items: Sequence[Any]
    """What `read` makes a row of."""
    read: Callable[[Any], Tensor]
    marks: np.ndarray | None
    """Class of each row, by its name or number as the data have it."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Tensor:
        return self.read(self.items[position])

    def at(self, positions: Sequence[int]) -> "Data":
        """Rows at these positions alone."""
        return replace(
            self,
            names=[self.names[k] for k in positions],
            items=[self.items[k] for k in positions],
            marks=None if self.marks is None else self.marks[list(positions)],
        )


def open_data(path: Path, settings: Settings) -> Data:
    """Find the rows of a folder of images, a ``.csv`` that lists them, an ``.npz`` or ``.npy``.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is nothing, or something else; the message says what to do.
    """
    if path.is_dir():
        data = _of_folder(path, settings)
    elif not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    elif path.suffix == ".csv":
        data = _of_list(path, settings)
    elif path.suffix in (".npz", ".npy"):
        data = _of_arrays(path, settings)
    else:
        raise ValueError(f"{path} is no folder of images, and no file .csv, .npz or .npy.")
    if not len(data):
        raise ValueError(f"{path} holds no rows; images end in {', '.join(sorted(SUFFIXES))}.")
    return data


def check_clean(data: Data) -> None:
    """Raise a ValueError if the data say of a row that it is adversarial."""
    if data.marks is not None and data.marks.dtype.kind in "iu" and (data.marks < 0).any():
        raise ValueError("Rows of class -1 are adversarial: leave them out, as only fit does.")


def class_numbers(data: Data, classes: Sequence[str] | None, n_logits: int):
    """Class numbers of rows, shape (n_rows,), or None where the data name no classes.

    Raises
    ------
    ValueError
        If a name is none of the classifier's classes, or which these are is not known.
    """
    if data.marks is None:
        return None
    if data.marks.dtype.kind in "iu":
        if data.marks.max() >= n_logits:
            raise ValueError(
                f"There is a class {data.marks.max()}, but the classifier has {n_logits} logits: "
                "number the classes from 0 on, as it does."
            )
        return data.marks.astype(np.int64)
    found = sorted(set(data.marks))
    names = found if classes is None else list(classes)
    if len(names) != n_logits:
        raise ValueError(
            f"The classifier has {n_logits} logits, but there are {len(names)} names of classes "
            f"({shortened(names)}): set classes = [...] in the settings, in the order of the "
            "logits."
        )
    if unknown := [name for name in found if name not in names]:
        raise ValueError(f"{shortened(unknown)} is no class; classes are: {shortened(names, 20)}.")
    number = {name: k for k, name in enumerate(names)}
    return np.array([number[mark] for mark in data.marks])


def _of_folder(folder: Path, settings: Settings) -> Data:
    """Image files in a folder; where all lie in folders of it, these are their classes."""
    found = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in parts):
            found.append((parts, path))
    found.sort()
    marks = None
    if all(len(parts) > 1 for parts, _ in found):
        marks = np.array([parts[0] for parts, _ in found], dtype=object)
    names = ["/".join(parts) for parts, _ in found]
    return Data(names, [path for _, path in found], ImageReader.of(settings), marks)


def _of_list(path: Path, settings: Settings) -> Data:
    """Image files by a table with the column ``file`` and perhaps ``class``."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = list(csv.DictReader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table in CSV and UTF-8: {error}") from error
    if not records:
        raise ValueError(f"{path} lists no rows; its first line must be file,class.")
    if not records[0].get("file"):
        raise ValueError(f"{path} has the columns {', '.join(map(str, records[0]))}, but no file.")
    names = [record["file"] or "" for record in records]
    marks = None
    if "class" in records[0]:
        marks = np.array([record["class"] or "" for record in records], dtype=object)
        if settings.classes is None and all(mark.isdecimal() for mark in marks):
            marks = marks.astype(np.int64)
    return Data(names, [path.parent / name for name in names], ImageReader.of(settings), marks)


def _of_arrays(path: Path, settings: Settings) -> Data:
    try:
        if path.suffix == ".npy":
            arrays = {"X": np.load(path, mmap_mode="r", allow_pickle=False)}
        else:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged, or holds no plain arrays: {error}") from error
    X, y = arrays.get("X", arrays.get("x")), arrays.get("y")
    if X is None or X.ndim < 2 or X.dtype.kind not in "fiub":
        raise ValueError(
            f"{path} must hold an array X of numbers, shape (n_rows, …), and perhaps y, the "
            f"classes; it holds {', '.join(f'{n} {a.shape} {a.dtype}' for n, a in arrays.items())}."
        )
    if y is not None and (y.shape != X.shape[:1] or y.dtype.kind not in "iu"):
        raise ValueError(f"{path}: y must hold a whole number for each of the {len(X)} rows of X.")
    names = [f"{path.name}[{k}]" for k in range(len(X))]
    return Data(names, range(len(X)), ArrayReader(X, settings.bounds), y)

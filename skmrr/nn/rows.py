"""Rows of an array, tensor or dataset, read batch by batch."""

import copy
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skmrr.nn.samples import Samples

NOT_FINITE = "Input X contains NaN or infinity; drop or repair those rows."
SMALL_PART = 0.02  # less of the declared range is another scale: 0 to 1, say, of 0 to 255


class Rows:
    """Indexable rows that become tensors one batch at a time.

    Parameters
    ----------
    source : ndarray, numpy.memmap, Dataset or DataLoader
        The rows along the first axis. A dataset yields ``x`` or ``(x, label)``; what a loader is
        good for, `Samples` says.
    input_shape : tuple of int, optional
        Shape that each flat row is given before a network sees it.
    clip_values : tuple of float, optional
        Declared (lowest, highest) value of an entry, in the units of the rows.
    trusted : bool, default=False
        Whether the caller has checked the values already. Otherwise every batch is checked.

    Raises
    ------
    TypeError
        If the source has no length or cannot be indexed.
    ValueError
        If there is no row, or a value is not finite or outside ``clip_values``.
    """

    def __init__(self, source, *, input_shape=None, clip_values=None, trusted=False):
        is_dataset = isinstance(source, Dataset | DataLoader)
        self.source = Samples(source) if is_dataset else source
        if len(self.source) == 0:
            raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
        self.input_shape = tuple(input_shape) if input_shape is not None else None
        self.clip_values = clip_values
        self.trusted = trusted
        self._labels: np.ndarray | None = None  # as the check has found them

    def __len__(self) -> int:
        return len(self.source)

    def __sizeof__(self) -> int:
        """Bytes, by which Dask decides what is sent to a worker once and not with every task."""
        return object.__sizeof__(self) + int(getattr(self.source, "nbytes", 0))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row as a network sees it."""
        return tuple(self.take([0]).shape[1:])

    def shaped(self, input_shape) -> "Rows":
        """Return the same rows, seen in another shape."""
        other = copy.copy(self)
        vars(other).pop("shape", None)
        other.input_shape = tuple(input_shape) if input_shape is not None else None
        return other

    def part(self, indices: np.ndarray):
        """Rows at `indices` alone, as a user would give them."""
        source = self.source
        return source.part(indices) if isinstance(source, Samples) else source[indices]

    def take(self, indices) -> Tensor:
        """Rows at `indices` as one tensor, shape (len(indices), …), in the source's dtype."""
        if isinstance(self.source, Samples):
            return self._prepared(self.source[indices][0])
        picked = self.source[indices]
        # torch warns of memory that it could not write to, such as that of a memmap.
        return self._prepared(torch.as_tensor(np.require(picked, requirements=["C", "W"])))

    def batches(self, batch_size: int, indices=None) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions, batch) over all rows, or over the rows at `indices`, in order."""
        for positions, batch, _ in self._labelled(batch_size, indices):
            yield positions, batch

    def check(self, batch_size: int) -> None:
        """Read every row once, so that a bad value is found before any work is lost."""
        if not self.trusted:
            self._labels = self._read_labels(batch_size)
            self.trusted = True

    def labels(self, batch_size: int) -> np.ndarray | None:
        """Class labels of a dataset that yields (x, label), else None."""
        if self._labels is None and isinstance(self.source, Samples) and not self.trusted:
            self.check(batch_size)
        return self._labels

    def _read_labels(self, batch_size: int) -> np.ndarray | None:
        """Read every row; return the labels, or None where some have none."""
        parts = [labels for *_, labels in self._labelled(batch_size)]
        if any(part is None or any(label is None for label in part) for part in parts):
            return None
        return np.concatenate([np.asarray(part) for part in parts])

    def _labelled(self, batch_size: int, indices=None) -> Iterator[tuple[slice, Tensor, Any]]:
        n = len(self) if indices is None else len(indices)
        slices = [slice(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
        if isinstance(self.source, Samples):
            of_all = np.arange(n) if indices is None else np.asarray(indices)
            batches = self.source.stream([of_all[positions] for positions in slices])
            for positions, (batch, labels) in zip(slices, batches, strict=True):
                yield positions, self._prepared(batch), labels
        else:
            for positions in slices:
                picked = positions if indices is None else indices[positions]
                yield positions, self.take(picked), None

    def _prepared(self, batch: Tensor) -> Tensor:
        """Batch with its values checked, in the shape that a network sees."""
        if not self.trusted:
            check_values(batch, self.clip_values)
        if self.input_shape is not None and tuple(batch.shape[1:]) != self.input_shape:
            try:
                batch = batch.reshape(len(batch), *self.input_shape)
            except RuntimeError as error:
                raise ValueError(
                    f"Rows of X cannot be given input_shape={self.input_shape}: {error}"
                ) from error
        return batch


def check_values(batch: Tensor, clip_values=None) -> None:
    """Raise a ValueError that names the cure if `batch` holds values no network should see."""
    if batch.is_floating_point() and not torch.isfinite(batch).all():
        raise ValueError(NOT_FINITE)
    if clip_values is not None:
        check_range(float(batch.min()), float(batch.max()), clip_values)


def bounds(clip_values) -> tuple[float, float]:
    """Lowest and highest value to be accepted; all that are finite where no range is declared."""
    if clip_values is None:
        most = float(np.finfo(np.float64).max)
        return -most, most
    low, high = clip_values
    slack = 1e-6 * (high - low)  # float32 rounding of a rescaled image is no error
    return low - slack, high + slack


def check_range(lowest: float, highest: float, clip_values) -> None:
    """Raise a ValueError if [lowest, highest] leaves the declared range of pixels."""
    least, most = bounds(clip_values)
    if lowest < least or highest > most:
        low, high = clip_values
        raise ValueError(
            f"X spans [{lowest:g}, {highest:g}], outside the declared clip_values=({low:g}, "
            f"{high:g}); rescale X (8-bit pixels: divide by 255) or correct clip_values."
        )


def warn_of_scale(lowest: float, highest: float, clip_values) -> None:
    """Warn if [lowest, highest] is so small a part of the declared range that it looks wrong."""
    low, high = clip_values
    if highest - lowest < SMALL_PART * (high - low):
        warnings.warn(
            f"X spans [{lowest:g}, {highest:g}] alone, of the declared clip_values=({low:g}, "
            f"{high:g}); if its pixels are on another scale, correct clip_values.",
            stacklevel=2,
        )

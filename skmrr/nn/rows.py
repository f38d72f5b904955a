"""Rows of an array, tensor or dataset, read batch by batch."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

NOT_FINITE = "Input X contains NaN or infinity; drop or repair those rows."
SMALL_PART = 0.02  # less of the declared range is another scale: 0 to 1, say, of 0 to 255


class Rows:
    """Indexable rows that become tensors one batch at a time.

    Parameters
    ----------
    source : ndarray, numpy.memmap, Dataset or DataLoader
        The rows along the first axis. A dataset yields ``x`` or ``(x, label)``. Of a loader its
        dataset is read, in the dataset's order, so that scores line up with its rows.
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
        if isinstance(source, DataLoader):
            source = source.dataset
        if isinstance(source, IterableDataset) or not hasattr(source, "__len__"):
            raise TypeError(
                f"{type(source).__name__} cannot be indexed; give an array, a tensor, or a "
                "map-style torch Dataset."
            )
        if len(source) == 0:
            raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
        self.source = source
        self.input_shape = tuple(input_shape) if input_shape is not None else None
        self.clip_values = clip_values
        self.trusted = trusted

    def __len__(self) -> int:
        return len(self.source)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row as a network sees it."""
        return tuple(self.take([0]).shape[1:])

    def shaped(self, input_shape) -> "Rows":
        """Return the same rows, seen in another shape."""
        return Rows(
            self.source,
            input_shape=input_shape,
            clip_values=self.clip_values,
            trusted=self.trusted,
        )

    def take(self, indices) -> Tensor:
        """Rows at `indices` as one tensor, shape (len(indices), …), in the source's dtype."""
        if isinstance(self.source, Dataset):
            batch = self._collate(indices)[0]
            if not isinstance(batch, Tensor):
                raise TypeError(
                    f"The dataset yields a {type(batch).__name__}; make it yield a tensor, or "
                    "(tensor, label)."
                )
        else:
            picked = self.source[indices]
            # torch warns of memory that it could not write to, such as that of a memmap.
            batch = torch.as_tensor(np.require(picked, requirements=["C", "W"]))
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

    def batches(self, batch_size: int, indices=None) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions, batch) over all rows, or over the rows at `indices`, in order."""
        n = len(self) if indices is None else len(indices)
        for start in range(0, n, batch_size):
            positions = slice(start, min(start + batch_size, n))
            yield positions, self.take(positions if indices is None else indices[positions])

    def check(self, batch_size: int) -> None:
        """Read every row once, so that a bad value is found before any work is lost."""
        if not self.trusted:
            for _ in self.batches(batch_size):
                pass
            self.trusted = True

    def labels(self, batch_size: int) -> np.ndarray | None:
        """Class labels of a dataset that yields (x, label), else None."""
        if not isinstance(self.source, Dataset) or not isinstance(self.source[0], tuple | list):
            return None
        starts = range(0, len(self), batch_size)
        parts = [self._collate(range(s, min(s + batch_size, len(self))))[1] for s in starts]
        return torch.cat(parts).numpy()

    def _collate(self, indices):
        if isinstance(indices, slice):
            indices = range(*indices.indices(len(self)))
        items = [self.source[int(i)] for i in indices]
        return default_collate([i if isinstance(i, tuple | list) else (i,) for i in items])


def check_values(batch: Tensor, clip_values=None) -> None:
    """Raise a ValueError that names the cure if `batch` holds values no network should see."""
    if batch.is_floating_point() and not torch.isfinite(batch).all():
        raise ValueError(NOT_FINITE)
    if clip_values is not None:
        check_range(float(batch.min()), float(batch.max()), clip_values)


def check_range(lowest: float, highest: float, clip_values) -> None:
    """Raise a ValueError if [lowest, highest] leaves the declared range of pixels."""
    low, high = clip_values
    slack = 1e-6 * (high - low)  # float32 rounding of a rescaled image is no error
    if lowest < low - slack or highest > high + slack:
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

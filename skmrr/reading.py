"""From what users give for X to rows that are checked and read in batches."""

import math

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import assert_all_finite, check_array, validate_data
from torch.utils.data import DataLoader, Dataset

from skmrr.distributed import is_dask_array, spooled
from skmrr.nn.memory import MOST_ROWS
from skmrr.nn.rows import NOT_FINITE, Rows, check_range, warn_of_scale


class RowReader(BaseEstimator):
    """Estimator of rows, with parameters ``input_shape``, ``clip_values`` and ``batch_size``."""

    _rows_at_once = MOST_ROWS  # by the memory of a pass, once that is measured

    @property
    def batch_size_(self) -> int:
        """Rows per pass."""
        return self._rows_at_once if self.batch_size == "auto" else self.batch_size

    def _read_rows(self, X, *, reset: bool) -> Rows:
        """Check X and make it readable in batches.

        Arrays are checked in full at once; datasets batch by batch, as they are read.
        """
        clip_values = self.clip_values
        if clip_values is not None and not (
            np.shape(clip_values) == (2,) and clip_values[0] < clip_values[1]
        ):
            raise ValueError(
                f"clip_values={clip_values} must be (lowest, highest), one range for all values."
            )
        if isinstance(X, DataLoader | Dataset):
            rows = Rows(X, input_shape=self.input_shape, clip_values=clip_values)
        else:
            X = self._check_array(X, reset=reset)
            rows = Rows(X, input_shape=self.input_shape, trusted=True)
        shape = rows.shape
        if reset:
            self._remember_shape(shape)
        elif shape != self.input_shape_:
            raise ValueError(
                f"A row of X has shape {shape}, but {type(self).__name__} was fitted on rows of "
                f"shape {self.input_shape_}; reshape X, or set input_shape for flat rows."
            )
        return rows

    def _remember_shape(self, shape: tuple[int, ...]) -> None:
        self.input_shape_ = shape
        self.n_features_in_ = math.prod(shape)

    def _check_array(self, X, *, reset: bool) -> np.ndarray:
        if isinstance(X, torch.Tensor):
            X = X.detach().cpu()
            X = (X.float() if X.dtype == torch.bfloat16 else X).numpy()
        elif is_dask_array(X):
            X = spooled(X)
        elif isinstance(X, list | tuple):
            X = np.asarray(X)
        if type(X) is np.ndarray and X.ndim > 2 and X.dtype.kind in "fiub" and len(X):
            pass  # nothing to convert, and one image waits for no other check
        elif getattr(X, "ndim", 2) > 2:
            X = check_array(X, allow_nd=True, ensure_all_finite=False, estimator=self)
        else:
            X = validate_data(self, X, reset=reset, ensure_all_finite=False)
        try:
            assert_all_finite(X)
        except ValueError:
            raise ValueError(NOT_FINITE) from None  # scikit-learn's own cures are for tables
        if self.clip_values is not None:
            lowest, highest = float(X.min()), float(X.max())
            check_range(lowest, highest, self.clip_values)
            if reset:
                warn_of_scale(lowest, highest, self.clip_values)
        return X

"""What estimators with torch networks among their parameters share."""

import copy
import io
import pickle

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import assert_all_finite, check_array, validate_data
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from skmrr.nn.rows import NOT_FINITE, Rows, check_range, warn_of_scale


class NetworkEstimator(BaseEstimator):
    """Estimator whose parameters may be networks, and whose rows may be anything torch reads.

    Networks given as parameters are shared by ``clone``: they are read only, and a copy per
    cross-validation split would cost memory for nothing. They pickle as plain arrays, so that
    ``joblib.hash`` of the estimator depends on their values alone and ``Pipeline(memory=…)`` hits.
    """

    def __sklearn_clone__(self):
        """Clone as scikit-learn does, but share the networks."""
        networks = {k: v for k, v in self.get_params(deep=False).items() if _is_network(v)}
        bare = copy.copy(self).set_params(**dict.fromkeys(networks))
        return BaseEstimator.__sklearn_clone__(bare).set_params(**networks)

    def __getstate__(self):
        """Pack the networks."""
        state = super().__getstate__()
        return {k: _PackedNetwork(v) if _is_network(v) else v for k, v in state.items()}

    def __setstate__(self, state):
        """Unpack the networks."""
        state = {k: v.network if isinstance(v, _PackedNetwork) else v for k, v in state.items()}
        super().__setstate__(state)

    def _read_rows(self, X, *, reset: bool) -> Rows:
        """Check X and make it readable in batches.

        Arrays are checked in full at once; datasets batch by batch, as they are read.
        """
        clip_values = self.clip_values
        if clip_values is not None and not (
            len(clip_values) == 2 and clip_values[0] < clip_values[1]
        ):
            raise ValueError(f"clip_values={clip_values} must be (lowest, highest).")
        if isinstance(X, DataLoader | Dataset | IterableDataset):
            rows = Rows(X, input_shape=self.input_shape, clip_values=self.clip_values)
            if reset:
                self.n_features_in_ = int(np.prod(rows.shape))
        else:
            X = self._check_array(X, reset=reset)
            rows = Rows(X, input_shape=self.input_shape, trusted=True)
        shape = rows.shape
        if reset:
            self.input_shape_ = shape
        elif shape != self.input_shape_:
            raise ValueError(
                f"A row of X has shape {shape}, but {type(self).__name__} was fitted on rows of "
                f"shape {self.input_shape_}; reshape X, or set input_shape for flat rows."
            )
        return rows

    def _check_array(self, X, *, reset: bool) -> np.ndarray:
        if isinstance(X, torch.Tensor):
            X = X.detach().cpu().numpy()
        elif isinstance(X, list | tuple):
            X = np.asarray(X)
        if getattr(X, "ndim", 2) > 2:
            X = check_array(X, allow_nd=True, ensure_all_finite=False, estimator=self)
            if reset:
                self.n_features_in_ = int(np.prod(X.shape[1:]))
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


class _PackedNetwork:
    """A network that pickles to bytes made of plain arrays, the same for equal weights."""

    def __init__(self, network: nn.Module):
        self.network = network

    def __reduce__(self):
        buffer = io.BytesIO()
        _ArrayPickler(buffer, protocol=4).dump(self.network)
        return _unpack, (buffer.getvalue(),)


def _unpack(packed: bytes) -> _PackedNetwork:
    return _PackedNetwork(pickle.loads(packed))


class _ArrayPickler(pickle.Pickler):
    """Pickles tensors as arrays: torch's own format holds memory addresses."""

    def reducer_override(self, obj):
        if isinstance(obj, torch.Tensor):
            flat = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            layout = (obj.dtype, obj.shape, obj.stride(), str(obj.device))
            return _tensor, (flat, *layout, isinstance(obj, nn.Parameter), obj.requires_grad)
        return NotImplemented


def _tensor(flat, dtype, shape, stride, device, is_parameter, requires_grad) -> torch.Tensor:
    # What left an accelerator comes back to it, or to the CPU of a machine without one.
    home = device if device == "cpu" or torch.cuda.is_available() else "cpu"
    tensor = torch.as_tensor(flat).view(dtype).reshape(shape)
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if extent == tensor.numel():
        # Dense: keep the order of the axes in memory, in which convolutions round differently.
        tensor = torch.empty_strided(shape, stride, dtype=dtype).copy_(tensor)
    tensor = tensor.to(home)
    return nn.Parameter(tensor, requires_grad) if is_parameter else tensor


def _is_network(value) -> bool:
    return isinstance(value, nn.Module)

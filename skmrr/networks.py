"""Estimators with torch networks among their parameters: cloning, pickling, hashing."""

import copy
import io
import pickle

import cloudpickle
import torch
from sklearn.base import BaseEstimator
from torch import nn

from skmrr._sklearn import CallbackSupportMixin
from skmrr.nn.placement import resolve_device


class NetworkEstimator(CallbackSupportMixin, BaseEstimator):
    """Estimator whose parameters may be networks, and whose rows may be anything torch reads.

    Networks given as parameters are shared by ``clone``: they are read only, and a copy per
    cross-validation split would cost memory for nothing. They pickle as plain arrays, so that
    ``joblib.hash`` of the estimator depends on their values alone and ``Pipeline(memory=…)`` hits.
    Classes and functions of a notebook or script pickle with them, so that other processes know
    them; such hashes hold within one process alone.
    """

    @property
    def _n_parts(self) -> int | None:
        """How many parts of a fit callbacks are told of; None where that is not known yet."""
        return 0

    def __sklearn_clone__(self):
        """Clone as scikit-learn does, but share the networks."""
        networks = {k: v for k, v in self.get_params(deep=False).items() if _is_network(v)}
        bare = copy.copy(self).set_params(**dict.fromkeys(networks))
        return BaseEstimator.__sklearn_clone__(bare).set_params(**networks)

    def __deepcopy__(self, memo):
        """Copy the networks as they copy themselves, which need not pickle."""
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(vars(self), memo))
        return copied

    def __getstate__(self):
        """Pack the networks, all of them together: what they share stays shared."""
        state = dict(super().__getstate__())
        networks = {k: state.pop(k) for k in sorted(state) if _is_network(state[k])}
        return {**state, _NETWORKS: _Packed(networks)} if networks else state

    def __setstate__(self, state):
        """Unpack the networks."""
        networks = state[_NETWORKS].networks if _NETWORKS in state else {}
        own = {k: v for k, v in state.items() if k != _NETWORKS}
        super().__setstate__({**own, **networks})

    def _device(self) -> torch.device:
        """Where to compute: the parameter ``device``, by default where the first network lives."""
        networks = filter(_is_network, self.get_params(deep=False).values())
        return resolve_device(self.device, *networks)


_NETWORKS = "networks"  # where the packed networks stand in a pickled state


class _Packed:
    """Networks that pickle to bytes made of plain arrays, the same for equal weights."""

    def __init__(self, networks: dict[str, nn.Module]):
        self.networks = networks

    def __reduce__(self):
        buffer = io.BytesIO()
        _ArrayPickler(buffer, protocol=4).dump(self.networks)
        return _unpack, (buffer.getvalue(),)


def _unpack(packed: bytes) -> _Packed:
    return _Packed(pickle.loads(packed))


class _ArrayPickler(cloudpickle.Pickler):
    """Pickles tensors as arrays: torch's own format holds memory addresses."""

    def reducer_override(self, obj):
        if isinstance(obj, torch.Tensor):
            flat = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            layout = (obj.dtype, obj.shape, obj.stride(), str(obj.device))
            return _tensor, (flat, *layout, isinstance(obj, nn.Parameter), obj.requires_grad)
        return super().reducer_override(obj)


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

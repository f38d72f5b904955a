"""Estimators with torch networks among their parameters: cloning, pickling, hashing."""

import copy
import hashlib
import io
import pickle
import sys
from collections import OrderedDict
from contextvars import ContextVar
from typing import Any

import cloudpickle
import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch
from torch import nn
from torch.nn.utils import parametrize

from skmrr._sklearn import CallbackSupportMixin
from skmrr.nn.fingerprint import content
from skmrr.nn.placement import is_dense, resolve_device
from skmrr.nn.stacking import MarginStack
from skmrr.nn.tapped import HOOKS, Tap


class NetworkEstimator(CallbackSupportMixin, BaseEstimator):
    """Estimator whose parameters may be networks, and whose rows may be anything torch reads.

    Networks given as parameters are shared by ``clone``: they are read only, and a copy per
    cross-validation split would cost memory for nothing. Everything pickles by value, so that
    ``joblib.hash`` of the estimator depends on values alone and ``Pipeline(memory=…)`` hits.
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
        """Pack all networks together, those of estimators within too: what they share is shared."""
        state = dict(super().__getstate__())
        return state if _is_packing.get() else {_PACKED: Packed(state)}

    def __setstate__(self, state):
        """Unpack the networks."""
        super().__setstate__(state[_PACKED].state if _PACKED in state else state)

    def _device(self) -> torch.device:
        """Where to compute: the parameter ``device``, by default where the first network lives."""
        networks = filter(_is_network, self.get_params(deep=False).values())
        return resolve_device(self.device, *networks)


_PACKED = "packed"  # where the packed state stands in a pickled one
_is_packing: ContextVar[bool] = ContextVar("is_packing", default=False)
NUMBERED = (
    *("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"),
    "_forward_hooks_always_called",
)


def value_hash(value: Any) -> str:
    """SHA-256 of a value, of which networks, tensors and detectors may be part.

    It is the same in every process, but for classes and functions of a notebook or script.
    """
    return hashlib.sha256(Packed({"value": value}).packed()).hexdigest()


class Packed:
    """State that pickles to bytes, the same for equal values, whatever networks are part of it."""

    def __init__(self, state: dict[str, Any]):
        self.state = state

    def packed(self) -> bytes:
        """Bytes that the state pickles to."""
        buffer = io.BytesIO()
        token = _is_packing.set(True)
        try:
            _ValuePickler(buffer, protocol=4).dump(_canonical(self.state, in_order=True))
        finally:
            _is_packing.reset(token)
        return buffer.getvalue()

    def __reduce__(self):
        return _unpack, (self.packed(),)


def _unpack(packed: bytes) -> Packed:
    return Packed(pickle.loads(packed))


class _ValuePickler(cloudpickle.Pickler):
    """Pickler to which values count, not which of them are one object.

    Tensors and arrays are written as bytes, equal ones once: torch's own format holds memory
    addresses, and a replica begins as a copy of its classifier. A stack is made anew from its
    replicas, whose weights it has.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._contents: dict[bytes, bytes] = {}

    def reducer_override(self, obj):
        if isinstance(obj, torch.Tensor):
            strides = obj.stride() if is_dense(obj) else obj.contiguous().stride()
            layout = (obj.dtype, tuple(obj.shape), strides, str(obj.device))
            flags = isinstance(obj, nn.Parameter), obj.requires_grad
            return _tensor, (self._once(content(obj)), *layout, *flags)
        if type(obj) is np.ndarray and not obj.dtype.hasobject:
            is_fortran = obj.flags.f_contiguous and not obj.flags.c_contiguous
            return _array, (self._once(obj.tobytes()), obj.dtype.str, obj.shape, is_fortran)
        if isinstance(obj, MarginStack):
            return MarginStack, (obj.replicas, obj.fold)
        if type(obj) is Bunch:
            return Bunch, (), None, None, iter(_canonical(dict(obj)).items())
        if isinstance(obj, nn.Module) and parametrize.is_parametrized(obj):
            parts = obj.parametrizations
            assert isinstance(parts, nn.ModuleDict)
            made = parametrize.type_before_parametrizations(obj), tuple(parts)
            return _parametrized, made, _canonical(vars(obj))
        if isinstance(obj, nn.Module | BaseEstimator | Tap):
            reduced = obj.__reduce_ex__(4)
            in_order = isinstance(obj, BaseEstimator)
            return *reduced[:2], *(_canonical(part, in_order) for part in reduced[2:])
        return super().reducer_override(obj)

    def _once(self, values: bytes) -> bytes:
        return self._contents.setdefault(hashlib.sha256(values).digest(), values)


def _canonical(value: Any, in_order: bool = False) -> Any:
    """Value with each string one object, sets in order, and hooks numbered from −1 down.

    A pickle says which strings are one object, which depends on where they come from. Hooks are
    numbered as they come in a process; their numbers below zero are nobody's.
    """
    if type(value) is str:
        return sys.intern(value)
    if type(value) in (list, tuple):
        return type(value)(map(_canonical, value))
    if type(value) is set and all(isinstance(part, str) for part in value):
        return _StringSet(sorted(value))
    if type(value) is not dict:
        return value
    items = sorted(value.items()) if in_order else value.items()
    canonical = {_canonical(key): _canonical(part) for key, part in items}
    if any(map(value.get, NUMBERED)):  # which hooks want more than others, by their numbers
        return canonical
    for name in HOOKS:
        if isinstance(hooks := value.get(name), OrderedDict):
            numbered = ((-1 - k, hook) for k, hook in enumerate(hooks.values()))
            canonical[name] = OrderedDict(numbered)
    return canonical


class _StringSet:
    """Set of strings that is pickled in their order."""

    def __init__(self, strings: list[str]):
        self.strings = strings

    def __reduce__(self):
        return set, (list(map(sys.intern, self.strings)),)


def _parametrized(kind: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """Make a module without a state yet whose tensors of these names are parametrised.

    torch makes a class for each such module, which it does not pickle.
    """
    module = kind.__new__(kind)
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    return module


def _array(values: bytes, dtype: str, shape, is_fortran: bool) -> np.ndarray:
    flat = np.frombuffer(values, dtype=np.dtype(dtype))
    return np.array(flat.reshape(shape), order="F" if is_fortran else "C")


def _tensor(values, dtype, shape, stride, device, is_parameter, requires_grad) -> torch.Tensor:
    # What left an accelerator comes back to it, or to the CPU of a machine without one.
    home = device if device == "cpu" or torch.cuda.is_available() else "cpu"
    tensor = torch.empty(shape, dtype=dtype)
    if values:
        tensor = torch.frombuffer(bytearray(values), dtype=dtype).reshape(shape)
    # The order of the axes in memory is kept: convolutions round differently in another one.
    tensor = torch.empty_strided(shape, stride, dtype=dtype).copy_(tensor).to(home)
    return nn.Parameter(tensor, requires_grad) if is_parameter else tensor


def _is_network(value) -> bool:
    return isinstance(value, nn.Module)

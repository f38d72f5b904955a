"""Modules, tensors and plain values as JSON and stored tensors, each of them once.

A record stands for an object, and refers to those before it alone. A module is written by its
class, if files may name that; a module of somebody else by the place of one like it in a network
that the reader will be given. See `skmrr.nn.rebuilt` for the way back.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from skmrr.nn.fingerprint import COMMON, PLAIN, content, settings
from skmrr.nn.known import FUNCTIONS, known_name
from skmrr.nn.placement import is_dense
from skmrr.nn.stacking import MarginStack
from skmrr.nn.tapped import HALVES, HOOKS, LayerChange, Tap, Tapped, unwrapped
from skmrr.nn.traced import write_graph

Record = dict[str, Any]
FUNCTION_NAMES = {function: name for name, function in FUNCTIONS.items()}
SEQUENCES: dict[type, str] = {
    tuple: "tuple",
    set: "set",
    frozenset: "frozenset",
    torch.Size: "size",
}


class Writer:
    """Writes objects down.

    Parameters
    ----------
    givens : dict of str to nn.Module
        Networks that the reader will be given by these names.
    """

    def __init__(self, givens: Mapping[str, nn.Module]):
        self.givens = {name: unwrapped(network) for name, network in givens.items()}
        self.given_names = {id(network): name for name, network in givens.items()}
        self.records: list[Record] = []
        self.stored: dict[str, Tensor] = {}
        self._positions: dict[int, int] = {}
        self._alive: list[object] = []  # what has a position, so that no other gets its id
        self._by_content: dict[bytes, str] = {}
        self._trail: list[str] = []
        self._given_tensors: dict[int, list[str]] = {}
        self._given_contents: dict[bytes, list[str]] = {}
        for name, network in self.givens.items():
            for place, tensor in [*network.named_parameters(), *network.named_buffers()]:
                self._given_tensors.setdefault(id(tensor), [name, place])
                self._given_contents.setdefault(_digest(tensor), [name, place])
                if tensor.dtype in HALVES:  # a copy that is trained is of floats
                    self._given_contents.setdefault(_digest(tensor.float()), [name, place])

    def value(self, value: Any) -> Any:
        """Return what stands for a value in JSON.

        Raises
        ------
        TypeError
            If it cannot be stored; the message names the place.
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) is list:
            return [self.value(part) for part in value]
        if (sequence := SEQUENCES.get(type(value))) is not None:
            return {sequence: [self.value(part) for part in value]}
        if type(value) is dict:
            return {"dict": [[self.value(k), self.value(v)] for k, v in value.items()]}
        if isinstance(value, torch.dtype | torch.device):
            return {type(value).__name__: str(value)}
        if isinstance(value, np.generic) and isinstance(value, np.number | np.bool_):
            return {"scalar": [value.dtype.name, self.value(value.item())]}
        if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
            return self._strings(value)
        for kind, write in self._kinds().items():
            if isinstance(value, kind):
                return self.ref(value, write)
        if callable(value) and value in FUNCTION_NAMES:
            return {"function": FUNCTION_NAMES[value]}
        raise self.refusal(f"a {type(value).__name__} ({value!r:.80})")

    def _kinds(self) -> dict[type, Callable[[Any], Record]]:
        """How objects with an identity are written, by their class."""
        return {nn.Module: self._module, Tensor: self._tensor, np.ndarray: self._array}

    def ref(self, value: Any, write: Callable[[Any], Record]) -> Record:
        """Return a reference to an object, which is written the first time."""
        if id(value) not in self._positions:
            record = write(value)
            self._positions[id(value)] = len(self.records)
            self._alive.append(value)
            self.records.append(record)
        return {"ref": self._positions[id(value)]}

    def named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what stands for values by name, in JSON."""
        written = {}
        for name, value in values.items():
            self._trail.append(name)
            written[name] = self.value(value)
            self._trail.pop()
        return written

    def refusal(self, what: str) -> TypeError:
        """Error for what cannot be stored."""
        return TypeError(f"{'.'.join(self._trail) or 'It'} cannot be stored: it is {what}.")

    def _strings(self, value: np.ndarray) -> Record:
        items = value.ravel().tolist()
        if not all(type(item) is str for item in items):
            raise self.refusal("an array of objects")
        return {"strings": [value.dtype.kind, list(value.shape), items]}

    def _array(self, value: np.ndarray) -> Record:
        try:
            tensor = torch.from_numpy(np.array(value, order="C"))
        except TypeError:
            raise self.refusal(f"an array of {value.dtype}") from None
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        return {"kind": "array", "data": self._store(tensor), "fortran": fortran}

    def _tensor(self, tensor: Tensor) -> Record:
        record = {
            "kind": "tensor",
            "data": None,
            "given": self._given_tensors.get(id(tensor)),
            "shared": id(tensor) in self._given_tensors,
            "dtype": str(tensor.dtype),
            "strides": list(tensor.stride()) if is_dense(tensor) else None,
            "parameter": isinstance(tensor, nn.Parameter),
            "requires_grad": tensor.requires_grad and tensor.is_leaf,
        }
        if not record["shared"]:
            record["given"] = self._given_contents.get(_digest(tensor))
        if record["given"] is None:
            record["data"] = self._store(tensor)
        return record

    def _store(self, tensor: Tensor) -> str:
        key = _digest(tensor)
        if key not in self._by_content:
            self._by_content[key] = name = str(len(self.stored))
            self.stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return self._by_content[key]

    def _module(self, module: nn.Module) -> Record:
        if id(module) in self.given_names:
            return {"kind": "given", "name": self.given_names[id(module)]}
        if isinstance(module, Tapped):
            given = self._given_of(module.network)
            names = list(module.names)
            return {"kind": "tapped", "given": given, "taps": names, "training": module.training}
        if isinstance(module, MarginStack):
            replicas = [[k, self.value(replica)] for k, replica in module.replicas.items()]
            return {"kind": "stack", "replicas": replicas, "fold": module.fold}
        if isinstance(module, GraphModule):
            try:
                nodes = write_graph(module.graph)
            except TypeError as error:
                raise self.refusal(f"a traced network: {error}") from error
            return {"kind": "graph", "nodes": nodes, **self._parts(module)}
        name = known_name(type(module))
        own = {k: v for k, v in vars(module).items() if k not in COMMON}
        is_torch = name is not None and name.startswith("torch.")
        if name is None or (is_torch and (_is_hooked(module) or not _are_plain(own))):
            return {"kind": "like", **self._template(module), **self._parts(module)}
        return {
            "kind": "module",
            "class": name,
            "attributes": self.named(own),
            **self._parts(module),
        }

    def _parts(self, module: nn.Module) -> Record:
        return {
            "training": module.training,
            "parameters": self.named(module._parameters),
            "buffers": self.named(module._buffers),
            "transient": sorted(module._non_persistent_buffers_set),
            "modules": self.named(module._modules),
        }

    def _given_of(self, network: nn.Module) -> str:
        """Name of the given network that another is a copy of."""
        for name, given in self.givens.items():
            if type(given) is type(network) and _have_same_tensors(given, network):
                return name
        raise ValueError(
            f"{'.'.join(self._trail)} is a copy of a {type(network).__name__} that is not among "
            "the detector's parameters, or has changed since it was fitted: fit again, then save."
        )

    def _template(self, module: nn.Module) -> Record:
        """Return the place of a module like another in the networks that the reader is given."""
        expected = settings(module)
        best: tuple[int, str, str] | None = None
        for name, given in self.givens.items():
            for path, part in given.named_modules(remove_duplicate=False):
                if type(part) is type(module) and _are_alike(part, module, expected):
                    depth = _common_end(path.split("."), self._trail)
                    if best is None or depth > best[0]:
                        best = depth, name, path
        if best is None:
            raise self.refusal(
                f"a {type(module).__name__}, which is neither torch's nor registered by "
                "skmrr.persistence.register, and no network among the parameters has one like it"
            )
        return {"given": best[1], "path": best[2]}


def _digest(tensor: Tensor) -> bytes:
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.sha256(head + content(tensor)).digest()


def _is_hooked(module: nn.Module) -> bool:
    """Whether hooks of somebody else are attached to a module."""
    hooks = [hook for name in HOOKS for hook in getattr(module, name).values()]
    return not all(isinstance(hook, Tap | LayerChange) for hook in hooks)


def _are_plain(value: Any) -> bool:
    """Whether a value is made of what `Writer.value` knows, without objects."""
    if type(value) is dict:
        return _are_plain([*value, *value.values()])
    if type(value) in (list, tuple, torch.Size):
        return all(map(_are_plain, value))
    return type(value) in PLAIN or isinstance(value, Tensor) or value in FUNCTION_NAMES


def _have_same_tensors(one: nn.Module, other: nn.Module) -> bool:
    pairs = [[*part.parameters(), *part.buffers()] for part in (one, other)]
    return len(pairs[0]) == len(pairs[1]) and all(
        a is b or (a.dtype == b.dtype and a.shape == b.shape and content(a) == content(b))
        for a, b in zip(*pairs, strict=True)
    )


def _are_alike(one: nn.Module, other: nn.Module, expected: dict) -> bool:
    """Whether two modules of a class have the same attributes, as far as these can be compared."""
    own, others = ({k: v for k, v in vars(m).items() if k not in COMMON} for m in (one, other))
    functions = [k for k, v in own.items() if hasattr(v, "__code__")]
    return (
        own.keys() == others.keys()
        and all(own[k] is others[k] for k in functions)
        and repr(settings(one)) == repr(expected)
    )


def _common_end(one: list[str], other: list[str]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))

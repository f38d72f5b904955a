"""Modules, tensors and plain values from the records of `skmrr.nn.written`, once audited."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from skmrr.nn.audit import DTYPES
from skmrr.nn.known import FUNCTIONS, known_class
from skmrr.nn.placement import fill_memory
from skmrr.nn.replica import Replica
from skmrr.nn.stacking import MarginStack
from skmrr.nn.tapped import Tapped, unwrapped
from skmrr.nn.traced import graph_module
from skmrr.nn.written import SEQUENCES

MADE_BY: dict[str, Callable] = {tag: kind for kind, tag in SEQUENCES.items()}


class Builder:
    """Builds objects.

    Parameters
    ----------
    stored : mapping of str to Tensor
        The stored tensors.
    givens : dict of str to nn.Module
        The given networks. They stay as they are.
    device : torch.device
        Where tensors go.
    """

    def __init__(
        self, stored: Mapping[str, Tensor], givens: dict[str, nn.Module], device: torch.device
    ):
        self.stored = stored
        self.givens = givens
        self.device = device
        self.built: list[Any] = []
        self._given_tensors = {
            name: {**dict(network.named_parameters()), **dict(network.named_buffers())}
            for name, network in ((name, unwrapped(network)) for name, network in givens.items())
        }

    def build(self, records: list[dict]) -> list[Any]:
        """Build all objects, in order."""
        for record in records:
            self.built.append(getattr(self, f"_{record['kind']}")(record))
        return self.built

    def value(self, value: Any) -> Any:
        """Return the value that something stands for in JSON."""
        if isinstance(value, list):
            return [self.value(part) for part in value]
        if not isinstance(value, dict):
            return value
        ((tag, payload),) = value.items()
        return self._tagged(tag, payload)

    def _tagged(self, tag: str, payload: Any) -> Any:
        if tag == "ref":
            return self.built[payload]
        if tag in MADE_BY:
            return MADE_BY[tag](self.value(part) for part in payload)
        if tag == "dict":
            return {self.value(key): self.value(value) for key, value in payload}
        if tag == "scalar":
            return np.dtype(payload[0]).type(self.value(payload[1]))
        if tag == "strings":
            kind, shape, items = payload
            return np.array(items, dtype={"O": object, "U": str}[kind]).reshape(shape)
        plain: dict[str, Callable] = {
            "float": float,
            "dtype": DTYPES.__getitem__,
            "device": torch.device,
            "function": FUNCTIONS.__getitem__,
        }
        return plain[tag](payload)

    def named(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return values by name."""
        return {name: self.value(value) for name, value in values.items()}

    def _array(self, record: dict) -> np.ndarray:
        array = self.stored[record["data"]].numpy()
        return np.array(array, order="F" if record["fortran"] else "C")

    def _tensor(self, record: dict) -> Tensor:
        if record["data"] is not None:
            found = self.stored[record["data"]]
        else:
            name, place = record["given"]
            found = self._given_tensors[name][place]
            if record["shared"] and found.device == self.device:
                return found
        dtype = DTYPES[record["dtype"]]
        if record["data"] is not None and found.dtype != dtype:
            raise ValueError(f"a tensor of {dtype} is stored as one of {found.dtype}.")
        tensor = _laid_out(found.detach().to(dtype), record["strides"]).to(self.device)
        if record["parameter"]:
            return nn.Parameter(tensor, record["requires_grad"])
        return tensor.requires_grad_(record["requires_grad"])

    def _given(self, record: dict) -> nn.Module:
        return self.givens[record["name"]]

    def _tapped(self, record: dict) -> nn.Module:
        tapped = Tapped(self.givens[record["given"]], record["taps"], self.device)
        tapped.training = record["training"]
        return tapped

    def _stack(self, record: dict) -> nn.Module:
        replicas = {position: self.value(replica) for position, replica in record["replicas"]}
        if not all(isinstance(replica, Replica) for replica in replicas.values()):
            raise ValueError("a stack holds replicas alone.")
        return MarginStack(replicas, record["fold"])

    def _graph(self, record: dict) -> nn.Module:
        return graph_module(self._filled(nn.Module(), record), record["nodes"])

    def _module(self, record: dict) -> nn.Module:
        kind = known_class(record["class"])
        module = cast(nn.Module, object.__new__(kind))
        nn.Module.__init__(module)
        vars(module).update(self.named(record["attributes"]))
        self._filled(module, record)
        if isinstance(module, Replica) and module.is_prepared:
            assert module.layer is not None
            module.checkpoint.attach(module.network, module.layer)
        return module

    def _like(self, record: dict) -> nn.Module:
        """Copy of a part of a given network, with parts of its own."""
        template = unwrapped(self.givens[record["given"]]).get_submodule(record["path"])
        module = object.__new__(type(template))
        nn.Module.__init__(module)
        self._filled(module, record)
        memo: dict[int, Any] = {id(template): module}
        for group in ("_parameters", "_buffers", "_modules"):
            own = getattr(module, group)
            for name, part in getattr(template, group).items():
                if part is not None and name in own:
                    memo[id(part)] = own[name]
        rest = {k: v for k, v in vars(template).items() if k not in vars(module) or "hooks" in k}
        for value in rest.values():
            if isinstance(value, Tensor) and not value.is_leaf:  # computed from others
                memo.setdefault(id(value), value.detach().clone())
        vars(module).update(copy.deepcopy(rest, memo))
        return module

    def _filled(self, module: nn.Module, record: dict) -> nn.Module:
        module.training = record["training"]
        module._parameters.update(self.named(record["parameters"]))
        module._buffers.update(self.named(record["buffers"]))
        module._modules.update(self.named(record["modules"]))
        module._non_persistent_buffers_set.update(record["transient"])
        if any(type(part) is Tensor for part in module._parameters.values()):
            raise ValueError("a parameter is none.")
        return module


def _laid_out(tensor: Tensor, strides: list[int] | None) -> Tensor:
    """Copy of a tensor with its axes in some order in memory, in which layers round differently."""
    if strides is None:
        return tensor.clone(memory_format=torch.contiguous_format)
    if len(strides) != tensor.ndim or any(step < 0 for step in strides):
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no strides {strides}.")
    if not fill_memory(tensor.shape, strides):  # no memory beyond that of the values themselves
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no strides {strides}.")
    laid_out = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    return laid_out.copy_(tensor)

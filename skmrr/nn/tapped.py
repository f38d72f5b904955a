"""Structural copies of networks, with evaluation mode and taps built in and the tensors shared.

Scoring must not touch a network that others use at the same time, so nothing is hooked, switched or
moved while it runs. What a detector needs of a network in another state than its owner left it in
is built once, when the detector is fitted, into a copy of the modules around the same tensors.
"""

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skmrr.nn.layers import find_head, find_layer
from skmrr.nn.placement import as_input, module_device, module_dtype

INPUT = ":input"  # ends the name of a tap that wants what a layer is given

HOOKS = ("_forward_hooks", "_forward_pre_hooks")  # where a module keeps them
HALVES = (torch.float16, torch.bfloat16)

_running = threading.local()  # .seen: what the taps of this thread's pass have seen so far


class Pass(NamedTuple):
    """What one pass of a classifier has shown."""

    logits: Tensor | None
    """Its answer, shape (batch, logits); None where there is no classifier, or no need of it."""
    outputs: dict[str, Tensor]
    """By tap, the output or the input of its layer."""


NOTHING = Pass(None, {})


PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(network: nn.Module) -> nn.Module:
    """Network behind the wrapper of ``torch.compile`` or of several devices, or itself."""
    if isinstance(network, PARALLEL):
        return unwrapped(network.module)
    inner = getattr(network, "_orig_mod", None)
    return network if inner is None else unwrapped(inner)


def unwrapped_name(layer: str, network: nn.Module) -> str:
    """Name of a layer in the unwrapped network."""
    if isinstance(getattr(network, "_orig_mod", network), PARALLEL):
        layer = layer.removeprefix("_orig_mod.").removeprefix("module.")
    return layer.replace("_orig_mod.", "")


def shared_copy(network: nn.Module) -> nn.Module:
    """Copy of a network's modules, in evaluation mode, around the same tensors.

    Raises
    ------
    TypeError
        If an attribute of the network cannot be copied.
    """
    network = unwrapped(network)
    return evaluating(_copied(network, {id(tensor): tensor for tensor in _tensors(network)}))


def evaluating(network: nn.Module) -> nn.Module:
    """Put a network in evaluation mode, but for one that ``torch.export`` has put in its own."""
    try:
        return network.eval()
    except NotImplementedError:
        return network


def trainable_copy(network: nn.Module) -> nn.Module:
    """Copy of a network with tensors of its own, in single precision at least.

    In half precision the steps of a training round to nothing, or beyond all numbers.

    Raises
    ------
    TypeError
        If an attribute of the network cannot be copied.
    """
    network = own_copy(network)
    return network.float() if module_dtype(network, torch.float32) in HALVES else network


def own_copy(network: nn.Module) -> nn.Module:
    """Copy of a network with tensors of its own.

    Raises
    ------
    TypeError
        If an attribute of the network cannot be copied.
    """
    network = unwrapped(network)
    # Tensors computed from others, as the weight under an old-style weight norm, do not deepcopy.
    computed = (tensor for tensor in _tensors(network) if not tensor.is_leaf)
    return _copied(network, {id(tensor): tensor.detach().clone() for tensor in computed})


def _copied(network: nn.Module, memo: dict[Any, object]) -> nn.Module:
    for part in network.modules():
        if unwrapped(part) is not part:
            memo[id(part)] = copy.deepcopy(unwrapped(part), memo)
    try:
        return copy.deepcopy(network, memo)
    except Exception as error:
        raise TypeError(
            f"A detector works on copies of the {type(network).__name__}, which cannot be copied: "
            f"{error}. Let copy.deepcopy work on it, e.g. by keeping files, locks and the like out "
            "of its attributes."
        ) from error


def _tensors(network: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and tensors that are mere attributes."""
    found = [*network.parameters(), *network.buffers()]
    for part in network.modules():
        found += [value for value in vars(part).values() if isinstance(value, Tensor)]
    return found


class Tap:
    """Hook that keeps what passes a layer, as it is at that moment.

    Parameters
    ----------
    name : str
        Dotted name of the layer for its output, followed by ``":input"`` for its input.
    """

    def __init__(self, name: str):
        self.name = name

    def __call__(self, module: nn.Module, inputs: tuple, output: object = None) -> None:
        """Keep the value; of a layer that is called several times in a pass, the last one."""
        value = inputs[0] if self.name.endswith(INPUT) else output
        if not isinstance(value, Tensor):
            raise TypeError(
                f"layer={self.name!r} returns a {type(value).__name__}, not a tensor; "
                "name a layer inside it."
            )
        keep(self.name, value.clone())  # the next layer may work in place

    def attach(self, network: nn.Module) -> None:
        """Attach the tap to its layer."""
        attach(network, self.name, self)


class LayerChange(nn.Module, ABC):
    """Hook that puts another tensor in the place of what a layer is given, or gives."""

    def __init__(self):
        super().__init__()
        self.is_input = False

    @abstractmethod
    def changed(self, value: Tensor) -> Tensor:
        """Return what the network goes on with, of the same shape."""

    def forward(self, module: nn.Module, inputs: tuple, output: object = None):
        """Return what torch puts in the place of the layer's inputs, or of its output."""
        value = inputs[0] if self.is_input else output
        assert isinstance(value, Tensor)
        changed = self.changed(value)
        return (changed,) if self.is_input else changed

    def attach(self, network: nn.Module, name: str) -> None:
        """Attach the hook to the layer of a tap."""
        self.is_input = name.endswith(INPUT)
        attach(network, name, self)


def attach(network: nn.Module, name: str, hook) -> None:
    """Attach a hook to the layer at `name`, at its input if the name ends in ``":input"``."""
    layer = find_layer(network, name.removesuffix(INPUT))
    if isinstance(layer, torch.jit.ScriptModule):
        raise TypeError(
            f"layer={name!r} is scripted or traced, which nobody can look into: give the network "
            "that it was made from."
        )
    is_input = name.endswith(INPUT)
    (layer.register_forward_pre_hook if is_input else layer.register_forward_hook)(hook)


def keep(name: str, value) -> None:
    """Hand a value to whoever has started this thread's `run`; without one nothing is kept."""
    if (seen := getattr(_running, "seen", None)) is not None:
        seen[name] = value


def run(network: nn.Module, x: Tensor) -> tuple[Any, dict]:
    """Run a network; return its answer, and what hooks within it had kept."""
    outer = getattr(_running, "seen", None)
    seen: dict = {}
    _running.seen = seen
    try:
        answer = network(x.clone())  # a network that works in place on its input gets its own
    finally:
        _running.seen = outer
    return answer, seen


class Tapped(nn.Module):
    """A network in evaluation mode that also shows what some of its layers give or are given.

    Parameters
    ----------
    network : nn.Module
        Rows → logits. It is left as it is, and shares its tensors.
    names : sequence of str
        The taps: ``"name"`` for the output of a layer, ``"name:input"`` for its input.
    device : torch.device, optional
        Where to compute. On another device than the network's the tensors are copies.

    Raises
    ------
    ValueError
        If there is no such layer.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str] = (),
        device: torch.device | None = None,
    ):
        super().__init__()
        given = network
        if device is not None and device != module_device(network):
            network = own_copy(network).to(device)
        self.network = shared_copy(network)
        self.names = tuple(dict.fromkeys(unwrapped_name(name, given) for name in names))
        for name in self.names:
            Tap(name).attach(self.network)

    def forward(self, x: Tensor) -> Pass:
        """Run the network on rows.

        Raises
        ------
        ValueError
            If a layer had no part in the pass.
        """
        logits, seen = run(self.network, as_input(x, self.network))
        missing = [name for name in self.names if name not in seen]
        if missing:
            raise ValueError(f"layer(s) {missing} took no part in the network's forward pass.")
        return Pass(logits, seen)


def head_input(network: nn.Module, x: Tensor) -> str:
    """Tap of what the layer that makes the logits is given: the default checkpoint.

    The pass that finds it keeps every activation for its gradient: of `x` two rows are enough.
    """
    copied = shared_copy(network)
    return find_head(copied, as_input(x[:2], copied)) + INPUT

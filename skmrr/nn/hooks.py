"""Scoped access to the inside of a network: nothing outlives the ``with`` block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """Submodule at the dotted name `layer`.

    Raises
    ------
    ValueError
        If there is no such layer; the message lists those that there are.
    """
    layers = dict(model.named_modules())
    if layer not in layers or layer == "":
        names = ", ".join(name for name in layers if name)
        raise ValueError(f"layer={layer!r} is not in the model; its layers are: {names}")
    return layers[layer]


def replace_layer(model: nn.Module, layer: str, new: nn.Module) -> None:
    """Put another module in the place of the one at the dotted name `layer`."""
    parent, _, name = layer.rpartition(".")
    model.get_submodule(parent).register_module(name, new)


def last_linear(model: nn.Module) -> nn.Linear:
    """Last linear layer of `model`, whose input is the default checkpoint."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ValueError("The model has no linear layer; name the checkpoint with layer='…'.")
    return linears[-1]


@contextmanager
def captured(model: nn.Module, layers: list[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of `layers` while the block runs.

    A layer that a forward pass calls several times shows its last call.
    """
    outputs: dict[str, Tensor] = {}

    def collect(name):
        def hook(module, inputs, output):
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"layer={name!r} returns a {type(output).__name__}, not a tensor; "
                    "name a layer inside it."
                )
            outputs[name] = output

        return hook

    handles = []
    try:
        for name in layers:
            handles.append(find_layer(model, name).register_forward_hook(collect(name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(*modules: nn.Module | None, device: torch.device | None = None) -> Iterator[None]:
    """Put modules in evaluation mode, on `device` if given, and restore both afterwards."""
    present = [module for module in modules if module is not None]
    modes = [(part, part.training) for module in present for part in module.modules()]
    homes = [module_device(module) for module in present]
    try:
        for module in present:
            module.eval()
            if device is not None:
                module.to(device)
        yield
    finally:
        for part, training in modes:
            part.training = training
        for module, home in zip(present, homes, strict=True):
            if device is not None:
                module.to(home)


def eval_but(module: Module, spared: nn.Module | None) -> Module:
    """Put a module in evaluation mode, but for a part of it that is only read."""
    modes = [] if spared is None else [(part, part.training) for part in spared.modules()]
    module.eval()
    for part, training in modes:
        part.training = training
    return module


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators, on the CPU and on `device`, and restore them afterwards."""
    is_elsewhere = device is not None and device.type == "cuda"
    with torch.random.fork_rng([device] if is_elsewhere else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def explaining(name: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Turn what torch says of rows that a network cannot take into a ValueError with a cure."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(
            f"{name} cannot take rows of shape {shape}: {error}. Give X as the network was trained "
            "on it (images mostly as channels, height, width), or input_shape for flat rows."
        ) from error


def module_device(module: nn.Module) -> torch.device:
    """Device of the first parameter or buffer of `module`; the CPU if it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def resolve_device(device: str | torch.device, *modules: nn.Module | None) -> torch.device:
    """Turn ``"auto"`` into the device that the first given module lives on."""
    if device != "auto":
        return torch.device(device)
    present = [module for module in modules if module is not None]
    return module_device(present[0]) if present else torch.device("cpu")


def module_dtype(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """Floating dtype of the first parameter of `module`, else `default` made floating."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return default if default.is_floating_point else torch.get_default_dtype()


def as_input(batch: Tensor, module: nn.Module, device: torch.device) -> Tensor:
    """`batch` in the dtype of `module`'s parameters, on `device`."""
    return batch.to(device=device, dtype=module_dtype(module, batch.dtype))

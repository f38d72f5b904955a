"""Where, in which precision and order of axes a network computes, and from which seed."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn


def module_device(module: nn.Module) -> torch.device:
    """Device of the first parameter or buffer of `module`; the CPU if it has none."""
    for tensor in chain(module.parameters(), module.buffers()):
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


def is_dense(tensor: Tensor) -> bool:
    """Whether the values of a tensor, in whatever order of axes, fill its memory without a gap."""
    return fill_memory(tensor.shape, tensor.stride())


def fill_memory(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether so many values at such steps from each other leave no gap; there is one at least."""
    extent = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    return 0 < math.prod(shape) == extent


def as_input(batch: Tensor, module: nn.Module) -> Tensor:
    """`batch` in the dtype of `module`'s parameters, on its device."""
    return batch.to(device=module_device(module), dtype=module_dtype(module, batch.dtype))


def draw_seed(random_state: np.random.RandomState) -> int:
    """Draw a seed for torch, or for an estimator, from a source of randomness."""
    return int(random_state.randint(np.iinfo(np.int32).max))


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators, on the CPU and on `device`, and restore them afterwards."""
    is_elsewhere = device is not None and device.type == "cuda"
    with torch.random.fork_rng([device] if is_elsewhere else []):
        torch.manual_seed(seed)
        yield

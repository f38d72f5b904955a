"""One hash of a network, the same in every process."""

import hashlib

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from skmrr.nn.tapped import unwrapped

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)
CONTAINERS = (list, tuple, set, frozenset, torch.Size)
COMMON = frozenset(vars(nn.Module()))  # attributes that every module has, its mode among them


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's layers, their settings, and the values of parameters and buffers.

    Settings are those attributes of a layer that are numbers, strings, tensors, arrays, or lists
    and the like of these. Modes, devices and the memory layout of tensors do not change the hash.

    Examples
    --------
    >>> import torch
    >>> from skmrr.nn.fingerprint import fingerprint
    >>> net = torch.nn.Linear(2, 2)
    >>> fingerprint(net) == fingerprint(net.eval())
    True
    """
    network = unwrapped(network)
    digest = hashlib.sha256(str(network).encode())
    _add_tensors(digest, network)
    of_parts = {name: settings(part) for name, part in network.named_modules()}
    digest.update(joblib.hash(of_parts).encode())
    return digest.hexdigest()


def fingerprint_of_weights(network: nn.Module) -> str:
    """SHA-256 of the values of a network's parameters and buffers: no version of torch changes it.

    That of `fingerprint` depends on which settings a layer of torch has.
    """
    digest = hashlib.sha256()
    _add_tensors(digest, unwrapped(network))
    return digest.hexdigest()


def _add_tensors(digest, network: nn.Module) -> None:
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(content(tensor))


def content(tensor: Tensor) -> bytes:
    """Values of a tensor, in order, as bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def settings(part: nn.Module) -> dict:
    """Attributes of a layer that its outputs may depend on, beside parameters and buffers."""
    own = {name: value for name, value in vars(part).items() if name not in COMMON}
    plain = {name: value for name, value in own.items() if _is_plain(value)}
    tensors = {
        name: (str(value.dtype), tuple(value.shape), content(value))
        for name, value in own.items()
        if isinstance(value, Tensor)
    }
    return plain | tensors


def _is_plain(value) -> bool:
    """Whether a value is made of nothing but numbers, strings and arrays."""
    if type(value) is dict:
        return all(map(_is_plain, (*value, *value.values())))
    if type(value) in CONTAINERS:
        return all(map(_is_plain, value))
    return type(value) in PLAIN or isinstance(value, np.ndarray | np.generic)

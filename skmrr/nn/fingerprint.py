"""One hash of a network, the same in every process."""

import hashlib

import torch
from torch import Tensor, nn

from skmrr.nn.tapped import unwrapped


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's layers and the values of its parameters and buffers.

    Modes, devices and the memory layout of tensors do not change it.

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
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(content(tensor))
    return digest.hexdigest()


def content(tensor: Tensor) -> bytes:
    """Values of a tensor, in order, as bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()

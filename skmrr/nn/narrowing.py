"""Smaller networks of the same architecture."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from skmrr.nn.layers import replace_layer
from skmrr.nn.placement import as_input, module_device, module_dtype
from skmrr.nn.tapped import INPUT, head_input, shared_copy, trainable_copy

# Layers by what learns its number of inputs from what it is given first
CONVOLUTIONS: dict[type, Callable[..., nn.Module]] = {
    nn.Conv1d: nn.LazyConv1d,
    nn.Conv2d: nn.LazyConv2d,
    nn.Conv3d: nn.LazyConv3d,
}
NORMALISATIONS: dict[type, Callable[..., nn.Module]] = {
    nn.BatchNorm1d: nn.LazyBatchNorm1d,
    nn.BatchNorm2d: nn.LazyBatchNorm2d,
    nn.BatchNorm3d: nn.LazyBatchNorm3d,
}


def narrow(network: nn.Module, width: float, x: Tensor) -> nn.Module:
    """Untrained copy of a network with a share of the channels and units of each hidden layer.

    Parameters
    ----------
    network : nn.Module
        Classifier whose logits one linear layer gives. It is not changed.
    width : float
        Share of the outputs that each convolution and each linear layer but that one keeps, one
        at least.
    x : Tensor of shape (batch, …)
        Rows to find the new shapes with.

    Returns
    -------
    nn.Module
        In evaluation mode, with initial weights by torch's global generator.

    Raises
    ------
    ValueError
        If the network does not run with fewer channels.
    """
    narrowed = trainable_copy(network)
    dtype = module_dtype(narrowed, torch.float32)
    head = head_input(network, x).removesuffix(INPUT)
    replaced: list[str] = []
    for name, part in list(narrowed.named_modules()):
        if any(name.startswith(f"{other}.") for other in replaced):
            continue  # within a layer that is no longer there
        thin = _thin(part, 1.0 if name == head else width)
        if thin is not None and name:
            replace_layer(narrowed, name, thin)
            replaced.append(name)
        elif any(weight.numel() > 1 for weight in part.parameters(recurse=False)):
            raise ValueError(
                f"width={width} narrows convolutions, linear layers and batch normalisation, but "
                f"{name or 'the network'}, a {type(part).__name__}, has weights too; set width=1, "
                "or give defenders=[…] with modules of your own."
            )
    whole = shared_copy(network)
    narrowed.to(module_device(network), dtype).eval()
    try:
        with torch.no_grad():
            if narrowed(as_input(x[:2], narrowed)).shape != whole(as_input(x[:2], whole)).shape:
                raise ValueError("its logits lose their shape")
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"width={width} does not fit a {type(network).__name__}, which does not run with fewer "
            f"channels ({error}); set width=1, or give defenders=[…] with modules of your own."
        ) from error
    return narrowed


def _thin(part: Any, width: float) -> nn.Module | None:
    """Layer with fewer outputs that learns its number of inputs from what it is given first."""
    if lazy := _lazy(CONVOLUTIONS, part):
        out = max(1, round(width * part.out_channels))
        depthwise = part.groups > 1 and part.groups == part.in_channels
        window = (part.kernel_size, part.stride, part.padding, part.dilation)
        return lazy(
            out,
            *window,
            groups=out if depthwise else part.groups,
            bias=part.bias is not None,
            padding_mode=part.padding_mode,
        )
    if isinstance(part, nn.Linear):
        return nn.LazyLinear(max(1, round(width * part.out_features)), part.bias is not None)
    if lazy := _lazy(NORMALISATIONS, part):
        return lazy(part.eps, part.momentum, part.affine, part.track_running_stats)
    return None


def _lazy(kinds: dict[type, Callable], part: nn.Module) -> Callable[..., nn.Module] | None:
    return next((lazy for kind, lazy in kinds.items() if isinstance(part, kind)), None)

"""Smaller networks of the same architecture."""

import torch
from torch import Tensor, nn

from skmrr.nn.layers import replace_layer
from skmrr.nn.placement import as_input
from skmrr.nn.tapped import INPUT, head_input, own_copy, shared_copy


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
    narrowed = own_copy(network)
    head = head_input(network, x).removesuffix(INPUT)
    for name, part in list(narrowed.named_modules()):
        thin = _thin(part, 1.0 if name == head else width)
        if thin is not None and name:
            replace_layer(narrowed, name, thin)
    x = as_input(x[:2], network)
    narrowed.to(x).eval()
    try:
        with torch.no_grad():
            if narrowed(x).shape != shared_copy(network)(x).shape:
                raise ValueError("its logits lose their shape")
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"width={width} does not fit a {type(network).__name__}, which does not run with fewer "
            f"channels ({error}); set width=1, or give defenders=[…] with modules of your own."
        ) from error
    return narrowed


def _thin(part: nn.Module, width: float) -> nn.Module | None:
    """Layer with fewer outputs that learns its number of inputs from what it is given first."""
    if isinstance(part, nn.Conv2d):
        out = max(1, round(width * part.out_channels))
        depthwise = part.groups > 1 and part.groups == part.in_channels
        window = (part.kernel_size, part.stride, part.padding, part.dilation)
        return nn.LazyConv2d(
            out,
            *window,  # type: ignore[arg-type]  # wants pairs, which these are
            groups=out if depthwise else part.groups,
            bias=part.bias is not None,
            padding_mode=part.padding_mode,
        )
    if isinstance(part, nn.Linear):
        return nn.LazyLinear(max(1, round(width * part.out_features)), part.bias is not None)
    if isinstance(part, nn.BatchNorm2d):
        return nn.LazyBatchNorm2d(part.eps, part.momentum, part.affine, part.track_running_stats)
    if isinstance(part, nn.BatchNorm1d):
        return nn.LazyBatchNorm1d(part.eps, part.momentum, part.affine, part.track_running_stats)
    return None

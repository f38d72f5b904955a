"""How many rows of a pass fit into memory."""

import torch
from torch import Tensor, nn

from skmrr.nn.placement import as_input
from skmrr.nn.tapped import shared_copy

PASS_BYTES = 2**29  # that the largest step of a pass may take
MOST_ROWS = 256  # more are no faster
STEP_COPIES = 2  # of what a step is given and gives: for what it keeps between


@torch.no_grad()
def rows_at_once(network: nn.Module, x: Tensor) -> int:
    """Rows of a pass, of which the largest step takes half a gibibyte, 256 at most.

    A pass without gradients holds little more than what one step is given and what it gives. Steps
    are layers; what functions do between them is not seen.

    Parameters
    ----------
    network : nn.Module
        Rows → anything. It is left as it is.
    x : Tensor of shape (batch, …)
        A few rows.
    """
    copied = shared_copy(network)
    largest = x.numel() * x.element_size()

    def measure(layer, inputs, output):
        nonlocal largest
        tensors = [part for part in (*inputs, output) if isinstance(part, Tensor)]
        largest = max(largest, sum(part.numel() * part.element_size() for part in tensors))

    for layer in copied.modules():
        if not any(layer.children()) and not isinstance(layer, torch.jit.ScriptModule):
            layer.register_forward_hook(measure)
    copied(as_input(x, copied).clone())
    return max(1, min(MOST_ROWS, PASS_BYTES * len(x) // (STEP_COPIES * largest)))

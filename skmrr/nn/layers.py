"""Layers of a network by name, and the layer that makes its logits."""

import torch
from torch import Tensor, nn

from skmrr.nn.wording import shortened

MAX_NAMES = 50  # of layers, in an error

# Steps of a pass that move, scale or compare logits without mixing features into new ones.
PASSED_THROUGH = (
    *("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Permute", "T"),
    *("Slice", "Select", "Index", "Clone", "Alias", "ToCopy", "Cat", "Stack"),
    *("Mul", "Div", "Add", "Sub", "Neg", "Softmax", "LogSoftmax"),
    *("Log", "Logit", "Clamp", "ClampMin", "Sigmoid", "MaskedFill"),
)


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """Submodule at the dotted name `layer`.

    Raises
    ------
    ValueError
        If there is no such layer; the message lists those that there are.
    """
    layers = dict(model.named_modules(remove_duplicate=False))
    if layer not in layers or layer == "":
        names = shortened([name for name in layers if name], MAX_NAMES)
        raise ValueError(f"layer={layer!r} is not in the model; its layers are: {names}")
    return layers[layer]


def replace_layer(model: nn.Module, layer: str, new: nn.Module) -> None:
    """Put another module in the place of the one at the dotted name `layer`."""
    parent, _, name = layer.rpartition(".")
    model.get_submodule(parent).register_module(name, new)


def check_has_linear(model: nn.Module) -> None:
    """Raise a ValueError unless some layer of a model is linear, as its head has to be."""
    if not any(isinstance(part, nn.Linear) for part in model.modules()):
        raise ValueError(
            "The model has no linear layer; name the checkpoint with layer='…'. (A scripted, "
            "traced, exported or quantised network hides its layers: give the one that it was made "
            "from.)"
        )


def find_head(model: nn.Module, x: Tensor) -> str:
    """Name of the linear layer whose output is the logits, found by following a pass back.

    Parameters
    ----------
    model : nn.Module
        Rows → logits, in evaluation mode. It is left with hooks: give a copy.
    x : Tensor of shape (batch, …)
        Two rows or more.

    Raises
    ------
    ValueError
        If the logits are made by anything but one linear layer.
    """
    check_has_linear(model)
    made: dict[object, str] = {}  # by the step of the pass that a linear layer's output is from

    for name, part in model.named_modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(
                lambda module, inputs, output, name=name: made.update({output.grad_fn: name})
            )
    with torch.enable_grad():
        x = x.detach().clone()
        # cloned again, as a network may work in place on its input
        logits = model(x.requires_grad_(x.is_floating_point()).clone())
    step = logits.grad_fn
    while step is not None and step not in made:
        # what a parameter scales or shifts is still that layer's; what two layers make is neither's
        before = [
            earlier
            for earlier, _ in step.next_functions
            if earlier is not None and not earlier.name().endswith("AccumulateGrad")
        ]
        is_passed = step.name().removesuffix("0").removesuffix("Backward") in PASSED_THROUGH
        step = before[0] if is_passed and len(before) == 1 else None
    if step is None:
        names = shortened([name for name, _ in model.named_modules() if name], MAX_NAMES)
        raise ValueError(
            "The logits are not the output of one linear layer; name the checkpoint with layer=…, "
            f"the output of a layer ('name') or its input ('name:input'). The layers are: {names}"
        )
    return made[step]

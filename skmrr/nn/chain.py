"""Rows moved to where a defender is unsure, for the next defender to learn from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from skmrr.nn.placement import as_input, module_device
from skmrr.nn.replica import LatentMap, class_means


def move_apart(
    x: Tensor,
    classes: Tensor,
    latent_map: LatentMap,
    *,
    step: float | None,
    clip_values: Sequence | None,
    batch_size: int,
) -> Tensor:
    """Move rows along the gradient of their distance to the nearest class centre.

    x ← clip(x + ∇ₓ Σ min_c ‖φ(x) − C^c‖²), as the authors' program does between one defender and
    the next, C^c being the class means of the rows as they stand.

    Parameters
    ----------
    x : Tensor of shape (n, …)
        Rows; they stay as they are.
    classes : Tensor of shape (n,)
        Number of each row's class, without a gap.
    latent_map : LatentMap
        Rows → unit features φ(x), in evaluation mode.
    step : float or None
        Length of a step along the signs of the gradient, in the units of `x`. None takes the
        gradient itself, as published.
    clip_values : tuple of float or None
        Range that the rows stay in.
    batch_size : int
        Rows at a time.

    Returns
    -------
    Tensor of shape (n, …)
        The moved rows, in the dtype of the map.
    """
    parts = x.split(batch_size)
    with torch.no_grad():
        features = torch.cat([latent_map(as_input(part, latent_map)) for part in parts])
        classes = classes.to(module_device(latent_map))
        centres = class_means(features, classes, int(classes.max()) + 1)
    moved = (
        _move(as_input(part, latent_map), latent_map, centres, step, clip_values) for part in parts
    )
    return torch.cat([part.cpu() for part in moved])


def _move(x, latent_map, centres, step, clip_values) -> Tensor:
    x = x.detach().clone().requires_grad_(True)
    nearest = torch.cdist(latent_map(x), centres).square().amin(1)
    (gradient,) = torch.autograd.grad(nearest.sum(), x)
    moved = x.detach() + (gradient if step is None else step * gradient.sign())
    return moved if clip_values is None else moved.clamp(*clip_values)

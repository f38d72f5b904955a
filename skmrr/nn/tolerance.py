"""How much noise a classifier bears."""

from collections.abc import Sequence

import torch
from torch import nn

from skmrr.nn.memory import rows_at_once
from skmrr.nn.placement import as_input
from skmrr.nn.tapped import Tapped

TOLERANCE_HALVINGS = 10  # to within a thousandth of the range of values


def noise_tolerance(
    classifier: nn.Module,
    x: torch.Tensor,
    clip_values: Sequence | None = None,
    *,
    share: float = 0.05,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Size of ±ε noise that changes a share of a classifier's decisions.

    Random signs are the weakest change of a given size: an attack needs less, and within this
    size a class keeps its look. It is measured on clean rows alone.

    Parameters
    ----------
    classifier : nn.Module
        Rows → logits.
    x : Tensor of shape (n, …)
        Clean rows.
    clip_values : tuple of float, optional
        Range that the noisy rows stay in; by default that of `x`.
    share : float, default=0.05
        Share of decisions that change.
    batch_size : int, optional
        Rows at a time; by default as many as `rows_at_once` finds room for.
    generator : torch.Generator, optional
        Source of the signs.

    Returns
    -------
    float
        ε in the units of `x`, to within a thousandth of the range of values.
    """
    low, high = map(float, (x.min(), x.max()) if clip_values is None else clip_values)
    tapped = Tapped(classifier)
    batch_size = batch_size or rows_at_once(tapped, x[:2])
    x = as_input(x, tapped)
    signs = (2 * torch.randint(0, 2, x.shape, generator=generator) - 1).to(x.device, torch.int8)

    def decide(size: float) -> torch.Tensor:
        parts = zip(x.split(batch_size), signs.split(batch_size), strict=True)
        noisy = ((part + size * sign.to(part)).clamp(low, high) for part, sign in parts)
        return torch.cat([tapped(part).logits.argmax(1) for part in noisy])

    with torch.no_grad():
        clean = decide(0.0)
        smallest, largest = 0.0, float(high - low)
        for _ in range(TOLERANCE_HALVINGS):
            middle = (smallest + largest) / 2
            changed = (decide(middle) != clean).double().mean()
            smallest, largest = (middle, largest) if changed <= share else (smallest, middle)
    return smallest

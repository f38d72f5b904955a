"""How much noise a classifier bears."""

from collections.abc import Sequence

import torch
from torch import nn

from skmrr.nn.placement import as_input
from skmrr.nn.tapped import Tapped

TOLERANCE_HALVINGS = 10  # to within a thousandth of the range of values


def noise_tolerance(
    classifier: nn.Module,
    x: torch.Tensor,
    clip_values: Sequence | None = None,
    *,
    share: float = 0.05,
    batch_size: int = 128,
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
    batch_size : int, default=128
        Rows at a time.
    generator : torch.Generator, optional
        Source of the signs.

    Returns
    -------
    float
        ε in the units of `x`, to within a thousandth of the range of values.
    """
    low, high = map(float, (x.min(), x.max()) if clip_values is None else clip_values)
    tapped = Tapped(classifier)
    x = as_input(x, tapped)
    signs = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1

    def decide(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([tapped(part).logits.argmax(1) for part in rows.split(batch_size)])

    with torch.no_grad():
        clean = decide(x)
        smallest, largest = 0.0, float(high - low)
        for _ in range(TOLERANCE_HALVINGS):
            middle = (smallest + largest) / 2
            changed = (decide((x + middle * signs).clamp(low, high)) != clean).double().mean()
            smallest, largest = (middle, largest) if changed <= share else (smallest, middle)
    return smallest

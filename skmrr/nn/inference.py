"""Batched passes over rows."""

import numpy as np
import torch
from torch import nn

from skmrr.nn.hooks import as_input, evaluating, explaining, resolve_device
from skmrr.nn.rows import Rows

TOLERANCE_HALVINGS = 10  # to within a thousandth of the range of values


def check_classifier(classifier: nn.Module, rows: Rows, device="auto") -> None:
    """Try a classifier on two rows.

    Raises
    ------
    TypeError
        If it does not return a tensor.
    ValueError
        If it cannot take the rows, or returns no logits.
    """
    device = resolve_device(device, classifier)
    x = rows.take([0, 0])  # one image without its channel would pass for a batch of one
    with (
        explaining("The classifier", rows.shape),
        evaluating(classifier, device=device),
        torch.no_grad(),
    ):
        logits = classifier(as_input(x, classifier, device))
    if not isinstance(logits, torch.Tensor):
        raise TypeError(
            f"The classifier returns a {type(logits).__name__}; wrap it in a module that returns "
            "the logits alone, shape (n_rows, n_classes)."
        )
    if logits.ndim != 2 or len(logits) != 2:
        raise ValueError(
            f"The classifier returns shape {tuple(logits.shape)} for two rows; wrap it in a module "
            "that returns logits, shape (n_rows, n_classes)."
        )


def predict_labels(
    classifier: nn.Module, rows: Rows, batch_size: int, device="auto", indices=None
) -> np.ndarray:
    """Decisions of a classifier for all rows, or those at `indices`; int64 of shape (n_rows,)."""
    device = resolve_device(device, classifier)
    labels = np.empty(len(rows) if indices is None else len(indices), dtype=np.int64)
    with evaluating(classifier, device=device), torch.no_grad():
        for positions, batch in rows.batches(batch_size, indices):
            labels[positions] = classifier(as_input(batch, classifier, device)).argmax(1).cpu()
    return labels


def noise_tolerance(
    classifier: nn.Module,
    x: torch.Tensor,
    clip_values: tuple | None = None,
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
    low, high = clip_values or (float(x.min()), float(x.max()))
    device = resolve_device("auto", classifier)
    x = as_input(x, classifier, device)
    signs = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1

    def decide(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([classifier(part).argmax(1) for part in rows.split(batch_size)])

    with evaluating(classifier), torch.no_grad():
        clean = decide(x)
        smallest, largest = 0.0, float(high - low)
        for _ in range(TOLERANCE_HALVINGS):
            middle = (smallest + largest) / 2
            changed = (decide((x + middle * signs).clamp(low, high)) != clean).double().mean()
            smallest, largest = (middle, largest) if changed <= share else (smallest, middle)
    return smallest

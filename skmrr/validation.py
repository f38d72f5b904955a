"""Checks of labels and of sample sizes, whose errors name the cure."""

import math

import numpy as np
import torch
from sklearn.utils.validation import column_or_1d

from skmrr.threshold import ADVERSARIAL


def check_labels(labels, n_rows: int, name: str) -> np.ndarray:
    """`labels` as an int64 array with an entry a row, each a class index or -1.

    Raises
    ------
    ValueError
        If the length is not `n_rows`, or an entry is neither.
    """
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    labels = column_or_1d(labels)
    if len(labels) != n_rows:
        raise ValueError(f"{name} has {len(labels)} entries but X has {n_rows} rows.")
    try:
        whole = labels.astype(np.int64)
        fits = np.array_equal(whole, labels) and whole.min() >= ADVERSARIAL
    except (ValueError, TypeError):
        fits = False
    if not fits:
        raise ValueError(
            f"{name} must hold class indices (integers from 0), or -1 for adversarial rows; "
            "encode other labels, e.g. by sklearn.preprocessing.LabelEncoder."
        )
    return whole


def check_numbered(labels: np.ndarray, n_logits: int | None, name: str) -> np.ndarray:
    """`labels`, unless a ValueError is due as one of them is the number of no logit."""
    if n_logits is not None and labels.max() >= n_logits:
        raise ValueError(
            f"{name} holds class {labels.max()}, but there are {n_logits} logits, of classes 0 to "
            f"{n_logits - 1}; number {name} as the classifier does."
        )
    return labels


def check_enough(
    n_rows: int, security_parameter: float, n_samples: int, *, or_else: str = ""
) -> None:
    """Raise a ValueError if `n_rows` cannot promise a false-alarm rate.

    The smallest rank p-value among n rows is 1 / (n + 1). `or_else` is a cure beside more rows.
    """
    needed = math.ceil(1 / security_parameter - 1e-9) - 1
    if n_rows < needed:
        raise ValueError(
            f"Too few calibration rows: {n_rows} of n_samples={n_samples} would set the threshold, "
            f"but a false-alarm rate of security_parameter={security_parameter} takes at least "
            f"{needed}. Give {math.ceil(n_samples * needed / max(n_rows, 1))} rows, better many "
            f"more, or promise a higher rate{or_else}."
        )

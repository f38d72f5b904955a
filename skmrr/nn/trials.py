"""Trying a network on rows before any work is lost, and asking it for its decisions."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from skmrr.nn.rows import Rows
from skmrr.nn.tapped import Tapped


@contextmanager
def explaining(name: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Turn what torch says of rows that a network cannot take into a ValueError with a cure."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(
            f"{name} cannot take rows of shape {shape}: {error}. Give X as the network was trained "
            "on it (images mostly as channels, height, width), or input_shape for flat rows."
        ) from error


def check_classifier(classifier: Tapped, rows: Rows) -> None:
    """Try a classifier on two rows.

    Raises
    ------
    TypeError
        If it does not return a tensor.
    ValueError
        If it cannot take the rows, or returns no logits.
    """
    x = rows.take([0, 0])  # one image without its channel would pass for a batch of one
    with explaining("The classifier", rows.shape), torch.no_grad():
        logits = classifier(x).logits
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


@torch.no_grad()
def predict_labels(
    classifier: Tapped, rows: Rows, batch_size: int, indices: np.ndarray | None = None
) -> np.ndarray:
    """Decisions of a classifier for all rows, or those at `indices`; int64 of shape (n_rows,)."""
    labels = np.empty(len(rows) if indices is None else len(indices), dtype=np.int64)
    for positions, batch in rows.batches(batch_size, indices):
        labels[positions] = classifier(batch).logits.argmax(1).cpu()
    return labels

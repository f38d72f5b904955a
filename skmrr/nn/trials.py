"""Trying a network on rows before any work is lost, and asking it for its decisions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from skmrr.nn.rows import Rows
from skmrr.nn.tapped import Tapped
from skmrr.nn.wording import shortened

PROBABILITY_ROUNDING = 1e-2  # of a sum of probabilities, in half precision


@contextmanager
def explaining(name: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Turn what torch says of rows that a network cannot take into a ValueError with a cure."""
    try:
        yield
    except (RuntimeError, IndexError, TypeError) as error:
        if isinstance(error, TypeError) and "argument" not in str(error):
            raise  # of what the network gives, not of what it is given
        raise ValueError(
            f"{name} cannot take rows of shape {shape}: {error}. Give X as the network was trained "
            "on it (images mostly as channels, height, width), or input_shape for flat rows; a "
            "network of several inputs needs a module around it that takes one tensor."
        ) from error


def check_classifier(classifier: Tapped, rows: Rows) -> int:
    """Try a classifier on two rows; return the number of its logits.

    Raises
    ------
    TypeError
        If it does not return a tensor.
    ValueError
        If it cannot take the rows, or returns no logits.
    """
    x = rows.take([0, len(rows) - 1])  # one image without its channel would pass for a batch of one
    with explaining("The classifier", rows.shape), torch.no_grad():
        logits = classifier(x).logits
    if not isinstance(logits, torch.Tensor):
        keys = f" with keys {shortened(list(logits))}" if isinstance(logits, Mapping) else ""
        raise TypeError(
            f"The classifier returns a {type(logits).__name__}{keys}; say where its logits are by "
            "skmrr.LogitsOf(classifier, …): a key, a position, or a function of what it returns."
        )
    if logits.numel() == 2:
        raise ValueError(
            f"The classifier returns shape {tuple(logits.shape)} for two rows, one number each; "
            "skmrr.LogitsOf(classifier) makes two logits of one, and of a probability with "
            "probabilities=True."
        )
    if logits.ndim != 2 or len(logits) != 2:
        raise ValueError(
            f"The classifier returns shape {tuple(logits.shape)} for two rows; wrap it in a module "
            "that returns logits, shape (n_rows, n_classes), e.g. skmrr.LogitsOf."
        )
    if not logits.is_floating_point():
        raise ValueError(
            f"The classifier returns {logits.dtype}, which are no logits; wrap it in a module that "
            "returns what its decisions are made from."
        )
    if logits.min() >= 0 and (logits.double().sum(1) - 1).abs().max() < PROBABILITY_ROUNDING:
        raise ValueError(
            "The classifier returns probabilities, which say little where it is sure; give it "
            "without its softmax, or as skmrr.LogitsOf(classifier, probabilities=True)."
        )
    return logits.shape[1]


@torch.no_grad()
def predict_labels(
    classifier: Tapped, rows: Rows, batch_size: int, indices: np.ndarray | None = None
) -> np.ndarray:
    """Decisions of a classifier for all rows, or those at `indices`; int64 of shape (n_rows,)."""
    labels = np.empty(len(rows) if indices is None else len(indices), dtype=np.int64)
    for positions, batch in rows.batches(batch_size, indices):
        labels[positions] = classifier(batch).logits.argmax(1).cpu()
    return labels

"""Batched passes over rows."""

import numpy as np
import torch
from torch import nn

from skmrr.nn.hooks import as_input, evaluating, resolve_device
from skmrr.nn.rows import Rows


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

"""What a detector costs beside the classifier that it guards."""

import time

import numpy as np
import torch
from torch import nn

from skmrr.base import BaseDetector
from skmrr.evaluation.attacked_rows import as_rows, classifier_of
from skmrr.nn.fingerprint import content


def scoring_cost(detector: BaseDetector, X, *, repeats: int = 5) -> float:
    """Time of scoring, in passes of the classifier over the same rows in the same batches.

    Parameters
    ----------
    detector : BaseDetector
        Fitted, calibrated, and with a ``classifier``. Its ``batch_size`` counts.
    X : array-like of shape (n_samples, …)
        Rows.
    repeats : int, default=5
        How often both are timed, in alternation; the median of the ratios counts.

    Returns
    -------
    float
        The classifier's own pass, which names the class to score under, included: a detector that
        only looks at the logits costs little more than 1.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import LatentDefender
    >>> from skmrr.evaluation import scoring_cost
    >>> X, y = load_digits(return_X_y=True)
    >>> net = torch.nn.Linear(64, 10)
    >>> detector = LatentDefender(classifier=net, max_epochs=1, random_state=0).fit(X, y)
    >>> scoring_cost(detector, X, repeats=1) > 0
    True
    """
    classifier = classifier_of(detector).network
    batches = as_rows(detector, X).split(detector.batch_size_)
    ratios = []
    for _ in range(repeats):
        start = time.perf_counter()
        with torch.no_grad():
            for x in batches:
                classifier(x).cpu()  # waits for an accelerator, as scoring does
        alone = time.perf_counter() - start
        start = time.perf_counter()
        detector.score_samples(X)
        ratios.append((time.perf_counter() - start) / alone)
    return float(np.median(ratios))


def fitted_bytes(detector: BaseDetector) -> int:
    """Memory of a fitted detector's tensors in bytes, those with the classifier's values left out.

    By value, because a detector on another device than its classifier holds a copy of it.
    """
    module = vars(detector).get("module_", detector.evidence_)
    tensors = {id(tensor): tensor for tensor in _tensors(module)}.values()
    known = set()
    if detector.classifier is not None:
        known = {(t.shape, content(t)) for t in _tensors(detector.classifier)}
    added = (t for t in tensors if (t.shape, content(t)) not in known)
    return sum(t.numel() * t.element_size() for t in added)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]

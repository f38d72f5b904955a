"""Rows to attack, as a detector's networks see them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from skmrr.base import BaseDetector
from skmrr.nn.placement import as_input
from skmrr.nn.tapped import Tapped
from skmrr.validation import check_labels


def asked(detector: BaseDetector, X, y) -> tuple[Tensor, Tensor, Tensor]:
    """Rows as the networks see them, true classes, and the classifier's answers."""
    x = as_rows(detector, X)
    labels = torch.as_tensor(check_labels(y, len(x), "y"), device=x.device)
    return x, labels, answers_to(detector, x)


@torch.no_grad()
def answers_to(detector: BaseDetector, x: Tensor) -> Tensor:
    """Classifier's answers to rows as the networks see them."""
    classifier = classifier_of(detector)
    parts = [classifier(part).logits.argmax(1) for part in x.split(detector.batch_size_)]
    return torch.cat(parts)


def as_rows(detector: BaseDetector, X) -> Tensor:
    """Rows in the shape, dtype and place of the detector's networks."""
    x = torch.as_tensor(np.asarray(X)).reshape(len(X), *detector.input_shape_)
    return as_input(x, classifier_of(detector))


def classifier_of(detector: BaseDetector) -> Tapped:
    """Classifier of a calibrated detector, as it is scored with."""
    detector._check_calibrated()
    classifier = detector.evidence_.classifier
    if classifier is None:
        raise ValueError("The detector has no classifier to be attacked: give classifier=….")
    return classifier


def clip_values_of(detector: BaseDetector) -> Sequence[float]:
    """Range of the rows; a ValueError if none was declared."""
    if detector.clip_values is None:
        raise ValueError("Attacks stay within the range of X: give the detector clip_values=….")
    return detector.clip_values

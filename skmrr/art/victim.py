"""A plain torch classifier as ART sees one."""

from art.estimators.classification import PyTorchClassifier
from torch import nn

from skmrr.nn.placement import module_device


def as_art_classifier(
    classifier: nn.Module,
    input_shape: tuple[int, ...],
    n_classes: int,
    *,
    clip_values: tuple[float, float],
) -> PyTorchClassifier:
    """Wrap a classifier for attacks by ART.

    Parameters
    ----------
    classifier : nn.Module
        Rows → logits. It is attacked where it is, on its own device.
    input_shape : tuple of int
        Shape of a row.
    n_classes : int
        Number of logits.
    clip_values : tuple of float
        Range of X.

    Returns
    -------
    PyTorchClassifier
        With the cross-entropy as its loss.

    Examples
    --------
    >>> import torch
    >>> from skmrr.art import as_art_classifier
    >>> victim = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> as_art_classifier(victim, (1, 8, 8), 10, clip_values=(0, 1)).nb_classes
    10
    """
    return PyTorchClassifier(
        classifier,
        nn.CrossEntropyLoss(),
        input_shape,
        nb_classes=n_classes,
        clip_values=clip_values,
        device_type="cpu" if module_device(classifier).type == "cpu" else "gpu",
    )

"""A victim and its detector as one classifier of ART."""

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from skmrr.art._modules import as_module
from skmrr.art.evasion_detector import MRRDetector
from skmrr.base import BaseDetector
from skmrr.nn.defended import DefendedClassifier
from skmrr.nn.placement import module_device
from skmrr.nn.tapped import own_copy


def defended_classifier(
    detector: BaseDetector | MRRDetector,
    *,
    security_parameter: float | None = None,
    kappa: float = 1.0,
    labels: int | None = None,
    loss: nn.Module | None = None,
) -> PyTorchClassifier:
    """Victim and detector as one classifier of ART, for attacks that know both.

    Parameters
    ----------
    detector : BaseDetector or MRRDetector
        Fitted, with a classifier.
    security_parameter : float, optional
        False-alarm rate; by default that of `detector`.
    kappa : float, default=1.0
        Scale of the logit "flagged".
    labels : int, optional
        True class of all rows to attack. The classifier then has the victim's C classes, and any
        untargeted attack succeeds exactly where a row is misclassified and not flagged. Without
        it there are C + 1 classes, the last of which is "flagged".
    loss : nn.Module, optional
        Loss that attacks climb, cross-entropy by default.

    Returns
    -------
    PyTorchClassifier
        A copy: attacks leave `detector` and its classifier as they are. It takes rows as ART's
        classifier does, and stays in evaluation mode.

    Raises
    ------
    NotFittedError
        If `detector` is not fitted.
    ValueError
        If it has no classifier or no ``clip_values``, or there is no class `labels`.

    Examples
    --------
    >>> import torch
    >>> from art.attacks.evasion import FastGradientMethod
    >>> from skmrr import NoiseDefender
    >>> from skmrr.art import defended_classifier
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> victim = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> detector = NoiseDefender(classifier=victim, clip_values=(0, 1), random_state=0)
    >>> classifier = defended_classifier(detector.fit(X[:500], y[:500]))
    >>> attack = FastGradientMethod(classifier, eps=0.1)
    >>> classifier.predict(attack.generate(X[:3], y[:3])).shape
    (3, 11)
    """
    channels_last = False
    victim = None
    if isinstance(detector, MRRDetector):
        channels_last = not detector.classifier.channels_first
        victim, detector = as_module(detector.classifier), detector._fitted()
    detector._check_calibrated()
    victim = victim if detector.classifier is None else detector.classifier
    if victim is None:
        raise ValueError("The detector has no classifier to defend; fit it with classifier=….")
    if detector.clip_values is None:
        raise ValueError(
            "The detector has no clip_values, which attacks have to stay within; "
            "set_params(clip_values=(lowest, highest)) with the range of X."
        )
    sp = detector.security_parameter if security_parameter is None else security_parameter
    shape = detector.input_shape_
    own = victim if detector.classifier is None else None
    defended = DefendedClassifier(detector.module_, sp, classifier=own, kappa=kappa)
    n_classes = _n_logits(defended, shape, detector.clip_values[0])
    network: nn.Module = defended
    if labels is not None:
        if labels not in range(n_classes):
            raise ValueError(f"labels={labels} must be one class, 0 to {n_classes - 1}.")
        network = defended.label_aware(torch.tensor(int(labels)))
    device = module_device(detector.module_)
    return PyTorchClassifier(
        _Attacked(own_copy(network), channels_last),
        loss or nn.CrossEntropyLoss(),
        (*shape[1:], shape[0]) if channels_last else shape,
        nb_classes=n_classes + (labels is None),
        channels_first=not channels_last,
        clip_values=tuple(detector.clip_values),
        device_type="cpu" if device.type == "cpu" else "gpu",
    )


class _Attacked(nn.Module):
    """A network that gives gradients to its input alone and stays in evaluation mode."""

    def __init__(self, network: nn.Module, channels_last: bool):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.channels_last = channels_last
        self.eval()

    def forward(self, x):
        """Return the logits."""
        return self.network(x.movedim(-1, 1) if self.channels_last and x.ndim > 2 else x)

    def train(self, mode: bool = True):
        """Stay in evaluation mode, whatever an attack asks for."""
        return super().train(False)


def _n_logits(defended: DefendedClassifier, shape: tuple, value: float) -> int:
    x = torch.full((1, *shape), float(value))
    with torch.no_grad():
        return defended.victim(x).shape[1]

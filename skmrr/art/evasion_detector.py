"""A detector as an evasion detector of ART."""

import copy
from contextlib import suppress
from typing import Any

import numpy as np
from art.config import ART_NUMPY_DTYPE
from art.defences.detector.evasion.evasion_detector import EvasionDetector
from art.estimators.classification import PyTorchClassifier
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skmrr.art._modules import as_module, clip_values
from skmrr.base import BaseDetector
from skmrr.defenders import LatentDefender
from skmrr.defenders.defaults import default_template
from skmrr.defenders.realigned import RealignedDefender
from skmrr.ensemble import MRREnsemble
from skmrr.nn.replica import replicate
from skmrr.nn.rows import Rows
from skmrr.nn.tapped import Tapped
from skmrr.nn.trials import predict_labels
from skmrr.threshold import risk_of


class MRRDetector(EvasionDetector):
    """A detector of this package as an evasion detector of ART.

    The classifier is seen as ART sees it: behind its preprocessing, within its ``clip_values``, on
    its device. It is only asked: neither its weights nor its mode change.

    Parameters
    ----------
    classifier : art.estimators.classification.PyTorchClassifier
        The victim. Its model returns logits.
    detector : BaseDetector, optional
        Template that `fit` clones and gives `classifier`, and a `LatentDefender` without module a
        replica of it; ``layer`` is named as in ``classifier.model``. A fitted one is ready for use
        and needs no `fit`. By default an `MRREnsemble`.

    Attributes
    ----------
    detector_ : BaseDetector or None
        The fitted detector, to set its ``security_parameter`` for one; None before `fit`.

    Raises
    ------
    TypeError
        If `classifier` or `detector` is of another kind.
    ValueError
        If a fitted `detector` asks the bare model of a classifier with preprocessing.

    Examples
    --------
    >>> import torch
    >>> from art.estimators.classification import PyTorchClassifier
    >>> from skmrr import LatentDefender
    >>> from skmrr.art import MRRDetector
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> victim = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> loss = torch.nn.CrossEntropyLoss()
    >>> classifier = PyTorchClassifier(victim, loss, (1, 8, 8), 10, clip_values=(0, 1))
    >>> defence = MRRDetector(classifier, LatentDefender(random_state=0))
    >>> defence.fit(X[:1500], y[:1500], nb_epochs=2)
    >>> report, is_adversarial = defence.detect(X[1500:])
    >>> is_adversarial.shape, sorted(report)
    ((297,), ['risk', 'score', 'threshold'])
    """

    defence_params = ["classifier", "detector"]

    def __init__(self, classifier: PyTorchClassifier, detector: BaseDetector | None = None):
        super().__init__()
        self.classifier = classifier
        self.detector = detector
        self._check_params()
        self.detector_ = self._ready_made()

    def set_params(self, **kwargs) -> None:
        """Replace `classifier` or `detector`, and forget what was fitted for the old one."""
        before = self.get_params()
        super().set_params(**kwargs)
        if any(before[name] is not value for name, value in self.get_params().items()):
            self.detector_ = self._ready_made()

    def fit(self, x, y=None, batch_size: int = 128, nb_epochs: int = 20, **kwargs) -> None:
        """Fit a clone of `detector` on clean rows, as `BaseDetector.fit` does.

        Parameters
        ----------
        x : ndarray of shape (n_samples, …)
            Clean rows, best ones that the classifier was not trained on.
        y : ndarray of shape (n_samples,) or (n_samples, n_classes), optional
            True classes, by index or one-hot; by default the classifier's decisions.
        batch_size : int, default=128
            Rows in a batch, also of training.
        nb_epochs : int, default=20
            Epochs of training, where `detector` is trained or an ensemble of the default members.
            The explicit members of an ensemble keep their own.
        **kwargs : dict
            Handed to the fit of `detector`.
        """
        detector = MRREnsemble() if self.detector is None else clone(self.detector)
        params = detector.get_params(deep=False)
        values: dict[str, Any] = {"classifier": as_module(self.classifier), "device": "auto"}
        values["batch_size"] = batch_size
        if self.classifier.clip_values is not None:
            values["clip_values"] = clip_values(self.classifier)
        if params.get("layer") is not None and values["classifier"] is not self.classifier.model:
            values["layer"] = _within_model(params["layer"])
        if isinstance(detector, LatentDefender) and detector.module is None:
            values["module"] = replicate(values["classifier"])
        training = {"max_epochs": nb_epochs, "training_batch_size": batch_size}
        if isinstance(detector, MRREnsemble) and detector.defenders is None:
            template = detector.estimator or default_template(values["classifier"])
            values["estimator"] = clone(template).set_params(**_useful(training, template))
        detector.set_params(**values, **_useful(training, detector))
        self.detector_ = detector.fit(self._rows(x), self._class_index(y), **kwargs)

    def calibrate(self, x) -> None:
        """Set the threshold on clean rows that neither the classifier nor `fit` has seen."""
        detector, rows = self._fitted(), self._rows(x)
        self.detector_ = copy.copy(detector).calibrate(rows, labels=self._decisions(detector, rows))

    def detect(self, x, batch_size: int = 128, **kwargs) -> tuple[dict, np.ndarray]:
        """Judge rows.

        Parameters
        ----------
        x : ndarray of shape (n_samples, …)
            Rows, clean or not.
        batch_size : int, default=128
            Rows per forward pass. The result does not depend on it.
        **kwargs : dict
            Ignored, as ART's own detectors do.

        Returns
        -------
        report : dict
            ``"risk"`` in [0, 1] and ``"score"``, the log-survival, ndarrays of shape (n_samples,);
            ``"threshold"``, the score below which a row is flagged; of an `MRREnsemble`, where
            pandas is installed, ``"member_risks"``, DataFrame of shape (n_samples, n_members).
        is_adversarial : ndarray of bool of shape (n_samples,)
            Where a row is flagged.
        """
        # A copy shares all that is fitted.
        detector = copy.copy(self._fitted()).set_params(batch_size=batch_size)
        rows = self._rows(x)
        labels = self._decisions(detector, rows)
        score = detector.score_samples(rows, labels=labels)
        report = {"risk": risk_of(score), "score": score, "threshold": detector.offset_}
        if isinstance(detector, MRREnsemble):
            with suppress(ImportError):
                report["member_risks"] = detector.member_risks(rows, labels=labels)
        return report, score < detector.offset_

    def _check_params(self) -> None:
        if not isinstance(self.classifier, PyTorchClassifier):
            raise TypeError(
                f"classifier is a {type(self.classifier).__name__}; wrap the torch model in "
                "art.estimators.classification.PyTorchClassifier."
            )
        if self.detector is None:
            return
        if not isinstance(self.detector, BaseDetector):
            raise TypeError(
                f"detector is a {type(self.detector).__name__}; give a detector of skmrr, such as "
                "MRREnsemble(), or None."
            )
        is_bare = self.detector.classifier is self.classifier.model
        if hasattr(self.detector, "evidence_") and is_bare:
            if as_module(self.classifier) is self.classifier.model:
                return
            raise ValueError(
                "The detector was fitted to classifier.model without the preprocessing of "
                "classifier; give it unfitted, and call fit."
            )

    def _ready_made(self) -> BaseDetector | None:
        return self.detector if hasattr(self.detector, "evidence_") else None

    def _fitted(self) -> BaseDetector:
        if self.detector_ is None:
            raise NotFittedError("This MRRDetector is not fitted; call fit(x, y) first.")
        return self.detector_

    def _rows(self, x) -> np.ndarray:
        """Rows in ART's precision, channels first."""
        x = np.asarray(x, dtype=ART_NUMPY_DTYPE)
        is_last = x.ndim > 2 and not self.classifier.channels_first
        return np.moveaxis(x, -1, 1) if is_last else x

    def _class_index(self, y) -> np.ndarray | None:
        if y is None or np.ndim(y) != 2:
            return y
        n_classes = self.classifier.nb_classes
        if np.shape(y)[1] != n_classes:
            raise ValueError(
                f"y has {np.shape(y)[1]} columns, the classifier {n_classes} classes; give class "
                "indices, or one-hot rows with a column for each class."
            )
        return np.argmax(y, axis=1)

    def _decisions(self, detector: BaseDetector, rows) -> np.ndarray | None:
        """Decisions of the classifier, for a ready-made detector that has none to ask."""
        if detector.classifier is not None:
            return None
        return predict_labels(Tapped(as_module(self.classifier)), Rows(rows), detector.batch_size_)


def _within_model(layer: str | list[str]) -> str | list[str]:
    """Name a layer, or several, of ``classifier.model`` as behind the preprocessing."""
    return f"model.{layer}" if isinstance(layer, str) else [f"model.{name}" for name in layer]


def _useful(training: dict[str, Any], detector: BaseDetector) -> dict[str, Any]:
    """Those parameters of the training that have an effect on a detector."""
    if isinstance(detector, RealignedDefender) and not detector._realigns:
        return {}
    params = detector.get_params(deep=False)
    return {name: value for name, value in training.items() if name in params}

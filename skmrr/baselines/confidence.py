"""Detectors by the classifier's own confidence: maximum softmax probability, and energy."""

from numbers import Real

import torch
from jaxtyping import Float, Int
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from skmrr.base import BaseDetector
from skmrr.baselines._features import AskedForLogits, favouring
from skmrr.nn.hooks import evaluating, resolve_device


class _LogitStatistic(AskedForLogits, nn.Module):
    """Oddness read from the logits alone, the same under each class.

    Parameters
    ----------
    classifier : nn.Module or None
        Rows → logits. None takes the rows for logits.
    classes : Tensor of shape (classes,)
        The logits that the statistic's columns stand for.
    """

    classes: Tensor

    def __init__(self, classifier: nn.Module | None, classes: Tensor):
        super().__init__()
        self.classifier = classifier
        self.register_buffer("classes", classes)
        self.highest = int(classes.max())

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Return the level under each class; the guess is that of the highest logit."""
        logits = self.logits(x)
        level = self.level(logits)
        if self.highest >= logits.shape[1]:  # these are no logits of these classes
            return level[:, None].expand(-1, len(self.classes))
        return favouring(level, logits[:, self.classes].argmax(1), len(self.classes))

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], logits: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the level of each row."""
        return self.level(self.logits(x) if logits is None else logits.double())

    def logits(self, x: Tensor) -> Float[Tensor, "batch logits"]:
        """Logits in float64."""
        return (x.flatten(1) if self.classifier is None else self.ask(x)[0]).double()

    def level(self, logits: Float[Tensor, "batch logits"]) -> Float[Tensor, " batch"]:
        """Oddness of each row."""
        raise NotImplementedError


class MaxSoftmaxStatistic(_LogitStatistic):
    """log((1 − p) / p) of the largest softmax probability p."""

    def level(self, logits):
        """Log Σ_{j≠ŷ} exp z_j − z_ŷ, in which nothing saturates."""
        top, winner = logits.max(1, keepdim=True)
        return logits.scatter(1, winner, -torch.inf).logsumexp(1) - top[:, 0]


class EnergyStatistic(_LogitStatistic):
    """Free energy −T log Σ_j exp(z_j / T)."""

    def __init__(self, classifier: nn.Module | None, classes: Tensor, temperature: float):
        super().__init__(classifier, classes)
        self.temperature = temperature

    def level(self, logits):
        """Free energy of each row (equation 4 of the paper)."""
        return -self.temperature * (logits / self.temperature).logsumexp(1)


class MaxSoftmaxDetector(BaseDetector):
    """Detector by the maximum softmax probability: what the classifier is unsure of is odd.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits. Without it the rows of X are taken for logits.
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; other values raise an error.
    security_parameter : float, default=0.01
        Share of clean rows that may be flagged. Changing it on a fitted detector changes the
        verdicts and nothing else.
    calibration_fraction : float, default=0.2
        Share of the clean rows that `fit` holds out to calibrate on; 0 leaves that to `calibrate`.
        Nothing is learnt from the others.
    input_shape : tuple of int, optional
        Shape of each row of a 2-D X for the classifier, e.g. (channels, height, width).
    batch_size : int, default=128
        Rows per pass. Scores do not depend on it.
    device : str or torch.device, default="auto"
        Where to compute; ``"auto"`` is where `classifier` lives, else the CPU.
    random_state : int, RandomState or None, default=None
        Seed of the split.

    Attributes
    ----------
    module_ : skmrr.nn.DetectorModule
        The fitted detector, ``forward(x, labels)`` → score, differentiable.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    offset_ : float
        Threshold on the score, log(`security_parameter`).
    n_features_in_, input_shape_ : int, tuple of int
        Values in a row of X; shape of a row as the classifier sees it.

    See Also
    --------
    EnergyDetector : Looks at the size of the logits too.

    Notes
    -----
    The statistic is log((1 − p) / p) of the maximum p, in place of −p: the order of rows is the
    same, but two rows of which the classifier is nearly certain still differ, and an attacker
    still finds a gradient. The paper asks for out-of-distribution and misclassified rows, not for
    attacks, which mostly make the classifier surer than clean rows do.

    References
    ----------
    D. Hendrycks, K. Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples in Neural Networks", ICLR 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from skmrr.baselines import MaxSoftmaxDetector
    >>> logits = np.random.default_rng(0).normal(0, 1, (500, 10))
    >>> logits[:, 3] += 9
    >>> detector = MaxSoftmaxDetector(security_parameter=0.05, random_state=0).fit(logits)
    >>> detector.predict([[0.0] * 10, [0.0] * 9 + [9.0]])
    array([-1,  1])
    """

    _parameter_constraints: dict = {**BaseDetector._parameter_constraints}

    def __init__(
        self,
        classifier=None,
        *,
        clip_values=None,
        security_parameter=0.01,
        calibration_fraction=0.2,
        input_shape=None,
        batch_size=128,
        device="auto",
        random_state=None,
    ):
        self.classifier = classifier
        self.clip_values = clip_values
        self.security_parameter = security_parameter
        self.calibration_fraction = calibration_fraction
        self.input_shape = input_shape
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def _fit_statistic(self, rows, columns, train, random_state):
        device = resolve_device(self.device, self.classifier)
        statistic = MaxSoftmaxStatistic(self.classifier, torch.as_tensor(self.classes_))
        with evaluating(statistic, device=device), torch.no_grad():
            n_logits = statistic.logits(rows.take(train[:1]).to(device)).shape[1]
        if n_logits == 1:
            raise ValueError(
                "A softmax over 1 feature(s) is always 1; give classifier=… with at least two "
                "logits, or rows that hold as many."
            )
        return statistic


class EnergyDetector(BaseDetector):
    """Detector by the free energy of the logits, which is low where one of them is large.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits. Without it the rows of X are taken for logits.
    temperature : float, default=1.0
        T > 0 of the energy −T log Σ_j exp(z_j / T).
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; other values raise an error.
    security_parameter : float, default=0.01
        Share of clean rows that may be flagged. Changing it on a fitted detector changes the
        verdicts and nothing else.
    calibration_fraction : float, default=0.2
        Share of the clean rows that `fit` holds out to calibrate on; 0 leaves that to `calibrate`.
        Nothing is learnt from the others.
    input_shape : tuple of int, optional
        Shape of each row of a 2-D X for the classifier, e.g. (channels, height, width).
    batch_size : int, default=128
        Rows per pass. Scores do not depend on it.
    device : str or torch.device, default="auto"
        Where to compute; ``"auto"`` is where `classifier` lives, else the CPU.
    random_state : int, RandomState or None, default=None
        Seed of the split.

    Attributes
    ----------
    module_ : skmrr.nn.DetectorModule
        The fitted detector, ``forward(x, labels)`` → score, differentiable.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    offset_ : float
        Threshold on the score, log(`security_parameter`).
    n_features_in_, input_shape_ : int, tuple of int
        Values in a row of X; shape of a row as the classifier sees it.

    See Also
    --------
    MaxSoftmaxDetector : Does not change if all logits grow by the same amount.

    Notes
    -----
    This is the paper's score of a classifier as it is. Its fine-tuning with auxiliary outliers is
    left out: nothing but clean rows is used here.

    References
    ----------
    W. Liu, X. Wang, J. Owens, Y. Li, "Energy-based Out-of-distribution Detection", NeurIPS 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from skmrr.baselines import EnergyDetector
    >>> logits = np.random.default_rng(0).normal(0, 1, (500, 10))
    >>> logits[:, 3] += 9
    >>> detector = EnergyDetector(security_parameter=0.05, random_state=0).fit(logits)
    >>> detector.predict([[0.0] * 10, [0.0] * 9 + [9.0]])
    array([-1,  1])
    """

    _parameter_constraints: dict = {
        **BaseDetector._parameter_constraints,
        "temperature": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        classifier=None,
        *,
        temperature=1.0,
        clip_values=None,
        security_parameter=0.01,
        calibration_fraction=0.2,
        input_shape=None,
        batch_size=128,
        device="auto",
        random_state=None,
    ):
        self.classifier = classifier
        self.temperature = temperature
        self.clip_values = clip_values
        self.security_parameter = security_parameter
        self.calibration_fraction = calibration_fraction
        self.input_shape = input_shape
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def _fit_statistic(self, rows, columns, train, random_state):
        classes = torch.as_tensor(self.classes_)
        return EnergyStatistic(self.classifier, classes, self.temperature)

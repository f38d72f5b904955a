"""Detectors by the classifier's own confidence: maximum softmax probability, and energy."""

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skmrr._sklearn import Interval
from skmrr.base import StatisticDetector
from skmrr.baselines._feature_detector import favouring
from skmrr.nn.statistic import Statistic
from skmrr.nn.tapped import Pass


class _LogitStatistic(Statistic):
    """Oddness read from the logits alone, the same under each class.

    Parameters
    ----------
    classes : Tensor of shape (classes,)
        The logits that the statistic's columns stand for.
    has_classifier : bool
        Whether the logits are the classifier's. Otherwise the rows are taken for logits.
    """

    classes: Tensor

    def __init__(self, classes: Tensor, *, has_classifier: bool):
        super().__init__()
        self.reads_logits = has_classifier
        self.register_buffer("classes", classes)
        self.highest = int(classes.max())

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return the level under each class; the guess is that of the highest logit."""
        logits = self.logits(x, passed)
        level = self.level(logits)
        if self.highest >= logits.shape[1]:  # these are no logits of these classes
            return level[:, None].expand(-1, self.classes.shape[0])
        return favouring(level, logits[:, self.classes].argmax(1), self.classes.shape[0])

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the level of each row."""
        return self.level(self.logits(x, passed))

    def logits(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch logits"]:
        """Logits in float64."""
        if not self.reads_logits:
            return x.flatten(1).double()
        assert passed.logits is not None
        return passed.logits.double()

    @abstractmethod
    def level(self, logits: Float[Tensor, "batch logits"]) -> Float[Tensor, " batch"]:
        """Oddness of each row."""


class MaxSoftmaxStatistic(_LogitStatistic):
    """log((1 − p) / p) of the largest softmax probability p."""

    def level(self, logits):
        """Log Σ_{j≠ŷ} exp z_j − z_ŷ, in which nothing saturates."""
        top, winner = logits.max(1, keepdim=True)
        return logits.scatter(1, winner, -torch.inf).logsumexp(1) - top[:, 0]


class EnergyStatistic(_LogitStatistic):
    """Free energy −T log Σ_j exp(z_j / T)."""

    def __init__(self, classes: Tensor, temperature: float, *, has_classifier: bool):
        super().__init__(classes, has_classifier=has_classifier)
        self.temperature = temperature

    def level(self, logits):
        """Free energy of each row (equation 4 of the paper)."""
        return -self.temperature * (logits / self.temperature).logsumexp(1)


SOME = 50  # rows whose logits are looked at
NORMALISED = 1e-2  # largest log Σ exp z of log-probabilities, in half precision


@dataclass(eq=False, repr=False)
class MaxSoftmaxDetector(StatisticDetector):
    """Detector by the maximum softmax probability: what the classifier is unsure of is odd.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits. Without it the rows of X are taken for logits.

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

    def _fit_statistic(self, rows, columns, train, random_state):
        classifier = self._tapped()
        x = rows.take(train[:1])
        with torch.no_grad():
            n_logits = x[0].numel() if classifier is None else classifier(x).logits.shape[1]
        if n_logits == 1:
            raise ValueError(
                "A softmax over 1 feature(s) is always 1; give classifier=… with at least two "
                "logits, or rows that hold as many."
            )
        classes = torch.as_tensor(self.classes_)
        return MaxSoftmaxStatistic(classes, has_classifier=classifier is not None)


@dataclass(eq=False, repr=False)
class EnergyDetector(StatisticDetector):
    """Detector by the free energy of the logits, which is low where one of them is large.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits. Without it the rows of X are taken for logits.
    temperature : float, default=1.0
        T > 0 of the energy −T log Σ_j exp(z_j / T).

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

    _: KW_ONLY
    temperature: float = 1.0

    _parameter_constraints: ClassVar[dict] = {
        **StatisticDetector._parameter_constraints,
        "temperature": [Interval(Real, 0, None, closed="neither")],
    }

    def _fit_statistic(self, rows, columns, train, random_state):
        classes = torch.as_tensor(self.classes_)
        classifier = self._tapped()
        has_classifier = classifier is not None
        if classifier is not None:
            with torch.no_grad():
                logits = classifier(rows.take(train[:SOME])).logits.double()
            if logits.logsumexp(1).abs().max() < NORMALISED:
                raise ValueError(
                    "The classifier returns log-probabilities, whose energy is 0 for every row; "
                    "give it without its log-softmax."
                )
        return EnergyStatistic(classes, self.temperature, has_classifier=has_classifier)

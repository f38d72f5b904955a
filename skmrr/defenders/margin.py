"""The classifier's own margin: what it is unsure of is odd."""

from dataclasses import dataclass

import torch

from skmrr.base import StatisticDetector
from skmrr.nn.statistic import MarginStatistic


@dataclass(eq=False, repr=False)
class MarginDetector(StatisticDetector):
    """Detector by the classifier's own margin, max_{c≠ŷ} z_c − z_ŷ of its logits z.

    It learns nothing, and costs no pass of its own. In an `MRREnsemble` the other members are
    judged among clean rows of about the same margin: their doubts mean less where the classifier
    has them too.

    Parameters and attributes are those of `BaseDetector`.

    See Also
    --------
    skmrr.baselines.MaxSoftmaxDetector : Weighs all other classes, not the best one alone.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import MarginDetector
    >>> X, y = load_digits(return_X_y=True)
    >>> detector = MarginDetector(torch.nn.Linear(64, 10), random_state=0).fit(X, y)
    >>> detector.risk(X[:3]).shape
    (3,)
    """

    def _fit_statistic(self, rows, columns, train, random_state):
        if self.classifier is None:
            raise ValueError("A margin is one of the classifier's logits: give classifier=….")
        return MarginStatistic(torch.as_tensor(self.classes_))

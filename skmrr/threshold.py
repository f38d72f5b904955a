"""Reading a log-survival: risk, threshold and verdict, free to change after fitting."""

import math
from numbers import Real

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skmrr._sklearn import HasMethods, Interval, fit_context

ADVERSARIAL = -1  # in y: no clean example of any class; of predict: flagged; of classify: unknown


def risk_of(scores: np.ndarray) -> np.ndarray:
    """Risks in [0, 1] of log-survivals of any shape."""
    return 0.0 - np.expm1(scores)  # a minus alone gives -0.0


class RiskMixin(OutlierMixin):
    """What follows from ``score_samples`` (a log-survival) and ``security_parameter`` alone."""

    @property
    def offset_(self) -> float:
        """Threshold on the score: the logarithm of `security_parameter`."""
        sp = self.security_parameter
        if not isinstance(sp, Real) or not 0 < float(sp) < 1:  # may have been set after fit
            raise ValueError(f"security_parameter={sp!r} is no rate; set one between 0 and 1.")
        return math.log(float(sp))

    def decision_function(self, X, *, labels=None):
        """Score minus threshold, shape (n_samples,): negative where a row is flagged."""
        return self.score_samples(X, labels=labels) - self.offset_

    def predict(self, X, *, labels=None):
        """Verdict of each row, shape (n_samples,): +1 legitimate, −1 adversarial."""
        return np.where(self.decision_function(X, labels=labels) >= 0, 1, ADVERSARIAL)

    def fit_predict(self, X, y=None, *, labels=None):
        """Fit on the clean rows of X, and return the verdict of every row.

        Parameters are those of `fit`.
        """
        of_rows = {} if labels is None else {"labels": labels}
        return self.fit(X, y, **of_rows).predict(X, labels=labels)

    def risk(self, X, *, labels=None):
        """Risk of each row, shape (n_samples,), float64 in [0, 1]: 0 is safe.

        A clean row's risk exceeds 1 − q with probability at most q.
        """
        return risk_of(self.score_samples(X, labels=labels))


class FixedThresholdDetector(RiskMixin, BaseEstimator):
    """Detector with a threshold of its own around another detector.

    Around a ``FrozenEstimator`` it never fits anything, so that a search over
    ``security_parameter`` costs scoring alone.

    Parameters
    ----------
    estimator : estimator
        A detector, or a Pipeline that ends in one. It is cloned and fitted, unless frozen by
        ``sklearn.frozen.FrozenEstimator``.
    security_parameter : float, default=0.01
        Share of clean rows that may be flagged.

    Attributes
    ----------
    estimator_ : estimator
        The fitted detector.
    offset_ : float
        Threshold on the score, log(`security_parameter`).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.frozen import FrozenEstimator
    >>> from skmrr import FixedThresholdDetector, LatentDefender
    >>> X, y = load_digits(return_X_y=True)
    >>> defender = LatentDefender(max_epochs=3, random_state=0).fit(X, y)
    >>> strict = FixedThresholdDetector(FrozenEstimator(defender), security_parameter=0.2).fit(X, y)
    >>> bool((strict.predict(X) == -1).sum() > (defender.predict(X) == -1).sum())
    True
    """

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit", "score_samples"])],
        "security_parameter": [Interval(Real, 0, 1, closed="neither")],
    }

    def __init__(self, estimator, *, security_parameter=0.01):
        self.estimator = estimator
        self.security_parameter = security_parameter

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params):
        """Fit a clone of the detector, or take the frozen one as it is.

        Parameters
        ----------
        X : array-like of shape (n_samples, …)
            Rows, as the detector takes them.
        y : array-like of shape (n_samples,), optional
            Class labels, −1 for adversarial rows.
        **params : dict
            Handed to the detector's fit.

        Returns
        -------
        self : object
        """
        self.estimator_ = clone(self.estimator).fit(X, y, **params)
        return self

    def score_samples(self, X, *, labels=None):
        """Log-survival by the detector, ndarray of shape (n_samples,).

        Of a Pipeline the last step is given `labels`, whether metadata routing is enabled or not.
        """
        check_is_fitted(self, "estimator_")
        if labels is None:
            return self.estimator_.score_samples(X)
        inner = self.estimator_
        inner = inner.estimator if isinstance(inner, FrozenEstimator) else inner
        if not isinstance(inner, Pipeline):
            return inner.score_samples(X, labels=labels)
        X = inner[:-1].transform(X) if len(inner) > 1 else X
        return inner[-1].score_samples(X, labels=labels)

    @property
    def n_features_in_(self) -> int:
        """Number of values in a row of X."""
        check_is_fitted(self, "estimator_")
        return self.estimator_.n_features_in_

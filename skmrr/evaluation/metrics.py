"""Figures of merit of a detector."""

import numpy as np
from scipy.stats import betabinom, binom


def tpr_at_fpr(clean_scores, adversarial_scores, fpr: float) -> float:
    """Share of adversarial rows caught while at most a share `fpr` of clean rows is flagged.

    Parameters
    ----------
    clean_scores, adversarial_scores : array-like of shape (n,)
        ``score_samples`` of clean and of adversarial rows: high = normal.
    fpr : float
        Share of clean rows that may be flagged, in (0, 1).

    Returns
    -------
    float
        True positive rate, in [0, 1].

    Examples
    --------
    >>> from skmrr.evaluation import tpr_at_fpr
    >>> tpr_at_fpr([0, -1, -2, -3], [-1.5, -9], fpr=0.25)
    0.5
    """
    clean = np.sort(np.asarray(clean_scores, dtype=float))
    allowed = int(np.floor(fpr * len(clean) + 1e-9))
    # Flagging strictly below this clean score leaves `allowed` clean rows flagged, or fewer.
    threshold = clean[allowed] if allowed < len(clean) else np.inf
    return float(np.mean(np.asarray(adversarial_scores) < threshold))


def false_alarm_interval(
    security_parameter: float,
    n_rows: int,
    confidence: float = 0.99,
    *,
    n_calibration: int | None = None,
):
    """Interval in which the share of false alarms lies by chance, if all rows are exchangeable.

    Parameters
    ----------
    security_parameter : float
        Probability SP of a false alarm.
    n_rows : int
        Number of clean rows scored.
    confidence : float, default=0.99
        Probability of the interval.
    n_calibration : int, optional
        Number of calibration rows, whose own chance widens the interval: with k of them beyond
        the threshold, the probability of a false alarm is Beta(k, n + 1 − k) (Vovk 2012). By
        default that probability is taken to be SP exactly.

    Returns
    -------
    tuple of float
        Lowest and highest share.

    Examples
    --------
    >>> from skmrr.evaluation import false_alarm_interval
    >>> low, high = false_alarm_interval(0.01, 10_000)
    >>> round(float(low), 4), round(float(high), 4)
    (0.0075, 0.0127)
    """
    if n_calibration is None:
        low, high = binom.interval(confidence, n_rows, security_parameter)
    else:
        k = int(security_parameter * (n_calibration + 1) + 1e-9)
        low, high = betabinom.interval(confidence, n_rows, k, n_calibration + 1 - k)
    return low / n_rows, high / n_rows

"""Figures of merit of a detector."""

import math

import numpy as np
from scipy.special import expit, logit
from scipy.stats import beta, betabinom, binom, norm

FALSE_ALARM_RATES = (0.01, 0.05, 0.1)
FEWEST = 10  # rows on each side that an interval of the area takes


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

    Raises
    ------
    ValueError
        If so few calibration rows promise no such SP.

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
        if k == 0:
            raise ValueError(
                f"{n_calibration} calibration rows promise no security_parameter="
                f"{security_parameter:g}; that takes {math.ceil(1 / security_parameter) - 1}."
            )
        low, high = betabinom.interval(confidence, n_rows, k, n_calibration + 1 - k)
    return low / n_rows, high / n_rows


def auc_interval(clean_scores, adversarial_scores, confidence: float = 0.95):
    """Area under the ROC curve, and an interval for it.

    Parameters
    ----------
    clean_scores, adversarial_scores : array-like of shape (n,)
        ``score_samples`` of clean and of adversarial rows: high = normal.
    confidence : float, default=0.95
        Probability of the interval.

    Returns
    -------
    auc, low, high : float
        Without a single pair in the wrong order there is no spread to judge by; the interval then
        ends where the rule of three puts it. Fewer than ten rows on a side, or scores that are all
        alike, tell too little of the spread; the interval is then [0, 1].

    References
    ----------
    E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, "Comparing the areas under two or more
    correlated receiver operating characteristic curves", Biometrics 1988, for the variance, taken
    on the scale of the log-odds.

    Examples
    --------
    >>> from skmrr.evaluation import auc_interval
    >>> auc, low, high = auc_interval([0, -1, -2, -3, -4], [-2.5, -3.5, -9])
    >>> round(auc, 3), low < auc < high
    (0.8, True)
    """
    clean = np.sort(np.asarray(clean_scores, dtype=float))
    odd = np.sort(np.asarray(adversarial_scores, dtype=float))
    # Share of the other side that each row is rightly ranked against; ties count half.
    of_odd = 1 - _rank(clean, odd) / len(clean)
    of_clean = _rank(odd, clean) / len(odd)
    auc = float(of_odd.mean())
    if auc in (0.0, 1.0):
        margin = min(1.0, -np.log((1 - confidence) / 2) / min(len(clean), len(odd)))
        return (auc, 1 - margin, 1.0) if auc else (auc, 0.0, margin)
    if min(len(clean), len(odd)) < FEWEST:
        return auc, 0.0, 1.0
    variance = sum(part.var(ddof=1) / len(part) for part in (of_odd, of_clean))
    if variance == 0:
        return auc, 0.0, 1.0
    half = norm.ppf((1 + confidence) / 2) * np.sqrt(variance) / (auc * (1 - auc))
    return auc, float(expit(logit(auc) - half)), float(expit(logit(auc) + half))


def _rank(sorted_values: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Count the sorted values below each value, ties as half."""
    below, up_to = (np.searchsorted(sorted_values, values, side) for side in ("left", "right"))
    return (below + up_to) / 2


def exact_interval(n_hits, n, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Clopper and Pearson's interval of a share, elementwise."""
    hits, tail = np.asarray(n_hits), (1 - confidence) / 2
    low = np.where(hits == 0, 0.0, beta.ppf(tail, np.maximum(hits, 1), n - hits + 1))
    high = np.where(hits == n, 1.0, beta.ppf(1 - tail, hits + 1, np.maximum(n - hits, 1)))
    return low, high


def share_of(hits: np.ndarray, name: str) -> dict[str, float]:
    """Share of true entries under a name, how many entries there are, and its 95 % interval."""
    n_hits, n = int(hits.sum()), len(hits)
    low, high = map(float, exact_interval(n_hits, n))
    return {"n_rows": n, name: n_hits / n, "low": low, "high": high}

"""How well detectors tell clean rows from attacks that do not know them.

Thresholds are set by the detectors' own calibration, before any attack. Only an attack's successes
count; the clean side is all clean rows, the victim's own errors included.
"""

import warnings
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import combinations

import numpy as np
from tqdm.auto import tqdm

from skmrr._sklearn import check_pandas_support
from skmrr.evaluation.adaptive import WORST
from skmrr.evaluation.frames import DetectionEvaluation
from skmrr.evaluation.metrics import FALSE_ALARM_RATES, auc_interval, exact_interval, tpr_at_fpr
from skmrr.evaluation.successes import (
    CLEAN,
    Successes,
    check_attacks,
    common_rows,
    rows_to_score,
    worst_scores,
)
from skmrr.nn.rows import Rows
from skmrr.nn.tapped import Tapped
from skmrr.nn.trials import predict_labels
from skmrr.threshold import RiskMixin
from skmrr.validation import check_labels


def evaluate_detection(
    detectors: Mapping[str, RiskMixin],
    X,
    y,
    attacks: Mapping[str, Successes],
    *,
    labels=None,
    security_parameters: Sequence[float] = (0.01, 0.05),
    verbose: bool = False,
) -> DetectionEvaluation:
    """Score clean rows and attacks with each detector, at thresholds fixed before.

    Parameters
    ----------
    detectors : mapping of str to detector
        Fitted and calibrated, all of one victim.
    X : array-like of shape (n_samples, …)
        All clean test rows, none of which a detector has seen.
    y : array-like of shape (n_samples,)
        Their true classes.
    attacks : mapping of str to Successes
        Adversarials made from rows of X that the victim takes for what they are.
    labels : array-like of shape (n_samples,), optional
        The victim's decisions for X, which tell on which rows it is right; by default the first
        detector's ``classifier`` is asked. A detector without a classifier of its own judges all
        rows under its nearest class, so that both sides are judged alike.
    security_parameters : sequence of float, default=(0.01, 0.05)
        Thresholds.
    verbose : bool, default=False
        Whether to show a progress bar.

    Returns
    -------
    DetectionEvaluation

    Raises
    ------
    ValueError
        If there is no detector, no attack or no success at all, the rows of an attack are not rows
        of X or are misclassified without it, or y does not fit.
    TypeError
        If `detectors` or `attacks` are no such mappings.

    References
    ----------
    N. Carlini, D. Wagner, "Adversarial Examples Are Not Easily Detected", 2017, for why successes
    alone count and thresholds come first.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from skmrr import LatentDefender
    >>> from skmrr.evaluation import Successes, evaluate_detection
    >>> X, y = load_digits(return_X_y=True)
    >>> detector = LatentDefender(max_epochs=3, random_state=0).fit(X[:1500], y[:1500])
    >>> labels = KNeighborsClassifier().fit(X[:1500], y[:1500]).predict(X[1500:])
    >>> rows = np.flatnonzero(labels == y[1500:])[:100]
    >>> noisy = Successes(16 - X[1500:][rows], rows, attacked=rows, distortion=np.ones(100))
    >>> outcome = evaluate_detection(
    ...     {"latent": detector}, X[1500:], y[1500:], {"negative": noisy}, labels=labels
    ... )
    >>> outcome.detection["attack"].tolist()
    ['negative', 'worst case']
    >>> outcome.flagged["rows"].unique().tolist()
    ['clean', 'clean, victim right', 'clean, victim wrong', 'negative']
    """
    check_pandas_support("evaluate_detection")
    if not isinstance(detectors, Mapping):
        raise TypeError("detectors must be a mapping of names to detectors: {'name': detector}.")
    if not detectors or not attacks:
        raise ValueError("evaluate_detection needs one detector and one attack at least.")
    y = check_labels(y, len(X), "y")
    labels = _decisions(detectors, X) if labels is None else check_labels(labels, len(X), "labels")
    check_attacks(attacks, labels == y)
    sets = rows_to_score(X, attacks)
    scores: dict[str, dict[str, np.ndarray]] = {name: {} for name in detectors}
    with tqdm(total=len(detectors) * len(sets), desc="scoring", disable=not verbose) as bar:
        for name, detector in detectors.items():
            for kind, rows in sets.items():
                bar.set_postfix_str(f"{name}: {kind}")
                scores[name][kind] = detector.score_samples(rows)
                bar.update()
    return evaluate_scores(scores, labels == y, attacks, security_parameters=security_parameters)


def evaluate_scores(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    is_right: np.ndarray,
    attacks: Mapping[str, Successes],
    *,
    security_parameters: Sequence[float] = (0.01, 0.05),
) -> DetectionEvaluation:
    """Evaluate the scores of `rows_to_score`.

    Parameters
    ----------
    scores : mapping of str to mapping of str to ndarray
        By detector, then by set of rows.
    is_right : ndarray of bool of shape (n_samples,)
        Which clean rows the victim takes for what they are.
    attacks : mapping of str to Successes
        As in `evaluate_detection`.
    security_parameters : sequence of float, default=(0.01, 0.05)
        Thresholds.
    """
    pandas = check_pandas_support("evaluate_scores")
    common = common_rows(attacks)
    detection, flagged, kept = [], [], []
    for name, by_set in scores.items():
        clean = by_set[CLEAN]
        odd = {kind: by_set.get(kind, clean[:0]) for kind in attacks}
        broken, worst = worst_scores([(attacks[kind].rows, odd[kind]) for kind in odd], common)
        for kind, part in {**odd, WORST: worst}.items():
            record = {"detector": name, "attack": kind, "n_rows": len(part)}
            detection.append(record | _success(attacks.get(kind)) | _separation(clean, part))
        judged = {
            CLEAN: clean,
            f"{CLEAN}, victim right": clean[is_right],
            f"{CLEAN}, victim wrong": clean[~is_right],
            **odd,
        }
        flagged += [
            {"detector": name, "rows": kind, **_flagged(part, sp)}
            for kind, part in judged.items()
            if len(part)
            for sp in security_parameters
        ]
        positions = {kind: attack.rows for kind, attack in attacks.items()}
        positions |= {CLEAN: np.arange(len(clean)), WORST: broken}
        kept += [
            pandas.DataFrame(
                {"detector": name, "attack": kind, "row": positions[kind], "score": part}
            )
            for kind, part in {**by_set, WORST: worst}.items()
        ]
    return DetectionEvaluation(
        pandas.DataFrame(detection),
        pandas.DataFrame(flagged),
        pandas.concat(kept, ignore_index=True),
    )


def check_disjoint(**parts) -> None:
    """Warn where a row is in two parts of the data that have to be disjoint.

    Parameters
    ----------
    **parts : array-like of shape (n, …)
        Rows by name: those to fit on, to calibrate on, to test on.

    Warns
    -----
    UserWarning
        With the number of rows that two parts share, bit for bit.
    """
    seen = {
        name: {blake2b(row).digest() for row in np.ascontiguousarray(rows)}
        for name, rows in parts.items()
    }
    for one, other in combinations(seen, 2):
        shared = len(seen[one] & seen[other])
        if shared:
            warnings.warn(
                f"{shared} rows of {one} are in {other} too; split so that none is, or the "
                "figures flatter the detector.",
                stacklevel=2,
            )


def _decisions(detectors: Mapping[str, RiskMixin], X) -> np.ndarray:
    for detector in detectors.values():
        classifier = _classifier(detector)
        if classifier is not None:
            rows = Rows(np.asarray(X), input_shape=detector.input_shape_)
            return predict_labels(Tapped(classifier), rows, detector.batch_size)
    raise ValueError("No detector has a classifier: give labels=…, the victim's decisions for X.")


def _classifier(detector):
    return getattr(detector, "classifier", None)


def _success(attack: Successes | None) -> dict[str, float]:
    if attack is None:
        return {"success_rate": np.nan, "mean_distortion": np.nan}
    return {
        "success_rate": len(attack.X) / attack.n_attacked,
        "mean_distortion": float(np.mean(attack.distortion)) if len(attack.X) else np.nan,
    }


def _separation(clean: np.ndarray, odd: np.ndarray) -> dict[str, float]:
    if len(odd) == 0:
        names = ("auc", "auc_low", "auc_high", *(f"tpr_{fpr:g}" for fpr in FALSE_ALARM_RATES))
        return dict.fromkeys(names, np.nan)
    auc, low, high = auc_interval(clean, odd)
    caught = {f"tpr_{fpr:g}": tpr_at_fpr(clean, odd, fpr) for fpr in FALSE_ALARM_RATES}
    return {"auc": auc, "auc_low": low, "auc_high": high, **caught}


def _flagged(scores: np.ndarray, sp: float) -> dict[str, float]:
    n_flagged, n = int((scores < np.log(sp)).sum()), len(scores)
    low, high = map(float, exact_interval(n_flagged, n))
    share = {"flagged": n_flagged / n, "low": low, "high": high}
    return {"security_parameter": sp, "n_rows": n, **share}

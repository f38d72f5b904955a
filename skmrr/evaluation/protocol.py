"""How well detectors tell clean rows from attacks that do not know them.

Thresholds are set by the detectors' own calibration, before any attack. Only an attack's successes
count; the clean side is all clean rows, the victim's own errors included. Both come through the
same channels.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import combinations
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from skmrr._sklearn import check_pandas_support
from skmrr.evaluation.channels import (
    ANY_CHANNEL,
    RAW,
    Arrived,
    arrive,
    check_channels,
    decisions_of,
)
from skmrr.evaluation.frames import DetectionEvaluation
from skmrr.evaluation.metrics import FALSE_ALARM_RATES, auc_interval, share_of, tpr_at_fpr
from skmrr.evaluation.siege import WORST
from skmrr.evaluation.successes import (
    CLEAN,
    Successes,
    check_attacks,
    common_rows,
    worst_scores,
)
from skmrr.harmless import CHANNELS
from skmrr.threshold import RiskMixin
from skmrr.validation import check_labels


def evaluate_detection(
    detectors: Mapping[str, RiskMixin],
    X,
    y,
    attacks: Mapping[str, Successes],
    *,
    labels=None,
    channels: Mapping[str, Callable | None] | None = None,
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
    channels : mapping of str to callable or None, optional
        Ways on which clean rows and attacks arrive, as `skmrr.harmless` has them; None changes
        nothing. Of attacks only what still fools the victim counts, and only on rows that the
        channel alone leaves right. By default images, whose range and classifier a detector knows,
        come through `skmrr.harmless.CHANNELS`, other rows as they are.
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
        of X or are misclassified without it, y does not fit, or channels change rows but no
        detector has a classifier that could be asked about them.
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
    asking = decisions_of(detectors)
    if labels is not None:
        labels = check_labels(labels, len(X), "labels")
    elif asking is not None:
        labels = asking[0](np.asarray(X))
    else:
        raise ValueError("No detector has a classifier: give labels=…, its decisions for X.")
    check_attacks(attacks, labels == y)
    if channels is None:
        channels = CHANNELS if asking and asking[1] and _are_images(X) else {RAW: None}
    check_channels(channels)
    if asking is None and any(change is not None for change in channels.values()):
        raise ValueError("No detector has a classifier that could be asked about changed rows.")
    raw = Arrived(X, labels == y, dict(attacks))
    arrivals = (
        (channel, raw if change is None or not asking else arrive(change, X, y, attacks, *asking))
        for channel, change in channels.items()
    )
    scorers = {name: detector.score_samples for name, detector in detectors.items()}
    with tqdm(total=len(channels) * len(detectors), desc="scoring", disable=not verbose) as bar:
        scores, arrived = score_arrivals(scorers, arrivals, bar)
    return evaluate_scores(scores, arrived, security_parameters=security_parameters)


def score_arrivals(
    scorers: Mapping[str, Callable],
    arrivals: Iterable[tuple[str, Arrived]],
    bar: tqdm | None = None,
) -> tuple[dict[str, dict[str, dict[str, np.ndarray]]], dict[str, Arrived]]:
    """Score what arrives, one channel after the other; return what `evaluate_scores` takes.

    Parameters
    ----------
    scorers : mapping of str to callable
        By detector, rows → scores.
    arrivals : iterable of (str, Arrived)
        By channel. Of each only the attacks are kept.
    bar : tqdm, optional
        Told of each detector and channel.
    """
    bar = tqdm(disable=True) if bar is None else bar
    scores: dict[str, dict[str, dict[str, np.ndarray]]] = {name: {} for name in scorers}
    arrived = {}
    for channel, here in arrivals:
        for name, score in scorers.items():
            bar.set_postfix_str(f"{name}: {channel}")
            scores[name][channel] = {kind: score(rows) for kind, rows in here.sets.items()}
            bar.update()
        arrived[channel] = here.without_rows()
    return scores, arrived


def evaluate_scores(
    scores: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    arrived: Mapping[str, Arrived],
    *,
    security_parameters: Sequence[float] = (0.01, 0.05),
) -> DetectionEvaluation:
    """Evaluate the scores of what arrived.

    Parameters
    ----------
    scores : mapping of str to mapping of str to mapping of str to ndarray
        By detector, then by channel, then by set of rows, see `Arrived.sets`.
    arrived : mapping of str to Arrived
        By channel.
    security_parameters : sequence of float, default=(0.01, 0.05)
        Thresholds.
    """
    pandas = check_pandas_support("evaluate_scores")
    parts: list[DetectionEvaluation] = []
    for name, by_channel in scores.items():
        raw = by_channel.get(RAW, next(iter(by_channel.values())))[CLEAN]
        parts += [
            _evaluate_channel(name, channel, by_set, arrived[channel], raw, security_parameters)
            for channel, by_set in by_channel.items()
        ]
        if len(by_channel) > 1:
            record = _worst_channel(name, by_channel, arrived, raw)
            nothing = pandas.DataFrame()
            parts.append(DetectionEvaluation(pandas.DataFrame([record]), nothing, nothing))
    return DetectionEvaluation.concat(parts)


def _evaluate_channel(
    detector: str,
    channel: str,
    by_set: Mapping[str, np.ndarray],
    here: Arrived,
    raw: np.ndarray,
    security_parameters: Sequence[float],
) -> DetectionEvaluation:
    """Evaluate the scores that one detector gives what arrived through one channel."""
    pandas = check_pandas_support("evaluate_scores")
    of: dict[str, Any] = {"detector": detector, "channel": channel}
    clean, odd = by_set[CLEAN], _scores_of_attacks(by_set, here)
    common = common_rows(here.attacks)
    broken, worst = worst_scores([(here.attacks[kind].rows, odd[kind]) for kind in odd], common)
    detection = [
        of | {"attack": kind} | _success(here.attacks[kind]) | _separation(clean, part, raw)
        for kind, part in odd.items()
    ]
    detection.append(
        of | {"attack": WORST} | _share_broken(broken, common) | _separation(clean, worst, raw)
    )
    judged = {
        CLEAN: clean,
        f"{CLEAN}, victim right": clean[here.is_right],
        f"{CLEAN}, victim wrong": clean[~here.is_right],
        **odd,
    }
    flagged = [
        of | {"rows": kind} | _flagged(part, sp)
        for kind, part in judged.items()
        if len(part)
        for sp in security_parameters
    ]
    positions = {kind: attack.rows for kind, attack in here.attacks.items()}
    positions |= {CLEAN: np.arange(len(clean)), WORST: broken}
    kept = [
        pandas.DataFrame({**of, "attack": kind, "row": positions[kind], "score": part})
        for kind, part in {**by_set, WORST: worst}.items()
    ]
    return DetectionEvaluation(
        pandas.DataFrame(detection), pandas.DataFrame(flagged), pandas.concat(kept)
    )


def _worst_channel(
    detector: str,
    by_channel: Mapping[str, Mapping[str, np.ndarray]],
    arrived: Mapping[str, Arrived],
    raw: np.ndarray,
) -> dict:
    """Of each row the attack and the channel that a detector finds most normal."""
    clean = np.concatenate([by_set[CLEAN] for by_set in by_channel.values()])
    found = [
        (arrived[channel].attacks[kind].rows, scores)
        for channel, by_set in by_channel.items()
        for kind, scores in _scores_of_attacks(by_set, arrived[channel]).items()
    ]
    common = common_rows(arrived[next(iter(by_channel))].attacks)
    broken, worst = worst_scores(found, common)
    of = {"detector": detector, "channel": ANY_CHANNEL, "attack": WORST}
    return of | _share_broken(broken, common) | _separation(clean, worst, raw)


def _scores_of_attacks(by_set: Mapping[str, np.ndarray], here: Arrived) -> dict[str, np.ndarray]:
    nothing = by_set[CLEAN][:0]
    return {kind: by_set.get(kind, nothing) for kind in here.attacks}


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


def _are_images(X) -> bool:
    """Whether rows can come through a JPEG: of shape (channels, height, width), grey or colour."""
    shape = np.shape(X)
    return len(shape) == 4 and shape[1] in (1, 3)


def _success(attack: Successes) -> dict[str, Any]:
    return {
        "n_rows": len(attack.X),
        "success_rate": len(attack.X) / attack.n_attacked if attack.n_attacked else np.nan,
        "mean_distortion": float(np.mean(attack.distortion)) if len(attack.X) else np.nan,
    }


def _share_broken(broken: np.ndarray, common: np.ndarray) -> dict[str, Any]:
    """Success rate of all attacks together, on the rows that all of them began from."""
    share = len(broken) / len(common) if len(common) else np.nan
    return {"n_rows": len(broken), "success_rate": share, "mean_distortion": np.nan}


def _separation(clean: np.ndarray, odd: np.ndarray, raw: np.ndarray) -> dict[str, Any]:
    """How well scores tell odd rows from clean ones, and from clean ones as they are (`raw`)."""
    shares = [f"tpr_{fpr:g}" for fpr in FALSE_ALARM_RATES]
    if len(odd) == 0:
        return dict.fromkeys(["auc", "auc_low", "auc_high", "auc_raw", *shares], np.nan)
    auc, low, high = auc_interval(clean, odd)
    auc_raw = auc if clean is raw else auc_interval(raw, odd)[0]
    caught = [tpr_at_fpr(clean, odd, fpr) for fpr in FALSE_ALARM_RATES]
    areas = {"auc": auc, "auc_low": low, "auc_high": high, "auc_raw": auc_raw}
    return areas | dict(zip(shares, caught, strict=True))


def _flagged(scores: np.ndarray, sp: float) -> dict[str, Any]:
    return {"security_parameter": sp, **share_of(scores < np.log(sp), "flagged")}

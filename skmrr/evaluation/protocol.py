"""How well detectors tell clean rows from attacks that do not know them.

Thresholds are set by the detectors' own calibration, before any attack. Only an attack's successes
count; the clean side is all clean rows, the victim's own errors included.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils._optional_dependencies import check_pandas_support
from tqdm.auto import tqdm

from skmrr.attacks import AttackResult
from skmrr.evaluation.adaptive import WORST
from skmrr.evaluation.metrics import FALSE_ALARM_RATES, auc_interval, exact_interval, tpr_at_fpr
from skmrr.nn.inference import predict_labels
from skmrr.nn.rows import Rows
from skmrr.threshold import RiskMixin
from skmrr.validation import check_labels

if TYPE_CHECKING:
    import pandas as pd

CLEAN = "clean"


@dataclass(frozen=True)
class Successes:
    """The rows on which an attack fooled the victim."""

    X: np.ndarray
    """Adversarial rows, shape (n_successes, …)."""
    rows: np.ndarray
    """Positions of the clean rows that they were made from, shape (n_successes,)."""
    n_attacked: int
    """Number of rows attacked."""
    distortion: np.ndarray
    """Norm of each row's change, as the attack measures it."""

    @classmethod
    def of(cls, result: AttackResult, rows) -> "Successes":
        """Successes of an attack on the clean rows at the positions `rows`."""
        success = result.success.cpu().numpy()
        return cls(
            result.adversarial[result.success].cpu().numpy(),
            np.asarray(rows)[success],
            len(success),
            result.distortion.cpu().numpy()[success],
        )


@dataclass(frozen=True)
class DetectionEvaluation:
    """Outcome of `evaluate_detection`; each frame is tidy, a row an observation."""

    detection: "pd.DataFrame"
    """By ``detector`` and ``attack``: ``n_rows``, ``success_rate``, ``mean_distortion``, ``auc``
    with its 95 % interval ``auc_low`` to ``auc_high``, and ``tpr_0.01`` … at these shares of all
    clean rows flagged. The attack "worst case" takes of each row the success that the detector
    finds most normal."""
    flagged: "pd.DataFrame"
    """By ``detector``, ``rows`` ("clean", "clean, victim right", "clean, victim wrong", or an
    attack) and ``security_parameter``: ``n_rows`` and the share ``flagged`` at the detector's
    calibrated threshold, with its 95 % interval ``low`` to ``high`` (Clopper and Pearson)."""
    scores: "pd.DataFrame"
    """``detector``, ``attack`` ("clean" for none), ``row`` and ``score`` of every row scored."""

    @classmethod
    def concat(
        cls, parts: "Mapping[int, DetectionEvaluation] | Sequence[DetectionEvaluation]"
    ) -> "DetectionEvaluation":
        """Join the evaluations of several seeds, with a column ``seed``, or of several detectors.

        Parameters
        ----------
        parts : mapping of int to DetectionEvaluation, or sequence of DetectionEvaluation
            By seed, or without.
        """
        pandas = check_pandas_support("DetectionEvaluation.concat")
        if isinstance(parts, Mapping):
            frames = [
                {name: frame.assign(seed=seed) for name, frame in part.frames.items()}
                for seed, part in parts.items()
            ]
        else:
            frames = [part.frames for part in parts]
        names = frames[0]
        return cls(**{n: pandas.concat([f[n] for f in frames], ignore_index=True) for n in names})

    @property
    def frames(self) -> "dict[str, pd.DataFrame]":
        """Frames by name."""
        return dict(vars(self))

    def save(self, folder) -> list[Path]:
        """Write each frame as CSV and as JSON records into a folder; return the paths."""
        return save_frames(self.frames, folder)


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
        The victim's decisions for X; by default the first detector's ``classifier`` is asked. A
        detector without a classifier of its own judges adversarials under its nearest class.
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
        If there is no detector or attack, an attack has no success, its rows are not rows of X or
        are misclassified without it, or y does not fit.

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
    >>> noisy = Successes(16 - X[1500:][rows], rows, n_attacked=100, distortion=np.ones(100))
    >>> outcome = evaluate_detection(
    ...     {"latent": detector}, X[1500:], y[1500:], {"negative": noisy}, labels=labels
    ... )
    >>> outcome.detection["attack"].tolist()
    ['negative', 'worst case']
    >>> outcome.flagged["rows"].unique().tolist()
    ['clean', 'clean, victim right', 'clean, victim wrong', 'negative']
    """
    pandas = check_pandas_support("evaluate_detection")
    if not detectors or not attacks:
        raise ValueError("evaluate_detection needs one detector and one attack at least.")
    y = check_labels(y, len(X), "y")
    labels = _decisions(detectors, X) if labels is None else check_labels(labels, len(X), "labels")
    _check_attacks(attacks, labels == y)
    detection, flagged, scores = [], [], []
    sets = {CLEAN: X, **{name: attack.X for name, attack in attacks.items()}}
    clean_rows = {
        CLEAN: np.ones(len(y), dtype=bool),
        f"{CLEAN}, victim right": labels == y,
        f"{CLEAN}, victim wrong": labels != y,
    }
    bar = tqdm(total=len(detectors) * len(sets), desc="scoring", disable=not verbose)
    for name, detector in detectors.items():
        score = {}
        for kind, rows in sets.items():
            bar.set_postfix_str(f"{name}: {kind}")
            given = {"labels": labels} if kind == CLEAN and _classifier(detector) is None else {}
            score[kind] = detector.score_samples(rows, **given)
            bar.update()
        clean = score.pop(CLEAN)
        worst = worst_scores((attacks[kind].rows, score[kind]) for kind in attacks)
        for kind, odd in {**score, WORST: worst}.items():
            record = {"detector": name, "attack": kind, "n_rows": len(odd)}
            detection.append(record | _success(attacks.get(kind)) | _separation(clean, odd))
        judged = {kind: clean[mask] for kind, mask in clean_rows.items() if mask.any()} | score
        flagged += [
            {"detector": name, "rows": kind, **_flagged(part, sp)}
            for kind, part in judged.items()
            for sp in security_parameters
        ]
        positions = {CLEAN: np.arange(len(y)), **{k: a.rows for k, a in attacks.items()}}
        scores += [
            pandas.DataFrame(
                {"detector": name, "attack": kind, "row": positions[kind], "score": part}
            )
            for kind, part in {CLEAN: clean, **score}.items()
        ]
    bar.close()
    return DetectionEvaluation(
        pandas.DataFrame(detection),
        pandas.DataFrame(flagged),
        pandas.concat(scores, ignore_index=True),
    )


def save_frames(frames: "Mapping[str, pd.DataFrame]", folder) -> list[Path]:
    """Write frames, by name, as CSV and as JSON records into a folder; return the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, frame in frames.items():
        if frame.index.names != [None]:  # else what the rows are would be lost
            frame = frame.reset_index()
        paths += [folder / f"{name}.csv", folder / f"{name}.json"]
        frame.to_csv(paths[-2], index=False)
        frame.to_json(paths[-1], orient="records")
    return paths


def worst_scores(attacks: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Of each row that any attack broke, the score of the success that looks most normal.

    Parameters
    ----------
    attacks : iterable of (rows, scores)
        Of each attack the positions of the rows it broke, and their scores.

    Returns
    -------
    ndarray of shape (n_rows_broken,)
    """
    rows, scores = (np.concatenate(part) for part in zip(*attacks, strict=True))
    broken, index = np.unique(rows, return_inverse=True)
    worst = np.full(len(broken), -np.inf)
    np.maximum.at(worst, index, scores)
    return worst


def over_seeds(frame: "pd.DataFrame", by: Sequence[str], values: Sequence[str]) -> "pd.DataFrame":
    """Mean, least and greatest value over seeds, in the order of first appearance.

    Parameters
    ----------
    frame : DataFrame
        With a column ``seed``, the columns `by` and the columns `values`.
    by : sequence of str
        What is kept apart.
    values : sequence of str
        What is averaged.

    Returns
    -------
    DataFrame
        Indexed by `by`, columns (value, "mean" | "min" | "max").
    """
    return frame.groupby(list(by), sort=False)[list(values)].agg(["mean", "min", "max"])


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
        name: {row.tobytes() for row in np.ascontiguousarray(rows)} for name, rows in parts.items()
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
            return predict_labels(classifier, rows, detector.batch_size)
    raise ValueError("No detector has a classifier: give labels=…, the victim's decisions for X.")


def _classifier(detector):
    return getattr(detector, "classifier", None)


def _check_attacks(attacks: Mapping[str, Successes], is_right: np.ndarray) -> None:
    for name, attack in attacks.items():
        if len(attack.X) == 0:
            raise ValueError(f"{name} has no success to detect; leave it out.")
        if (
            len(attack.rows) != len(attack.X)
            or not np.isin(attack.rows, range(len(is_right))).all()
        ):
            raise ValueError(f"The rows of {name} must be positions in X, one for each success.")
        if not is_right[attack.rows].all():
            raise ValueError(
                f"{name} holds rows that the victim misclassifies without any attack; attack only "
                "those that it takes for what they are."
            )


def _success(attack: Successes | None) -> dict[str, float]:
    if attack is None:
        return {"success_rate": np.nan, "mean_distortion": np.nan}
    return {
        "success_rate": len(attack.X) / attack.n_attacked,
        "mean_distortion": float(np.mean(attack.distortion)),
    }


def _separation(clean: np.ndarray, odd: np.ndarray) -> dict[str, float]:
    auc, low, high = auc_interval(clean, odd)
    caught = {f"tpr_{fpr:g}": tpr_at_fpr(clean, odd, fpr) for fpr in FALSE_ALARM_RATES}
    return {"auc": auc, "auc_low": low, "auc_high": high, **caught}


def _flagged(scores: np.ndarray, sp: float) -> dict[str, float]:
    n_flagged, n = int((scores < np.log(sp)).sum()), len(scores)
    low, high = map(float, exact_interval(n_flagged, n))
    share = {"flagged": n_flagged / n, "low": low, "high": high}
    return {"security_parameter": sp, "n_rows": n, **share}

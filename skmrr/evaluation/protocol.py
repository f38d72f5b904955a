"""How well detectors tell clean rows from attacks that do not know them.

Thresholds are set by the detectors' own calibration, before any attack. Only an attack's successes
count; the clean side is all clean rows, the victim's own errors included.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
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
    attacked: np.ndarray
    """Positions of all rows that the attack began from, shape (n_attacked,)."""
    distortion: np.ndarray
    """Norm of each row's change, as the attack measures it."""

    @classmethod
    def of(cls, result: AttackResult, rows) -> "Successes":
        """Successes of an attack on the clean rows at the positions `rows`."""
        success = result.success.cpu().numpy()
        return cls(
            result.adversarial[result.success].cpu().numpy(),
            np.asarray(rows)[success],
            np.asarray(rows),
            result.distortion.cpu().numpy()[success],
        )

    @property
    def n_attacked(self) -> int:
        """Number of rows attacked."""
        return len(self.attacked)


@dataclass(frozen=True)
class DetectionEvaluation:
    """Outcome of `evaluate_detection`; each frame is tidy, a row an observation."""

    detection: "pd.DataFrame"
    """By ``detector`` and ``attack``: ``n_rows``, ``success_rate``, ``mean_distortion``, ``auc``
    with its 95 % interval ``auc_low`` to ``auc_high``, and ``tpr_0.01`` … at these shares of all
    clean rows flagged; NaN for an attack without a success. The attack "worst case" takes, of each
    row that all attacks began from, the success that the detector finds most normal."""
    flagged: "pd.DataFrame"
    """By ``detector``, ``rows`` ("clean", "clean, victim right", "clean, victim wrong", or an
    attack) and ``security_parameter``: ``n_rows`` and the share ``flagged`` at the detector's
    calibrated threshold, with its 95 % interval ``low`` to ``high`` (Clopper and Pearson)."""
    scores: "pd.DataFrame"
    """``detector``, ``attack`` ("clean" for none), ``row`` and ``score`` of every row scored, and
    of those of the worst case."""

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
        If there is no detector, no attack or no success at all, the rows of an attack are not rows
        of X or are misclassified without it, or y does not fit.

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
                is_given = kind == CLEAN and _classifier(detector) is None
                given = {"labels": labels} if is_given else {}
                scores[name][kind] = detector.score_samples(rows, **given)
                bar.update()
    return evaluate_scores(scores, labels == y, attacks, security_parameters=security_parameters)


def rows_to_score(X, attacks: Mapping[str, Successes]) -> dict:
    """Clean rows, and the successes of each attack that has any, by name."""
    return {CLEAN: X, **{name: attack.X for name, attack in attacks.items() if len(attack.X)}}


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


def common_rows(attacks: Mapping[str, Successes]) -> np.ndarray:
    """Positions of the rows that all attacks began from."""
    return reduce(np.intersect1d, (attack.attacked for attack in attacks.values()))


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


def worst_scores(
    attacks: Iterable[tuple[np.ndarray, np.ndarray]], among: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each row that any attack broke, the score of the success that looks most normal.

    Parameters
    ----------
    attacks : iterable of (rows, scores)
        Of each attack the positions of the rows it broke, and their scores.
    among : ndarray of int
        Positions of the rows that count.

    Returns
    -------
    rows, scores : ndarray of shape (n_rows_broken,)
    """
    rows, scores = (np.concatenate(part) for part in zip(*attacks, strict=True))
    counts = np.isin(rows, among)
    broken, index = np.unique(rows[counts], return_inverse=True)
    worst = np.full(len(broken), -np.inf)
    np.maximum.at(worst, index, scores[counts])
    return broken, worst


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


def check_attacks(attacks: Mapping[str, Successes], is_right: np.ndarray) -> None:
    """Raise a ValueError unless attacks began from rows that the victim gets right."""
    if not any(len(attack.X) for attack in attacks.values()):
        raise ValueError("No attack has a success to detect; attack more rows, or harder.")
    for name, attack in attacks.items():
        if len(attack.rows) != len(attack.X) or not np.isin(attack.rows, attack.attacked).all():
            raise ValueError(
                f"The rows of {name} must be positions in X, one for each success, and among "
                "those attacked."
            )
        if not np.isin(attack.attacked, range(len(is_right))).all():
            raise ValueError(f"The rows that {name} attacked must be positions in X.")
        if not is_right[attack.attacked].all():
            raise ValueError(
                f"{name} holds rows that the victim misclassifies without any attack; attack only "
                "those that it takes for what they are."
            )


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

"""How often detectors flag harmlessly changed rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from skmrr._sklearn import check_pandas_support
from skmrr.evaluation.channels import decisions_of, pass_through
from skmrr.evaluation.metrics import share_of
from skmrr.harmless import SEVERITIES
from skmrr.threshold import RiskMixin
from skmrr.validation import check_labels

if TYPE_CHECKING:
    import pandas as pd

UNCHANGED = "none"


def flag_rates(
    detectors: Mapping[str, RiskMixin],
    X,
    y,
    *,
    changes: Mapping[str, Sequence[Callable]] | None = None,
    security_parameters: Sequence[float] = (0.01, 0.05),
    verbose: bool = False,
) -> "pd.DataFrame":
    """Share of harmlessly changed rows that are flagged, among those still classified rightly.

    Parameters
    ----------
    detectors : mapping of str to detector
        Fitted and calibrated, all of one victim; one at least has it as its ``classifier``.
    X : array-like of shape (n_samples, …)
        Clean rows, none of which a detector has seen.
    y : array-like of shape (n_samples,)
        Their true classes.
    changes : mapping of str to sequence of callable, optional
        Harmless changes from mild to strong, as `skmrr.harmless` has them; by default
        `skmrr.harmless.SEVERITIES`, for images.
    security_parameters : sequence of float, default=(0.01, 0.05)
        Thresholds, as calibrated.
    verbose : bool, default=False
        Whether to show a progress bar.

    Returns
    -------
    pandas.DataFrame
        By ``detector``, ``change``, ``severity`` (counted from 1; 0 for the rows as they are) and
        ``security_parameter``: the share ``still_right`` of all rows, their number ``n_rows``, and
        the share of them ``flagged`` with its 95 % interval ``low`` to ``high`` (Clopper and
        Pearson).

    Raises
    ------
    ValueError
        If no detector has a classifier, or the victim gets no row right.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> import torch
    >>> from skmrr import MarginDetector
    >>> from skmrr.evaluation import flag_rates
    >>> from skmrr.harmless import Shift
    >>> X, y = load_digits(return_X_y=True)
    >>> X = (X / 16).reshape(-1, 1, 8, 8).astype("float32")
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> detector = MarginDetector(net, clip_values=(0, 1), random_state=0).fit(X[:1000], y[:1000])
    >>> changes = {"shift": [Shift(0, 1), Shift(1, 1)]}
    >>> rates = flag_rates({"margin": detector}, X[1000:], y[1000:], changes=changes)
    >>> rates[["change", "severity", "security_parameter"]].values.tolist()[1:4]
    [['none', 0, 0.05], ['shift', 1, 0.01], ['shift', 1, 0.05]]
    """
    pandas = check_pandas_support("flag_rates")
    asking = decisions_of(detectors)
    if asking is None:
        raise ValueError("No detector has a classifier, whose decisions tell which rows count.")
    decide, clip_values = asking
    X, y = np.asarray(X), check_labels(y, len(X), "y")
    changes = dict(SEVERITIES) if changes is None else changes
    steps: list[tuple[str, int, Callable | None]] = [(UNCHANGED, 0, None)]
    for kind, made in changes.items():
        steps += [(kind, severity, change) for severity, change in enumerate(made, start=1)]
    records = []
    for name, severity, change in tqdm(steps, desc="harmless changes", disable=not verbose):
        rows = X if change is None else pass_through(change, X, clip_values)
        still_right = decide(rows) == y
        if not still_right.any():
            raise ValueError(f"The victim gets no row right under {name!r}, {change!r}.")
        for detector_name, detector in detectors.items():
            scores = detector.score_samples(rows[still_right])
            records += [
                {
                    "detector": detector_name,
                    "change": name,
                    "severity": severity,
                    "security_parameter": sp,
                    "still_right": float(still_right.mean()),
                    **share_of(scores < np.log(sp), "flagged"),
                }
                for sp in security_parameters
            ]
    return pandas.DataFrame(records)

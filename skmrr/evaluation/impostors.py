"""How often a wrong class passes without any change of the row."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from skmrr._sklearn import check_pandas_support
from skmrr.base import BaseDetector
from skmrr.evaluation.attacked_rows import asked
from skmrr.evaluation.metrics import share_of

if TYPE_CHECKING:
    import pandas as pd

SECURITY_PARAMETERS = (0.01, 0.05, 0.1, 0.2, 0.5)


def impostor_rate(
    detector: BaseDetector,
    X,
    y,
    *,
    security_parameters: Sequence[float] = SECURITY_PARAMETERS,
    verbose: bool = False,
) -> "pd.DataFrame":
    """Share of clean rows for which a wrong class passes without any change.

    Each row is scored under each class but its own, as if the classifier had decided for it. An
    attacker who makes the classifier name any class, by changes too small for the detector to
    notice, succeeds on each row that one of these classes passes for: the rate is the floor of such
    attackers. It takes no attack to measure, and so serves to choose defenders. One that often
    disagrees with the classifier on clean rows has a high floor, however robust it is.

    Parameters
    ----------
    detector : BaseDetector
        Fitted, calibrated, and with a ``classifier``.
    X : array-like of shape (n_samples, …)
        Clean rows that nothing was fitted on. Those that the classifier takes for what they are
        count, as in `evaluate_adaptive`.
    y : array-like of shape (n_samples,)
        True classes.
    security_parameters : sequence of float, default=(0.01, 0.05, 0.1, 0.2, 0.5)
        Thresholds.
    verbose : bool, default=False
        Whether to show a progress bar.

    Returns
    -------
    pandas.DataFrame
        A row for each SP: ``security_parameter``, ``n_rows`` and ``impostor_rate`` with its 95 %
        interval ``low`` to ``high`` (Clopper and Pearson). A class that the detector has learnt
        nothing of passes nowhere.

    Raises
    ------
    ValueError
        If the detector has no classifier, y does not fit, an SP is no rate, or the classifier takes
        no row for what it is.

    See Also
    --------
    evaluate_adaptive : What attacks do; it has the impostor rate of the attacked rows beside it.
    certified_success_rate : The other end: what no attack exceeds.

    Notes
    -----
    Attackers whose changes the detector does notice may stay below it, as what moves a row across
    the classifier's boundary may raise the alarm. As the radius of the ball goes to 0, no attack
    exceeds it. For a detector that looks at no class, it is the share of rows that are not flagged.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import LatentDefender
    >>> from skmrr.evaluation import impostor_rate
    >>> X, y = load_digits(return_X_y=True)
    >>> net = torch.nn.Linear(64, 10)
    >>> defender = LatentDefender(classifier=net, max_epochs=2, random_state=0)
    >>> rates = impostor_rate(defender.fit(X[:1500], y[:1500]), X[1500:], y[1500:])
    >>> bool(rates["impostor_rate"].is_monotonic_decreasing)
    True
    """
    pandas = check_pandas_support("impostor_rate")
    for sp in security_parameters:
        if not 0 < sp < 1:
            raise ValueError(f"security_parameters: {sp!r} is no rate; give some between 0 and 1.")
    x, labels, answers = asked(detector, X, y)
    right = answers == labels
    if not right.any():
        raise ValueError("The classifier takes no row for what it is; number y as it does.")
    scores = impostor_scores(detector, x[right], labels[right], verbose=verbose).cpu().numpy()
    return pandas.DataFrame(
        [
            {"security_parameter": sp, **share_of(scores >= math.log(sp), "impostor_rate")}
            for sp in security_parameters
        ]
    )


@torch.no_grad()
def impostor_scores(
    detector: BaseDetector, x: Tensor, labels: Tensor, *, verbose: bool = False
) -> Tensor:
    """Highest score of each row under a wrong class, shape (n,).

    Parameters
    ----------
    detector : BaseDetector
        Calibrated.
    x : Tensor of shape (n, …)
        Rows as the networks see them.
    labels : Tensor of shape (n,)
        Their true classes.
    verbose : bool, default=False
        Whether to show a progress bar.
    """
    classes, highest = detector.module_.evidence.classes, []
    with tqdm(total=len(x), desc="impostors", disable=not verbose) as bar:
        for rows, own in zip(
            x.split(detector.batch_size_), labels.split(detector.batch_size_), strict=True
        ):
            scores = detector.module_.under_each(rows)
            scores = scores.masked_fill(own[:, None] == classes, -torch.inf)
            highest.append(scores.amax(1))
            bar.update(len(rows))
    return torch.cat(highest)

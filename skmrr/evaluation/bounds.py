"""What no attack can do to a certified detector."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from skmrr._sklearn import check_pandas_support
from skmrr.base import BaseDetector
from skmrr.evaluation.attacked_rows import asked
from skmrr.nn.detector_module import DetectorModule
from skmrr.nn.intervals import CertifiedStatistic
from skmrr.nn.learnt_classes import OfLearntClasses

if TYPE_CHECKING:
    import pandas as pd


def certified_success_rate(
    detector: BaseDetector,
    X,
    y,
    *,
    eps: Sequence[float],
    security_parameters: Sequence[float] = (0.05, 0.5),
) -> "pd.DataFrame":
    """Bound the success rate of every ℓ∞ attack, without running one.

    Let x' lie within ε of a row x of class y, and let the classifier take it for c ≠ y. On the way
    from x' to x there is a point u within the detector's radius r of x' and within max(ε − r, 0) of
    x. The statistic at x' bounds z_y − z_c at u from above, and so cannot be less than the lower
    bound of that difference over the smaller ball around x. Where even that is flagged, for each
    c, no attack succeeds. The bound holds for every classifier, as the detector's own network
    is all that it looks at; it is computed in floating point, without directed rounding.

    Parameters
    ----------
    detector : BaseDetector
        A fitted `CertifiedDefender` with a classifier.
    X : array-like of shape (n_samples, …)
        Clean test rows. Those that the classifier takes for what they are count.
    y : array-like of shape (n_samples,)
        True classes.
    eps : sequence of float
        Radii ε of the attacker's ball, in the units of X.
    security_parameters : sequence of float, default=(0.05, 0.5)
        Thresholds.

    Returns
    -------
    pandas.DataFrame
        A row for each ε and SP: ``eps``, ``security_parameter``, ``n_rows`` and ``success_rate``,
        the share of rows on which an attack is not ruled out.

    Raises
    ------
    TypeError
        If the detector's statistic is another, or one of several.

    Examples
    --------
    >>> import torch
    >>> from skmrr import CertifiedDefender
    >>> from skmrr.datasets import load_digits_images
    >>> from skmrr.evaluation import certified_success_rate
    >>> X, y = load_digits_images()
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> defender = CertifiedDefender(
    ...     net, classifier=net, exploration_radius=0.1, max_epochs=5, clip_values=(0, 1),
    ...     random_state=0,
    ... ).fit(X[:1500], y[:1500])
    >>> bound = certified_success_rate(defender, X[1500:], y[1500:], eps=[0.05, 0.1])
    >>> bool(bound["success_rate"].between(0, 1).all())
    True
    """
    pandas = check_pandas_support("certified_success_rate")
    x, labels, answers = asked(detector, X, y)
    right = answers == labels
    x, labels = x[right], labels[right]
    records = []
    for radius in eps:
        for sp in security_parameters:
            possible = classes_within_reach(detector, x, labels, radius, sp).any(1)
            record = {"eps": radius, "security_parameter": sp, "n_rows": len(x)}
            records.append({**record, "success_rate": float(possible.double().mean())})
    return pandas.DataFrame(records)


def classes_within_reach(
    detector: BaseDetector, x: Tensor, labels: Tensor, eps: float, security_parameter: float
) -> Tensor:
    """Wrong classes that no bound keeps an attack within `eps` from, bool of shape (n, classes).

    Parameters are those of `certified_success_rate`; `x` are rows as the networks see them.
    """
    return within_reach(detector.module_, x, labels, eps, security_parameter, detector.batch_size_)


@torch.no_grad()
def within_reach(
    module: DetectorModule,
    x: Tensor,
    labels: Tensor,
    eps: float,
    security_parameter: float,
    batch_size: int = 512,
) -> Tensor:
    """As `classes_within_reach`, of the module of a fitted detector."""
    statistic, *others = module.evidence.members
    is_learnt: Tensor | None = None
    if isinstance(statistic, OfLearntClasses):
        is_learnt, statistic = statistic.positions >= 0, statistic.statistic
    if others or not isinstance(statistic, CertifiedStatistic):
        raise TypeError(
            "Only a CertifiedDefender has such a bound; attack other detectors by "
            "evaluate_adaptive."
        )
    inner = max(eps - statistic.radius, 0.0)
    classes = module.evidence.classes
    own = (labels[:, None] == classes).to(torch.int8).argmax(1)
    # s_c(x') ≥ the least z_y − z_c over the inner ball
    parts = zip(x.split(batch_size), own.split(batch_size), strict=True)
    least = torch.cat([statistic.least_leads(*part, inner) for part in parts])
    columns = torch.arange(least.shape[1], device=x.device)
    everywhere = [(least[:, c, None], c.expand(len(least))) for c in columns]
    scores = [module.fusion(module.survival(values, c), c) for values, c in everywhere]
    best = torch.stack(scores, dim=1).scatter(1, own[:, None], -torch.inf)
    if is_learnt is not None:
        best = torch.where(is_learnt, best, -torch.inf)
    return best >= math.log(security_parameter)

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

    Let x' lie within ε of a row x, and let the classifier take it for a wrong class c. With a
    radius r ≥ ε of the detector, the ball that its statistic is bounded over at x' holds the one of
    radius r − ε around x, so that the statistic is at least the interval bound over that one. With
    r < ε there is a point u within r of x' and within ε − r of x. The statistic at x' bounds
    z_j − z_c at u from above for each class j ≠ c, and so cannot be less than the lower bound of
    that difference over the smaller ball around x: by intervals, or, where these leave a doubt, by
    linear bounds. Where even that is flagged, for each c, no attack succeeds. The bound holds for
    every classifier, as the detector's own network is all that it looks at; it is computed in
    floating point, without directed rounding.

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

    References
    ----------
    H. Zhang et al., "Efficient Neural Network Robustness Certification with General Activation
    Functions", NeurIPS 2018.

    K. Xu et al., "Fast and Complete: Enabling Complete Verification with Rapid and Massively
    Parallel Incomplete Verifiers", ICLR 2021.

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
    columns = torch.arange(len(module.evidence.classes), device=x.device)
    own = (labels[:, None] == module.evidence.classes).to(torch.int8).argmax(1)
    allowed = columns != own[:, None]
    if is_learnt is not None:
        allowed = allowed & is_learnt

    def passes(least: Tensor, columns: Tensor) -> Tensor:
        scores = module.fusion(module.survival(least[:, None], columns), columns)
        return scores >= math.log(security_parameter)

    parts = []
    for part, mask in zip(x.split(batch_size), allowed.split(batch_size), strict=True):
        least = statistic.least(part, eps)
        pairs = mask.nonzero()
        pairs = pairs[passes(least[mask], pairs[:, 1])]
        if eps > statistic.radius and len(pairs):
            # lines are followed back only where intervals leave a doubt
            rows, positions = pairs[:, 0].unique(return_inverse=True)
            found = torch.stack([positions, pairs[:, 1]], dim=1)
            pairs = pairs[passes(statistic.least_by_lines(part[rows], eps, found), pairs[:, 1])]
        reached = torch.zeros_like(mask)
        reached[pairs[:, 0], pairs[:, 1]] = True
        parts.append(reached)
    return torch.cat(parts)

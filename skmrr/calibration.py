"""From an anomaly statistic to a log-survival whose threshold is a false-alarm rate."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skmrr.nn.conditioning import LocalScale

EXACT_RANKS = 128  # ranks at the odd end that each get a knot of their own
COARSE_KNOTS = 128  # knots, at geometric ranks, for the rest
MIN_CLASS_ROWS = 2000  # rows that a class needs for a calibration of its own; see below


class ConformalSurvival(nn.Module):
    """Conformal survival function of a statistic, per predicted class.

    With n clean rows the rank p-value of a statistic s is (1 + #{sᵢ ≥ s}) / (n + 1); flagging
    where it is ≤ SP raises a false alarm with probability ≤ SP in finite samples, if the rows to
    come are exchangeable with the calibration rows (Vovk et al. 2005). This module interpolates
    the logarithm of that p-value, never below it within the ranks, so the promise is kept for any
    SP ≥ 1 / (n + 1). Beyond the oddest calibration row an exponential tail keeps the ranking
    strict.

    Interpolation from above makes the false-alarm rate up to one rank, 1 / (n + 1), smaller than
    SP. With 2000 rows, which a class needs for a calibration of its own, that is a twentieth of
    SP = 1 %; with fewer the price of equal rates in all classes would be detections.

    Build one with `ConformalSurvival.fit`.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from skmrr import ConformalSurvival
    >>> clean = np.arange(99.0)
    >>> survival = ConformalSurvival.fit(clean, np.zeros(99, dtype=int), n_classes=1)
    >>> scores = survival(torch.tensor([0.0, 50.0, 98.0, 500.0]), torch.zeros(4, dtype=int))
    >>> scores.exp().numpy().round(4)
    array([1.  , 0.5 , 0.02, 0.  ])
    """

    knots: Tensor
    log_survival: Tensor
    tail_rate: Tensor
    group_of_class: Tensor
    n_rows: Tensor

    def __init__(self, knots, log_survival, tail_rate, group_of_class, n_rows):
        super().__init__()
        self.register_buffer("knots", knots)  # groups m, ascending
        self.register_buffer("log_survival", log_survival)  # groups m, descending from 0
        self.register_buffer("tail_rate", tail_rate)  # groups
        self.register_buffer("group_of_class", group_of_class)  # classes
        self.register_buffer("n_rows", n_rows)  # groups

    @classmethod
    def fit(
        cls,
        statistic: np.ndarray,
        columns: np.ndarray,
        n_classes: int,
        *,
        min_class_rows: int = MIN_CLASS_ROWS,
    ) -> "ConformalSurvival":
        """Fit on clean rows that nothing else was fitted on.

        Parameters
        ----------
        statistic : ndarray of shape (n_rows,)
            High = odd.
        columns : ndarray of shape (n_rows,)
            Index of each row's predicted class.
        n_classes : int
            Number of classes.
        min_class_rows : int, default=2000
            A class with fewer rows shares one calibration with the others like it, or, where
            these are too few together, with all classes.
        """
        counts = np.bincount(columns, minlength=n_classes)
        is_large = counts >= min_class_rows
        groups = [statistic[columns == c] for c in np.flatnonzero(is_large)]
        group_of_class = np.cumsum(is_large) - 1
        if not is_large.all():
            rest = statistic[~is_large[columns]]
            groups.append(rest if len(rest) >= min_class_rows else statistic)
            group_of_class[~is_large] = len(groups) - 1
        curves = [_survival_knots(np.sort(group)) for group in groups]
        width = max(2, *(len(knots) for knots, _ in curves))
        return cls(
            torch.as_tensor(np.stack([_pad_left(knots, width) for knots, _ in curves])),
            torch.as_tensor(np.stack([_pad_left(logs, width) for _, logs in curves])),
            torch.as_tensor(np.array([_tail_rate(np.sort(group)) for group in groups])),
            torch.as_tensor(group_of_class),
            torch.as_tensor(np.array([len(group) for group in groups])),
        )

    def forward(
        self, statistic: Float[Tensor, " batch"], columns: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return log P(a clean row of this class is at least as odd), ≤ 0."""
        return _interpolate(
            self.knots[None],
            self.log_survival[None],
            self.tail_rate[None],
            self.group_of_class[columns],
            statistic[None],
        )[0]


class MemberSurvivals(nn.Module):
    """Conformal survival functions of many statistics of the same rows.

    Each is that of `ConformalSurvival`, if given another value in terms of `LocalScale`. All are
    computed together.

    Build one with `MemberSurvivals.fit`.
    """

    knots: Tensor
    log_survival: Tensor
    tail_rate: Tensor
    group_of_class: Tensor
    n_rows: Tensor

    def __init__(self, survivals: list[ConformalSurvival], scale: LocalScale | None):
        super().__init__()
        width = max(survival.knots.shape[1] for survival in survivals)
        for name in ("knots", "log_survival"):  # members groups m
            parts = [_pad_left(getattr(part, name).numpy(), width) for part in survivals]
            self.register_buffer(name, torch.as_tensor(np.stack(parts)))
        # members groups
        self.register_buffer("tail_rate", torch.stack([part.tail_rate for part in survivals]))
        self.register_buffer("group_of_class", survivals[0].group_of_class)
        self.register_buffer("n_rows", survivals[0].n_rows)
        self.scale = scale

    @classmethod
    def fit(
        cls, values: np.ndarray, columns: np.ndarray, n_classes: int, *, given_first: bool
    ) -> "MemberSurvivals":
        """Fit on clean rows that nothing else was fitted on.

        Parameters
        ----------
        values : ndarray of shape (n_rows, n_members)
            High = odd.
        columns : ndarray of shape (n_rows,)
            Index of each row's predicted class.
        n_classes : int
            Number of classes.
        given_first : bool
            Whether the other members are judged given the first one.
        """
        scale = None
        if given_first and values.shape[1] > 1:
            scale = LocalScale.fit(values[:, 1:], values[:, 0])
            scaled = scale(*(torch.as_tensor(v) for v in (values[:, 1:], values[:, 0]))).numpy()
            values = np.hstack([values[:, :1], scaled])
        return cls([ConformalSurvival.fit(v, columns, n_classes) for v in values.T], scale)

    def forward(
        self, values: Float[Tensor, "batch members"], columns: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch members"]:
        """Return log P(a clean row like this one is at least as odd) of each member, ≤ 0."""
        if self.scale is not None:
            values = torch.cat([values[:, :1], self.scale(values[:, 1:], values[:, 0])], dim=1)
        group = self.group_of_class[columns]
        return _interpolate(self.knots, self.log_survival, self.tail_rate, group, values.T).T


def _interpolate(
    knots: Float[Tensor, "members groups m"],
    log_survival: Float[Tensor, "members groups m"],
    tail_rate: Float[Tensor, "members groups"],
    group: Int[Tensor, " batch"],
    statistic: Float[Tensor, "members batch"],
) -> Float[Tensor, "members batch"]:
    """Log-survival of each row's statistic on the curve of its group."""
    statistic = statistic.to(knots.dtype)
    member = torch.arange(len(knots), device=knots.device)[:, None]
    highest = knots[member, group, -1]
    inside = torch.clamp(statistic, knots[member, group, 0], highest)
    # Searched for in every group: cheaper than a copy of the knots for each row.
    everywhere = inside.detach()[:, None].expand(-1, knots.shape[1], -1).contiguous()
    upper = torch.searchsorted(knots, everywhere, right=True)  # members groups batch
    upper = upper.gather(1, group.expand(len(knots), 1, -1))[:, 0].clamp(1, knots.shape[2] - 1)
    x0, x1 = knots[member, group, upper - 1], knots[member, group, upper]
    y0, y1 = log_survival[member, group, upper - 1], log_survival[member, group, upper]
    gap = torch.where(x1 > x0, x1 - x0, 1.0)  # equal knots carry equal values
    interpolated = y0 + (y1 - y0) * (inside - x0) / gap
    return interpolated - tail_rate[member, group] * torch.relu(statistic - highest)


def _survival_knots(ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots and the log p-value at each.

    A knot carries the p-value that holds just above the knot before it, the largest within the
    interval: the line between two knots then lies nowhere below the rank p-value.
    """
    n = len(ascending)
    exact = np.arange(max(0, n - EXACT_RANKS), n)
    coarse = n - np.geomspace(max(1, min(EXACT_RANKS, n)), n, COARSE_KNOTS).round().astype(int)
    knots = np.unique(ascending[np.concatenate([coarse, exact])])
    above = n - np.searchsorted(ascending, knots[:-1], side="right")
    return knots, np.concatenate([[0.0], np.log((1 + above) / (n + 1))])


def _tail_rate(ascending: np.ndarray) -> float:
    """Rate of an exponential tail, by the mean excess of the oddest rows."""
    n = len(ascending)
    k = min(n - 1, max(10, int(np.sqrt(n))))
    excess = float(np.mean(ascending[n - k :] - ascending[n - k - 1])) if k > 0 else 0.0
    rounding = np.finfo(np.float64).eps * float(np.abs(ascending).max())
    return 1.0 / next(
        (s for s in (excess, float(ascending[-1] - ascending[0])) if s > rounding), 1.0
    )


def _pad_left(values: np.ndarray, width: int) -> np.ndarray:
    """Repeat the first value along the last axis until it is `width` long."""
    missing = width - values.shape[-1]
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(missing, 0)], mode="edge")

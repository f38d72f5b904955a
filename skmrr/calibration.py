"""From an anomaly statistic to a log-survival whose threshold is a false-alarm rate."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from skmrr.nn.derived import WithTables

EXACT_RANKS = 128  # ranks at the odd end that each get a knot of their own
COARSE_KNOTS = 128  # knots, at geometric ranks, for the rest
MIN_CLASS_ROWS = 2000  # rows that a class needs for a calibration of its own; see below


class ConformalSurvival(WithTables):
    """Conformal survival functions of the statistics of members, per predicted class.

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
    >>> clean = np.arange(99.0)[:, None]  # one member
    >>> survival = ConformalSurvival.fit(clean, np.zeros(99, dtype=int), n_classes=1)
    >>> statistic = torch.tensor([[0.0], [50.0], [98.0], [500.0]])
    >>> scores = survival(statistic, torch.zeros(4, dtype=int))
    >>> scores[:, 0].exp().numpy().round(4)
    array([1.  , 0.5 , 0.02, 0.  ])
    """

    knots: Tensor
    log_survival: Tensor
    tail_rate: Tensor
    group_of_class: Tensor
    n_rows: Tensor
    inner_knots: Tensor
    pieces: Tensor
    first_piece: Tensor

    def __init__(self, knots, log_survival, tail_rate, group_of_class, n_rows):
        super().__init__()
        self.register_buffer("knots", knots)  # members groups m, ascending
        self.register_buffer("log_survival", log_survival)  # members groups m, descending from 0
        self.register_buffer("tail_rate", tail_rate)  # members groups
        self.register_buffer("group_of_class", group_of_class)  # classes
        self.register_buffer("n_rows", n_rows)  # groups
        self.derive()

    @classmethod
    def fit(
        cls,
        statistics: np.ndarray,
        columns: np.ndarray,
        n_classes: int,
        *,
        min_class_rows: int = MIN_CLASS_ROWS,
    ) -> "ConformalSurvival":
        """Fit on clean rows that nothing else was fitted on.

        Parameters
        ----------
        statistics : ndarray of shape (n_rows, n_members) or (n_rows, n_versions, n_members)
            High = odd, infinite where nothing is known of a row's class. Of rows in several
            versions the oddest counts, so that the promise holds for each of them; all classes
            then share one calibration, as a row's versions may be taken for several.
        columns : ndarray of shape (n_rows,) or (n_rows, n_versions)
            Index of each row's predicted class.
        n_classes : int
            Number of classes.
        min_class_rows : int, default=2000
            A class with fewer rows shares one calibration with the others like it, or, where
            these are too few together, with all classes.
        """
        if statistics.ndim == 3:
            if statistics.shape[1] > 1:
                min_class_rows = len(statistics) + 1
            statistics, columns = statistics.max(1), columns[:, 0]
        counts = np.bincount(columns, minlength=n_classes)
        is_large = counts >= min_class_rows
        groups = [columns == c for c in np.flatnonzero(is_large)]
        group_of_class = np.cumsum(is_large) - 1
        if not is_large.all():
            is_rest = ~is_large[columns]
            groups.append(is_rest if is_rest.sum() >= min_class_rows else np.ones_like(is_rest))
            group_of_class[~is_large] = len(groups) - 1
        ascending = [[np.sort(member[group]) for group in groups] for member in statistics.T]
        curves = [[_survival_knots(part) for part in member] for member in ascending]
        width = max(2, *(len(knots) for member in curves for knots, _ in member))
        knots, logs = (
            np.array([[_pad_left(curve[k], width) for curve in member] for member in curves])
            for k in (0, 1)
        )
        tail_rates = np.array([[_tail_rate(part) for part in member] for member in ascending])
        n_rows = np.array([group.sum() for group in groups])
        return cls(*map(torch.as_tensor, (knots, logs, tail_rates, group_of_class, n_rows)))

    def forward(
        self, statistics: Float[Tensor, "batch members"], columns: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch members"]:
        """Return log P(a clean row of this class is at least as odd) of each member, ≤ 0."""
        statistic = statistics.T.to(self.knots.dtype).contiguous()  # members batch
        n_members, n_groups, _ = self.knots.shape
        # Searched for in every group: cheaper than a copy of the knots for each row.
        everywhere = statistic.detach()[:, None].expand(-1, n_groups, -1).contiguous()
        piece = torch.searchsorted(self.inner_knots, everywhere, right=True) + self.first_piece
        if n_groups > 1:
            group = self.group_of_class[columns]
            piece = piece.gather(1, group.expand(n_members, 1, -1))
        knot, value, slope = self.pieces[piece[:, 0]].unbind(-1)  # members batch, each
        return torch.addcmul(value, slope, torch.relu(statistic - knot)).T

    def tables(self) -> dict[str, Tensor]:
        """Straight pieces of the curves, and how they are found.

        ``pieces`` holds knot, value and slope of each, the last of which is the tail;
        ``first_piece`` where those of a member and group begin; ``inner_knots`` where one piece
        follows another.
        """
        n_members, n_groups, n_knots = self.knots.shape
        gaps = self.knots.diff()
        gaps = torch.where(gaps > 0, gaps, 1.0)  # equal knots carry equal values
        slopes = torch.cat([self.log_survival.diff() / gaps, -self.tail_rate[..., None]], -1)
        pieces = torch.stack([self.knots, self.log_survival, slopes], -1)
        curves = torch.arange(n_members * n_groups, device=self.knots.device)
        return {
            "inner_knots": self.knots[..., 1:].contiguous(),  # members groups m-1
            "pieces": pieces.flatten(0, 2),  # members·groups·m 3
            "first_piece": n_knots * curves.reshape(n_members, n_groups, 1),
        }


def least_rank(ranks, n_rows):
    """Count the calibration rows that surely lie at or beyond the p-value ranks / (n_rows + 1).

    Interpolation from above loses one of them, or two gaps between knots.
    """
    gap = np.maximum(1.0, n_rows / EXACT_RANKS) ** (1 / (COARSE_KNOTS - 1))
    return np.where(ranks <= EXACT_RANKS, ranks - 1, np.floor(ranks / gap**2) - 2)


def _survival_knots(ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots and the log p-value at each.

    A knot carries the p-value that holds just above the knot before it, the largest within the
    interval: the line between two knots then lies nowhere below the rank p-value. What is
    infinitely odd counts among the rows, but is no knot.
    """
    n = int(np.isfinite(ascending).sum())
    if n == 0:
        return np.zeros(1), np.zeros(1)
    exact = np.arange(max(0, n - EXACT_RANKS), n)
    coarse = n - np.geomspace(max(1, min(EXACT_RANKS, n)), n, COARSE_KNOTS).round().astype(int)
    knots = np.unique(ascending[np.concatenate([coarse, exact])])
    above = len(ascending) - np.searchsorted(ascending, knots[:-1], side="right")
    return knots, np.concatenate([[0.0], np.log((1 + above) / (len(ascending) + 1))])


def _tail_rate(ascending: np.ndarray) -> float:
    """Rate of an exponential tail, by the mean excess of the oddest rows."""
    ascending = ascending[np.isfinite(ascending)]
    if len(ascending) == 0:
        return 1.0
    n = len(ascending)
    k = min(n - 1, max(10, int(np.sqrt(n))))
    excess = float(np.mean(ascending[n - k :] - ascending[n - k - 1])) if k > 0 else 0.0
    rounding = np.finfo(np.float64).eps * float(np.abs(ascending).max())
    return 1.0 / next(
        (s for s in (excess, float(ascending[-1] - ascending[0])) if s > rounding), 1.0
    )


def _pad_left(values: np.ndarray, width: int) -> np.ndarray:
    """Repeat the first value until there are `width`."""
    return np.pad(values, (width - len(values), 0), mode="edge")

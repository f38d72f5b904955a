"""Statistics judged among clean rows for which one of them is about the same."""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor, nn

from skmrr.nn.derived import WithTables

N_KNOTS = 32  # at quantiles of the quantity given
NEIGHBOURS = 0.1  # share of the rows that say what is usual at a knot
MIN_NEIGHBOURS = 50
MIN_DEPENDENCE = 0.1  # rank correlation with what is given, below which that is ignored


class LocalScale(WithTables):
    """Standardises members' statistics by what they usually are where one of them is given.

    Mean and deviation are taken among the rows nearest in rank of the value given, and
    interpolated between. A statistic that hardly depends on that value stays as it is.

    Build one with `LocalScale.fit`.
    """

    knots: Tensor
    mean: Tensor
    deviation: Tensor
    inner_knots: Tensor
    pieces: Tensor

    def __init__(self, given: int, knots: Tensor, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.given = given
        self.register_buffer("knots", knots)  # m, ascending
        self.register_buffer("mean", mean)  # m members
        self.register_buffer("deviation", deviation)  # m members
        self.derive()

    @classmethod
    def fit(cls, values: np.ndarray, given: int) -> "LocalScale":
        """Fit on clean rows.

        Parameters
        ----------
        values : ndarray of shape (n_rows, n_members)
            What is to be standardised; what is not finite counts for nothing.
        given : int
            The member that the others may depend on.
        """
        values = values[np.isfinite(values[:, given])]
        known = values[:, given]
        order = np.argsort(known, kind="stable")
        n = len(known)
        centres = np.unique(np.linspace(0, n - 1, N_KNOTS).round().astype(int))
        knots, first = np.unique(known[order][centres], return_index=True)
        half = min(n, max(MIN_NEIGHBOURS, round(NEIGHBOURS * n))) // 2
        mean = np.zeros((len(knots), values.shape[1]))
        deviation = np.ones_like(mean)
        for k, value in enumerate(values.T):
            is_finite = np.isfinite(value)
            if k == given or not depends(value[is_finite], known[is_finite]):
                continue
            windows = [value[order][max(0, c - half) : c + half + 1] for c in centres[first]]
            windows = [window[np.isfinite(window)] for window in windows]
            windows = [window if len(window) else value[is_finite] for window in windows]
            mean[:, k] = [window.mean() for window in windows]
            # What is constant somewhere has no scale there; a small one of its own will do.
            least = 1e-3 * value[is_finite].std()
            deviation[:, k] = [max(window.std(), least) for window in windows]
        deviation[deviation == 0] = 1.0
        deviation[:, given] = 1.0
        return cls(given, *(torch.as_tensor(part) for part in (knots, mean, deviation)))

    def forward(self, values: Float[Tensor, "batch members"]) -> Float[Tensor, "batch members"]:
        """Return (value − mean) / deviation at what is given; both constant beyond the knots."""
        given = values[:, self.given].contiguous()
        piece = self.pieces[torch.searchsorted(self.inner_knots, given.detach())]
        (knot, gap), (level, slope) = piece[:, :2, None].unbind(1), piece[:, 2:].chunk(2, dim=1)
        beyond = (given[:, None] - knot).relu().minimum(gap)
        mean, deviation = torch.addcmul(level, slope, beyond).chunk(2, dim=1)
        return (values - mean) / deviation

    def tables(self) -> dict[str, Tensor]:
        """Straight pieces of means and deviations, and how they are found.

        ``pieces`` holds knot and width of each, the values at the knot, and their slopes;
        ``inner_knots`` where one piece follows another.
        """
        knots, levels = self.knots[:, None], torch.cat([self.mean, self.deviation], dim=1)
        if len(knots) == 1:  # a single piece without width
            pieces = torch.cat([knots, 0 * knots, levels, 0 * levels], dim=1)
        else:
            gaps = knots.diff(dim=0)
            slopes = levels.diff(dim=0) / gaps
            pieces = torch.cat([knots[:-1], gaps, levels[:-1], slopes], dim=1)
        return {"inner_knots": self.knots[1:-1].contiguous(), "pieces": pieces}


class ConditionalSurvival(nn.Module):
    """Log-survival of each member among clean rows for which one member is about the same.

    Parameters
    ----------
    scale : LocalScale
        Standardises the members' statistics.
    survival : nn.Module
        Of the standardised statistics.
    """

    def __init__(self, scale: LocalScale, survival: nn.Module):
        super().__init__()
        self.scale = scale
        self.survival = survival

    def forward(
        self, values: Float[Tensor, "batch members"], columns: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch members"]:
        """Return log P(a clean row like this one is at least as odd) of each member, ≤ 0."""
        return self.survival(self.scale(values), columns)


def depends(value: np.ndarray, given: np.ndarray) -> bool:
    """Whether the ranks of two quantities go together, with rows enough to say how."""
    if len(value) < MIN_NEIGHBOURS or np.ptp(value) == 0 or np.ptp(given) == 0:
        return False
    return bool(abs(spearmanr(value, given).statistic) >= MIN_DEPENDENCE)

"""A statistic judged among clean rows for which another quantity is about the same."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

N_KNOTS = 32  # at quantiles of the quantity given
NEIGHBOURS = 0.1  # share of the rows that say what is usual at a knot
MIN_NEIGHBOURS = 50


class LocalScale(nn.Module):
    """Standardises a value by the mean and deviation that it has where another one is given.

    Mean and deviation are taken among the rows nearest in rank of the value given, and
    interpolated between.

    Build one with `LocalScale.fit`.
    """

    knots: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, knots: Tensor, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.register_buffer("knots", knots)  # m, ascending
        self.register_buffer("mean", mean)  # m
        self.register_buffer("deviation", deviation)  # m

    @classmethod
    def fit(cls, value: np.ndarray, given: np.ndarray) -> "LocalScale":
        """Fit on clean rows.

        Parameters
        ----------
        value, given : ndarray of shape (n_rows,)
            What is to be standardised, and what it may depend on.
        """
        order = np.argsort(given, kind="stable")
        value, given = value[order], given[order]
        n = len(value)
        half = min(n, max(MIN_NEIGHBOURS, round(NEIGHBOURS * n))) // 2
        centres = np.unique(np.linspace(0, n - 1, N_KNOTS).round().astype(int))
        windows = [value[max(0, c - half) : c + half + 1] for c in centres]
        deviation = np.array([window.std() for window in windows])
        # A constant value has no scale; any one will do.
        deviation[deviation <= np.finfo(float).eps * np.abs(value).max()] = 1.0
        knots, first = np.unique(given[centres], return_index=True)
        mean = np.array([window.mean() for window in windows])
        return cls(*(torch.as_tensor(part) for part in (knots, mean[first], deviation[first])))

    def forward(
        self, value: Float[Tensor, " batch"], given: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return (value − mean) / deviation at what is given; constant beyond the knots."""
        if len(self.knots) == 1:
            return (value - self.mean[0]) / self.deviation[0]
        given = torch.clamp(given, self.knots[0], self.knots[-1])
        upper = torch.searchsorted(self.knots, given.detach()).clamp(1, len(self.knots) - 1)
        x0, x1 = self.knots[upper - 1], self.knots[upper]
        share = (given - x0) / (x1 - x0)
        mean = torch.lerp(self.mean[upper - 1], self.mean[upper], share)
        deviation = torch.lerp(self.deviation[upper - 1], self.deviation[upper], share)
        return (value - mean) / deviation


class ConditionalSurvival(nn.Module):
    """Log-survival of a value among clean rows for which another one is about the same.

    Parameters
    ----------
    survival : nn.Module
        (value, class index) → log-survival, of the value as it is or, with a scale, standardised.
    scale : LocalScale, optional
        Standardises the value. Without it what is given does not matter.
    """

    def __init__(self, survival: nn.Module, scale: LocalScale | None = None):
        super().__init__()
        self.survival = survival
        self.scale = scale

    def forward(
        self,
        value: Float[Tensor, " batch"],
        given: Float[Tensor, " batch"],
        columns: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """Return log P(a clean row like this one is at least as odd), ≤ 0."""
        return self.survival(value if self.scale is None else self.scale(value, given), columns)

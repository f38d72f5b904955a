"""Nearest neighbours among the features of clean rows."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skmrr.nn.statistic import in_parts

ROWS_AT_ONCE = 4096  # of the bank, that a batch is compared with
VALUES_AT_ONCE = 2**24  # of the neighbours of a batch


class Bank(nn.Module):
    """Features of clean rows, to be searched for neighbours.

    Parameters
    ----------
    rows : Tensor of shape (rows, dim), float64
        The features.
    """

    rows: Tensor
    centre: Tensor
    squares: Tensor

    def __init__(self, rows: Float[Tensor, "rows dim"]):
        super().__init__()
        # Around zero the expanded square below loses the fewest digits.
        self.register_buffer("centre", rows.mean(0))  # dim
        self.register_buffer("rows", rows - self.centre)  # rows dim
        self.register_buffer("squares", self.rows.square().sum(1))  # rows

    def search(self, features: Float[Tensor, "batch dim"], k: int) -> Int[Tensor, "batch k"]:
        """Positions of the k nearest rows, the nearest first."""
        with torch.no_grad():  # of positions there is no gradient
            centred = features - self.centre
            best = features.new_empty(features.shape[0], 0)
            positions = torch.empty_like(best, dtype=torch.int64)
            for start in range(0, len(self.rows), ROWS_AT_ONCE):
                part = slice(start, start + ROWS_AT_ONCE)
                distances = self._squared(centred, part)
                here = torch.arange(start, start + distances.shape[1], device=features.device)
                distances = torch.cat([best, distances], dim=1)
                positions = torch.cat([positions, here.expand(features.shape[0], -1)], dim=1)
                nearest = distances.topk(min(k, distances.shape[1]), largest=False)
                best, positions = nearest.values, positions.gather(1, nearest.indices)
            return positions

    def squared_distances(
        self, features: Float[Tensor, "batch dim"], part: slice
    ) -> Float[Tensor, "batch part"]:
        """Squared distances to some of the rows, with the rounding of the search."""
        centred = features - self.centre
        return centred.square().sum(1, keepdim=True) + self._squared(centred, part)

    def _squared(self, centred: Tensor, part: slice) -> Float[Tensor, "batch part"]:
        """Squared distances up to the features' own squares."""
        return self.squares[part] - 2 * centred @ self.rows[part].T

    def distances(
        self, features: Float[Tensor, "batch dim"], positions: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k"]:
        """Distances to the rows at `positions`, without the rounding of the search."""
        n = max(1, VALUES_AT_ONCE // (positions.shape[1] * self.rows.shape[1]))
        centred = features - self.centre
        parts = [
            torch.linalg.vector_norm(part[:, None] - self.rows[index], dim=2)
            for part, index in in_parts(n, centred, positions)
        ]
        return torch.cat(parts)


def check_neighbors(n_neighbors: int, n_rows: int, max_rows: int) -> None:
    """Raise a ValueError if a bank is too small for its neighbours to be told apart from it."""
    if n_neighbors >= min(n_rows, max_rows):
        raise ValueError(
            f"n_neighbors={n_neighbors} neighbours are to be found among {min(n_rows, max_rows)} "
            f"clean rows (n_samples={n_rows} to fit on, max_rows={max_rows}), which must be more; "
            "lower n_neighbors, or give more rows."
        )

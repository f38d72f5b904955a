"""Classes that clean rows were seen of, among all that a classifier may name."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from skmrr.nn.statistic import Statistic
from skmrr.nn.tapped import Pass


class LearntClasses:
    """Classes that have training rows, numbered without a gap.

    Parameters
    ----------
    columns : ndarray of shape (n_rows,)
        Index of each row's class among all classes.
    train : ndarray of int
        Positions of the training rows.
    n_classes : int
        Number of all classes.
    """

    def __init__(self, columns: np.ndarray, train: np.ndarray, n_classes: int):
        self.learnt = np.unique(columns[train])
        self.positions = np.full(n_classes, -1)
        self.positions[self.learnt] = np.arange(len(self.learnt))

    def __len__(self) -> int:
        return len(self.learnt)

    def renumber(self, columns: np.ndarray) -> np.ndarray:
        """Index of each row's class among the learnt ones, -1 where it is none of them."""
        return self.positions[columns]

    def widen(self, statistic: Statistic) -> Statistic:
        """Statistic under all classes, of one that has a column for each learnt class."""
        if len(self.learnt) == len(self.positions):
            return statistic
        return OfLearntClasses(statistic, torch.as_tensor(self.positions))

    def confine(self, statistic: Statistic) -> Statistic:
        """Statistic without a word on classes not learnt, of one that has a column for each."""
        if len(self.learnt) == len(self.positions):
            return statistic
        positions = np.where(self.positions < 0, -1, np.arange(len(self.positions)))
        return OfLearntClasses(statistic, torch.as_tensor(positions))


class OfLearntClasses(Statistic):
    """Statistic under all classes: infinitely odd under one that it has learnt nothing of.

    Parameters
    ----------
    statistic : Statistic
        Of the learnt classes.
    positions : Tensor of shape (classes,)
        Its column for each class, -1 for a class that it knows nothing of.
    """

    positions: Tensor

    def __init__(self, statistic: Statistic, positions: Int[Tensor, " classes"]):
        super().__init__()
        self.statistic = statistic
        self.taps = statistic.taps
        self.reads_logits = statistic.reads_logits
        self.register_buffer("positions", positions)

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return the statistic of each row under each class."""
        known = self.statistic(x, passed)[:, self.positions.clamp_min(0)]
        return torch.where(self.positions < 0, torch.inf, known)

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the statistic of each row under the class at its column."""
        positions = self.positions[columns]
        known = self.statistic.at(x, positions.clamp_min(0), passed)
        return torch.where(positions < 0, torch.inf, known)

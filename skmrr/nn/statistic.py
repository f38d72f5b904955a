"""How odd a row is under a class: what every detector looks at, before calibration."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skmrr.nn.tapped import Pass


class Statistic(nn.Module, ABC):
    """Oddness of a row under each class, high = odd.

    A subclass implements `forward`, and overrides `at` where one class is cheaper than all. The
    classifier is run for it: it says by ``taps`` and ``reads_logits`` what it wants to see.
    """

    taps: tuple[str, ...] = ()
    """Layers of the classifier that it looks at, as `skmrr.nn.Tapped` names them."""
    reads_logits: bool = False
    """Whether it looks at the classifier's logits."""
    no_graph: str = ""
    """Why `skmrr.export` cannot write it, and the cure; empty where it can."""

    @property
    def reads_pass(self) -> bool:
        """Whether the classifier has to run even where its decisions are known."""
        return self.reads_logits or bool(self.taps)

    @abstractmethod
    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return the statistic of each row under each class.

        Parameters
        ----------
        x : Tensor of shape (batch, …)
            Rows, in the dtype of the statistic's own parameters.
        passed : Pass
            What the classifier's pass over them has shown.
        """

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the statistic of each row under the class at its column."""
        return self(x, passed).gather(1, columns[:, None])[:, 0]


class ClassFreeStatistic(Statistic):
    """Statistic in which the classes do not differ: `level` is all there is to compute.

    Parameters
    ----------
    n_classes : int
        Number of classes.
    """

    def __init__(self, n_classes: int):
        super().__init__()
        self.n_classes = n_classes

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return the statistic of each row, which is the same under each class."""
        return self.level(x, passed)[:, None].expand(-1, self.n_classes)

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the statistic of each row."""
        return self.level(x, passed)

    @abstractmethod
    def level(self, x: Tensor, passed: Pass) -> Float[Tensor, " batch"]:
        """Oddness of each row."""


class ColumnStatistic(Statistic):
    """Statistic that is computed for one class at a time: `at` is all there is to compute.

    Parameters
    ----------
    n_classes : int
        Number of classes.
    """

    def __init__(self, n_classes: int):
        super().__init__()
        self.n_classes = n_classes

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return the statistic of each row under each class."""
        columns = torch.arange(self.n_classes, device=x.device)
        return torch.stack([self.at(x, c.expand(x.shape[0]), passed) for c in columns], dim=1)

    @abstractmethod
    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the statistic of each row under the class at its column."""


class MarginStatistic(Statistic):
    """The classifier's own margin: max_{j≠c} z_j − z_c of its logits z.

    Parameters
    ----------
    classes : Tensor of shape (classes,)
        The logit of each class.
    """

    reads_logits = True
    classes: Tensor

    def __init__(self, classes: Tensor):
        super().__init__()
        self.register_buffer("classes", classes)

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return the margin against each class."""
        assert passed.logits is not None
        return against_best_other(passed.logits.double())[:, self.classes]

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the margin of each row against the class at its column."""
        assert passed.logits is not None
        return against_others(passed.logits.double(), self.classes[columns])


def against_best_other(
    scores: Float[Tensor, "batch classes"],
) -> Float[Tensor, "batch classes"]:
    """How far the best of the *other* classes is ahead of each class: max_{j≠c} s_j − s_c."""
    (best, second), (winner, _) = (part.unbind(1) for part in scores.topk(2, dim=1))
    is_winner = torch.arange(scores.shape[1], device=scores.device) == winner[:, None]
    return torch.where(is_winner, second[:, None], best[:, None]) - scores


def against_others(
    scores: Float[Tensor, "batch classes"], columns: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """How far the best of the other classes is ahead of one class each: max_{j≠c} s_j − s_c."""
    own = columns[:, None]
    return (scores.scatter(1, own, -torch.inf).amax(1, keepdim=True) - scores.gather(1, own))[:, 0]


def in_parts(n: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Split tensors alike into parts of `n` rows; while a graph is traced, into a single part.

    A traced graph has one shape for all batches, so that its batch is bounded by its caller.
    """
    if torch.compiler.is_compiling():
        return [tensors]
    return zip(*(tensor.split(n) for tensor in tensors), strict=True)

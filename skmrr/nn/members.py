"""The statistics of a detector side by side: one, or one for each member of an ensemble."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skmrr.nn.layer_features import LayerFeatures
from skmrr.nn.placement import module_dtype
from skmrr.nn.stacking import MarginStack
from skmrr.nn.statistic import Statistic
from skmrr.nn.tapped import NOTHING, Pass, Tapped


class Members(nn.Module):
    """Statistics that are all shown the same rows, and the same pass of the classifier.

    Parameters
    ----------
    statistics : sequence of Statistic
        In the order of the members.
    row_shape : tuple of int, optional
        Shape of a row. With it members of one architecture run as one network, see `MarginStack`.
    """

    def __init__(self, statistics: Sequence[Statistic], row_shape: tuple[int, ...] | None = None):
        super().__init__()
        self.statistics = nn.ModuleList(statistics)
        self.stack = None if row_shape is None else MarginStack.of(statistics, row_shape)

    def __len__(self) -> int:
        return len(self.statistics)

    @property
    def taps(self) -> tuple[str, ...]:
        """Layers of the classifier that any member looks at."""
        return tuple(sorted({tap for member in self for tap in member.taps}))

    @property
    def reads_pass(self) -> bool:
        """Whether the classifier has to run even where its decisions are known."""
        return any(member.reads_pass for member in self)

    def __iter__(self):
        return iter(cast("list[Statistic]", self.statistics))

    def forward(
        self, x: Tensor, columns: Int[Tensor, " batch"] | None, passed: Pass
    ) -> tuple[Float[Tensor, "batch members"], Int[Tensor, " batch"]]:
        """Return each member's statistic of each row under one class, and the class's column.

        Without `columns` that is the nearest class, which the first member finds the row least odd
        under.
        """
        values: dict[int, Tensor] = {}
        if columns is None:
            first = self.statistics[0]
            under_each = first(_in_dtype_of(first, x), passed)
            columns = under_each.argmin(1)
            values[0] = under_each.gather(1, columns[:, None])[:, 0]
        if self.stack is not None:
            together = self.stack.at(x, columns)  # batch stacked
            values |= dict(zip(self.stack.indices, together.unbind(1), strict=True))
        for k, member in enumerate(self):
            if k not in values:
                values[k] = member.at(_in_dtype_of(member, x), columns, passed)
        return torch.stack([values[k].double() for k in range(len(self))], dim=1), columns

    def under_each(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes members"]:
        """Return each member's statistic of each row under each class."""
        values: dict[int, Tensor] = {}
        if self.stack is not None:
            together = self.stack.margins(x)  # batch stacked classes
            values |= dict(zip(self.stack.indices, together.unbind(1), strict=True))
        for k, member in enumerate(self):
            if k not in values:
                values[k] = member(_in_dtype_of(member, x), passed)
        return torch.stack([values[k].double() for k in range(len(self))], dim=2)


def _in_dtype_of(statistic: nn.Module, x: Tensor) -> Tensor:
    return x.to(module_dtype(statistic, x.dtype))


class WithOwnClassifier(Statistic):
    """Statistic of a member that looks at another classifier than the ensemble's.

    Parameters
    ----------
    statistic : Statistic
        The member's.
    classifier : Tapped
        The classifier that it looks at, with its taps.
    """

    def __init__(self, statistic: Statistic, classifier: Tapped):
        super().__init__()
        self.statistic = statistic
        self.classifier = classifier

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return the statistic of each row under each class."""
        return self.statistic(x, self.classifier(x))

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the statistic of each row under the class at its column."""
        return self.statistic.at(x, columns, self.classifier(x))


class Piped(Statistic):
    """Statistic behind the steps that turn rows into what it was fitted on.

    Parameters
    ----------
    statistic : Statistic
        The last step's.
    row_shape : tuple of int
        Shape of a row as the first step sees it.
    steps : sequence of nn.Module
        Steps before it.
    reader : LayerFeatures, optional
        First step of a member that reads layers of the ensemble's own classifier: the features
        are taken from the pass that asks for its decisions.
    """

    def __init__(
        self,
        statistic: Statistic,
        row_shape: tuple[int, ...],
        steps: Sequence[nn.Module],
        reader: LayerFeatures | None = None,
    ):
        super().__init__()
        self.statistic = statistic
        self.row_shape = row_shape
        self.steps = nn.ModuleList(steps)
        self.reader = reader
        self.taps = () if reader is None else reader.taps

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return the statistic of each row under each class."""
        return self.statistic(self.prepare(x, passed), NOTHING)

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the statistic of each row under the class at its column."""
        return self.statistic.at(self.prepare(x, passed), columns, NOTHING)

    def prepare(self, x: Tensor, passed: Pass) -> Tensor:
        """Return the rows as the last step sees them."""
        if self.reader is None:
            x = x.reshape(x.shape[0], *self.row_shape)
        else:
            x = self.reader(passed.outputs)
        for step in self.steps:
            x = step(x)
        return _in_dtype_of(self.statistic, x)


class NetworkStep(nn.Module):
    """A step that reads the layers of a network of its own.

    Parameters
    ----------
    network : Tapped
        The network.
    reader : LayerFeatures
        What is made of its taps.
    """

    def __init__(self, network: Tapped, reader: LayerFeatures):
        super().__init__()
        self.network = network
        self.reader = reader

    def forward(self, x: Tensor) -> Float[Tensor, "batch dim"]:
        """Run the network on `x`, and read the features."""
        return self.reader(self.network(x).outputs)


class ArrayStep(nn.Module):
    """A step that only knows arrays, such as a transformer of scikit-learn.

    Parameters
    ----------
    transform : callable
        ndarray of shape (batch, …) → ndarray of shape (batch, dim).
    """

    def __init__(self, transform: Callable):
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor) -> Float[Tensor, "batch dim"]:
        """Transform the rows; gradients do not pass."""
        return _Transform.apply(x, self.transform)


class _Transform(torch.autograd.Function):
    """An opaque function whose gradient is an error, not silently zero."""

    @staticmethod
    def forward(ctx, x, transform):
        ctx.name = getattr(transform, "__qualname__", repr(transform))
        return torch.as_tensor(transform(x.detach().cpu().numpy()), device=x.device)

    @staticmethod
    def backward(ctx, *gradients):
        raise RuntimeError(
            f"{ctx.name} is no torch code, so nothing can be differentiated through it; use a "
            "member without such a step."
        )

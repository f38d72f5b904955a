"""Search around each training row for the point where a latent map is worst.

Madry et al. (2018) train classifiers in this manner. Here the ascent climbs the *defender's* own
loss on clean rows, and that of the map that its training started from, as each defender of Rouhani
et al. (2019) learns from rows moved along the gradient of the one before it. A replica starts as a
copy of the classifier, so that these points are much like what an attack on the classifier finds;
they too are made of clean rows alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from skmrr.nn.intervals import IntervalMap, ball
from skmrr.nn.replica import LatentMap

LossOf = Callable[[Tensor, Tensor], Tensor]
"""(rows, classes) → mean loss of a latent map."""


class Explorer(ABC):
    """What a latent map learns of the surroundings of its rows, and when.

    ``ramp`` is the share of the training over which what is explored grows to its full size.
    """

    ramp = 0.0

    @abstractmethod
    def loss(
        self,
        loss_of: LossOf,
        latent_map: LatentMap,
        x: Tensor,
        classes: Tensor,
        indices: Tensor,
        progress: float,
    ) -> Tensor:
        """Loss of a batch and its surroundings.

        Parameters
        ----------
        loss_of : callable
            Loss of rows by `latent_map`.
        latent_map : LatentMap
            The map, in either mode; it is left in training mode.
        x, classes : Tensor of shape (batch, …), Tensor of shape (batch,)
            Rows and their classes.
        indices : Tensor of shape (batch,)
            Positions of the rows among all.
        progress : float
            Share of the training that is done.
        """

    def learning_rate(self, progress: float) -> float:
        """Share of the peak: up in the first fifth, then down along a cosine."""
        return one_cycle(progress, warm_up=0.2)


class RowsAlone(Explorer):
    """Explores nothing."""

    def loss(self, loss_of, latent_map, x, classes, indices, progress):
        """Loss of the rows themselves."""
        train_without_dropout(latent_map)
        return loss_of(x, classes)


class BallExplorer(Explorer):
    """Projected gradient ascent within an ℓ∞ ball around each row.

    Each search draws the radius of each row's ball, uniformly up to the largest. Against a fixed
    radius that keeps the map sharper on clean rows and near them, for little at the far end.

    Where the map itself is worst the search goes on from where the row's last one ended. Where its
    former self is worst, which the training started from, half of the searches begin at the row
    and half anywhere in the ball.

    Parameters
    ----------
    radius : float
        Largest radius around rows for the map itself, in the units of the rows; 0 for none.
    steps : int
        Steps of ascent.
    clip_values : tuple of float or None
        Range that the points stay in.
    n_rows : int
        Number of all rows.
    row_shape : tuple of int
        Shape of a row.
    former : LatentMap, optional
        The map's former self, which is not changed.
    transfer_radius : float, default=0.0
        Largest radius for the former self; with both, each serves half of the rows.
    """

    ramp = 0.4

    def __init__(
        self,
        radius: float,
        steps: int,
        clip_values: Sequence | None,
        n_rows: int,
        row_shape: tuple[int, ...],
        *,
        former: LatentMap | None = None,
        transfer_radius: float = 0.0,
    ):
        self.radius = radius
        self.steps = steps
        self.clip_values = clip_values
        self.offsets = torch.zeros(n_rows, *row_shape)  # of each last worst point from its row
        self.is_searched = torch.zeros(n_rows, dtype=torch.bool)
        self.former = former
        self.transfer_radius = transfer_radius

    def loss(self, loss_of, latent_map, x, classes, indices, progress):
        """Loss of the rows, and of the worst points around them."""
        n_own = len(x)
        if self.former is not None:
            n_own = len(x) // 2 if self.radius else 0
        latent_map.eval()
        points = x.clone()
        if n_own:
            own = slice(n_own)
            points[own] = self._own_points(loss_of, x[own], classes[own], indices[own], progress)
        if self.former is not None:
            points[n_own:] = self._former_points(x[n_own:], classes[n_own:])
        train_without_dropout(latent_map)
        return loss_of(torch.cat([x, points]), torch.cat([classes, classes]))

    def _own_points(self, loss_of, x, classes, indices, progress) -> Tensor:
        """Points where the map itself is worst, and note where the search ended."""
        known = self.offsets[indices].to(x) if self.is_searched[indices].all() else None
        points = self.worst_points(x, lambda points: loss_of(points, classes), progress, known)
        self.offsets[indices] = (points - x).to(self.offsets)
        self.is_searched[indices] = True
        return points

    def _former_points(self, x: Tensor, classes: Tensor) -> Tensor:
        """Points where the map's former self is worst."""
        former = self.former
        assert former is not None
        radius = self.transfer_radius * self._draw(x)
        start = radius * (2 * torch.rand_like(x) - 1) * torch.randint(2, (1,)).to(x)
        return self._ascend(
            x + start,
            x,
            radius,
            lambda points: functional.cross_entropy(
                former.features_and_logits(points)[1], classes, reduction="sum"
            ),
        )

    def worst_points(
        self, x: Tensor, loss, progress: float = 1.0, last: Tensor | None = None
    ) -> Tensor:
        """Return points around `x` that (nearly) maximise ``loss(points)``.

        Parameters
        ----------
        x : Tensor of shape (batch, …)
            Rows.
        loss : callable
            Points → scalar.
        progress : float
            Share of the training that is done. The ball grows with it: a map that meets it at
            full size from the start unlearns its classes first.
        last : Tensor of shape (batch, …), optional
            Points minus rows of the last search, to go on from; by default a random start.
        """
        radius = self.radius * min(1.0, progress / self.ramp) * self._draw(x)
        start = radius * (2 * torch.rand_like(x) - 1) if last is None else last
        return self._ascend(x + start, x, radius, loss)

    def _draw(self, x: Tensor) -> Tensor:
        """Share of the largest radius that each row's ball has."""
        return torch.rand(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)

    def _ascend(self, points: Tensor, x: Tensor, radius: Tensor, loss) -> Tensor:
        # Steps that reach across the ball, each shorter the more there are.
        step = radius * (1.25 if self.steps == 1 else 1.5 / self.steps)
        points = self._project(points, x, radius)
        for _ in range(self.steps):
            points.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(points), points)
            points = self._project(points.detach() + step * gradient.sign(), x, radius)
        return points

    def _project(self, points: Tensor, x: Tensor, radius: Tensor) -> Tensor:
        points = torch.minimum(torch.maximum(points, x - radius), x + radius)
        return points if self.clip_values is None else points.clamp(*self.clip_values)


class IntervalExplorer(Explorer):
    """Bounds over an ℓ∞ ball around each row, instead of a search for its worst point.

    Parameters
    ----------
    radius : float
        Radius of the ball, in the units of the rows.
    clip_values : tuple of float or None
        Range that the balls are cut to.
    share : float
        Weight of the bounds' cross-entropy, beside that of the rows themselves, in the end.
    """

    ramp = 0.63  # bounds are looser than points, and need longer

    def __init__(self, radius: float, clip_values: Sequence | None, share: float = 0.5):
        self.radius = radius
        self.clip_values = clip_values
        self.share = share

    def loss(self, loss_of, latent_map, x, classes, indices, progress):
        """Mix the rows' own loss with the cross-entropy of the worst logits in their balls.

        Ball and weight grow with the training's progress: bounds over a full ball tell an untrained
        network nothing (Gowal et al. 2018, section 4).
        """
        assert isinstance(latent_map, IntervalMap)
        train_without_dropout(latent_map)
        own = loss_of(x, classes)
        grown = min(1.0, progress / self.ramp)
        inside = latent_map.bounds(*ball(x, grown * self.radius, self.clip_values))
        worst = functional.cross_entropy(latent_map.highest_leads(inside, classes), classes)
        share = grown * self.share
        return (1 - share) * own + share * worst

    def learning_rate(self, progress):
        """Share of the peak: held while the balls grow, then down along a cosine."""
        if progress < self.ramp:
            return min(1.0, progress / 0.02)
        return _cosine((progress - self.ramp) / (1 - self.ramp))


def one_cycle(progress: float, warm_up: float) -> float:
    """Share of the peak learning rate: up along a line, then down along a cosine."""
    if progress < warm_up:
        return progress / warm_up
    return _cosine((progress - warm_up) / (1 - warm_up))


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def train_without_dropout(module: nn.Module) -> None:
    """Training mode but for dropout, whose noise would hide the worst point from the search."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.eval()

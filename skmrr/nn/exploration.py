"""Search around each training row for the point where a latent map is worst.

Madry et al. (2018) train classifiers in this manner. Here the ascent climbs the *defender's* own
loss on clean rows: no attack on the victim, and no adversarial example, is ever used.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from skmrr.nn.intervals import IntervalMap, ball

RAMP = 0.4  # share of the training over which the ball grows to its full radius
INTERVAL_RAMP = 0.63  # the same of bounds, which are looser and need longer


@dataclass(frozen=True)
class Explorer:
    """Projected gradient ascent within an ℓ∞ ball around each row.

    Each search draws the radius of each row's ball, uniformly up to `radius`. Against a fixed
    radius that keeps the map sharper on clean rows and near them, for little at the far end.

    Parameters
    ----------
    radius : float
        Largest radius, in the units of the rows.
    steps : int
        Steps of ascent.
    clip_values : tuple of float or None
        Range that the points stay in.
    """

    radius: float
    steps: int
    clip_values: tuple | None = None

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
        draw = torch.rand(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        radius = self.radius * min(1.0, progress / RAMP) * draw
        # Steps that reach across the ball, each shorter the more there are.
        step = radius * (1.25 if self.steps == 1 else 1.5 / self.steps)
        start = radius * (2 * torch.rand_like(x) - 1) if last is None else last
        points = self._project(x + start, x, radius)
        for _ in range(self.steps):
            points.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(points), points)
            points = self._project(points.detach() + step * gradient.sign(), x, radius)
        return points

    def _project(self, points: Tensor, x: Tensor, radius: Tensor) -> Tensor:
        points = torch.minimum(torch.maximum(points, x - radius), x + radius)
        return points if self.clip_values is None else points.clamp(*self.clip_values)


@dataclass(frozen=True)
class IntervalExplorer:
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

    radius: float
    clip_values: tuple | None = None
    share: float = 0.5

    def mix(
        self, loss: Tensor, latent_map: IntervalMap, x: Tensor, classes: Tensor, progress: float
    ) -> Tensor:
        """Mix the rows' own loss with the cross-entropy of the worst logits in their balls.

        Ball and weight grow with the training's `progress` in [0, 1]: bounds over a full ball tell
        an untrained network nothing (Gowal et al. 2018, section 4).
        """
        grown = min(1.0, progress / INTERVAL_RAMP)
        inside = latent_map.bounds(*ball(x, grown * self.radius, self.clip_values))
        worst = functional.cross_entropy(latent_map.highest_leads(inside, classes), classes)
        share = grown * self.share
        return (1 - share) * loss + share * worst

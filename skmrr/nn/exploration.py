"""Search around each training row for the point where a latent map is worst.

Madry et al. (2018) train classifiers in this manner. Here the ascent climbs the *defender's* own
loss on clean rows: no attack on the victim, and no adversarial example, is ever used.
"""

import torch
from torch import Tensor

RAMP = 0.4  # share of the training over which the balls grow to their full size


class Explorer:
    """Projected gradient ascent within balls around rows.

    Parameters
    ----------
    radius : float
        Radius of the ℓ∞ ball, in the units of the rows; 0 for none.
    l2_radius : float
        Largest radius of the ℓ2 ball; each row draws its own. 0 for none.
    n_entries : int
        Largest number of entries (pixels) that are driven to the end of `clip_values`, the others
        left alone; 0 for none.
    steps : int
        Steps of ascent.
    clip_values : tuple of float or None
        Range that the points stay in.

    Notes
    -----
    Of several balls the ℓ∞ ball takes three fifths of each batch (or three quarters, beside one
    other), each other ball a fifth (or a quarter).
    """

    def __init__(self, radius, l2_radius, n_entries, steps, clip_values):
        self.sizes = {_Linf: radius, _L2: l2_radius, _Sparse: n_entries}
        self.steps = steps
        self.clip_values = clip_values

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
            Share of the training that is done. The balls grow with it: a map that meets them at
            full size from the start unlearns its classes first.
        last : Tensor of shape (batch, …), optional
            Points minus rows of the last search, to go on from in the ℓ∞ ball.
        """
        growth = min(1.0, (progress + 1e-3) / RAMP)
        parts = [(kind(size, growth, x[s], self), s) for kind, size, s in self._shares(len(x))]
        offsets = [ball.start(x[s], None if last is None else last[s]) for ball, s in parts]
        points = self.clip(x + torch.cat(offsets))
        for _ in range(self.steps):
            points.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(points), points)
            points = points.detach()
            offsets = [ball.ascend(x[s], points[s], gradient[s]) for ball, s in parts]
            points = self.clip(x + torch.cat(offsets))
        return points

    def clip(self, points: Tensor) -> Tensor:
        """Return `points` moved into the declared range."""
        return points if self.clip_values is None else points.clamp(*self.clip_values)

    def _shares(self, n_rows: int):
        """Balls in use, each with its slice of a (shuffled) batch; the ℓ∞ ball comes last."""
        weights = {_Sparse: 1, _L2: 1, _Linf: 3}
        used = {kind: weight for kind, weight in weights.items() if self.sizes[kind]}
        total, start = sum(used.values()), 0
        for i, (kind, weight) in enumerate(used.items()):
            stop = n_rows if i == len(used) - 1 else start + n_rows * weight // total
            yield kind, self.sizes[kind], slice(start, stop)
            start = stop


class _Linf:
    def __init__(self, radius, growth, x, explorer):
        self.radius = radius * growth
        # Steps that reach across the ball, a little more cautious the more there are.
        self.rate = 1.25 if explorer.steps == 1 else 1.5 / explorer.steps

    def start(self, x, last):
        if last is None:
            return self.radius * (2 * torch.rand_like(x) - 1)
        return last.clamp(-self.radius, self.radius)

    def ascend(self, x, points, gradient):
        moved = points - x + self.rate * self.radius * gradient.sign()
        return moved.clamp(-self.radius, self.radius)


class _L2:
    def __init__(self, radius, growth, x, explorer):
        draw = torch.rand(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        self.radius = radius * growth * draw.sqrt()
        self.rate = 2.5 / explorer.steps

    def start(self, x, last):
        return 0.5 * self.radius * _unit(torch.randn_like(x))

    def ascend(self, x, points, gradient):
        moved = points - x + self.rate * self.radius * _unit(gradient)
        return moved * (self.radius / _norm(moved)).clamp_max(1)


class _Sparse:
    def __init__(self, n_entries, growth, x, explorer):
        self.low, self.high = explorer.clip_values
        self.n_entries = max(1, int(n_entries * growth / explorer.steps))

    def start(self, x, last):
        return torch.zeros_like(x)

    def ascend(self, x, points, gradient):
        ends = torch.where(gradient > 0, self.high, self.low).to(points)
        gain = (gradient * (ends - points)).flatten(1)  # to first order
        chosen = gain.topk(min(self.n_entries, gain.shape[1])).indices
        driven = points.flatten(1).scatter(1, chosen, ends.flatten(1).gather(1, chosen))
        return driven.view_as(x) - x


def _norm(rows: Tensor) -> Tensor:
    norms = rows.flatten(1).norm(dim=1).clamp_min(1e-12)
    return norms.view(-1, *[1] * (rows.ndim - 1))


def _unit(rows: Tensor) -> Tensor:
    return rows / _norm(rows)

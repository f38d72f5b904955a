"""Two lines around each layer that is not affine, between which it stays on an interval.

Zhang et al. ("Efficient Neural Network Robustness Certification with General Activation Functions",
NeurIPS 2018) bound networks by them, which is known as CROWN.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.utils import _pair

from skmrr.nn.interval_rules import Interval


class Lines(NamedTuple):
    """Slopes and intercepts: lower · x + lower₀ ≤ f(x) ≤ upper · x + upper₀, entry by entry."""

    lower: Tensor
    lower_at_0: Tensor
    upper: Tensor
    upper_at_0: Tensor


class Relaxed(torch.autograd.Function):
    """A layer's output, whose gradient is that of the line that bounds it from below.

    Let Λ be the weight of the output y in what is bounded. Where Λ > 0 the lower line stands for y,
    else the upper one; by how much this lowers what is bounded is the gradient of ``gap``, of shape
    (batch,). Everything can be differentiated once more.
    """

    @staticmethod
    def forward(ctx, x: Tensor, gap: Tensor, y: Tensor, *lines: Tensor) -> Tensor:
        """Return `y`, the output at `x`."""
        ctx.save_for_backward(x, y, *lines)
        return y.clone()

    @staticmethod
    def backward(ctx, *weights: Tensor):
        """Return the weight of the input, and the sum of a row's gaps."""
        (weight,) = weights
        x, y, *saved = ctx.saved_tensors
        lines = Lines(*saved)
        up, down = weight.clamp_min(0), weight.clamp_max(0)
        back = up * lines.lower + down * lines.upper
        bounded = back * x + up * lines.lower_at_0 + down * lines.upper_at_0
        gap = (bounded - weight * y).flatten(1).sum(1)
        return back, gap, None, *(None for _ in lines)


def relaxed(part: nn.Module, x: Tensor, box: Interval, gap: Tensor, share: Tensor) -> Tensor:
    """Output of a layer of `RELAXATIONS` at a point, with the gradient of its lines.

    Parameters
    ----------
    part : nn.Module
        The layer.
    x : Tensor of shape (batch, …)
        Its input.
    box : Interval
        What the input can be.
    gap : Tensor of shape (batch,)
        As of `Relaxed`.
    share : Tensor of shape (batch, …)
        In [0, 1], for each entry of the input: slope of a ReLU's lower line where both signs are
        possible.
    """
    return RELAXATIONS[type(part)](part, x, box, gap, share)


def undecided(part: nn.Module, box: Interval) -> Tensor:
    """Entries of a layer's input whose bounds matter to its lines."""
    if isinstance(part, nn.ReLU | nn.LeakyReLU):
        return (box.low < 0) & (box.high > 0)
    return box.radius > 0


def smaller_area(box: Interval) -> Tensor:
    """Slope of a ReLU's lower line that leaves the smaller area below its chord."""
    return (box.high > -box.low).to(box.centre)


def _rectified(part, x, box, gap, share):
    leak = getattr(part, "negative_slope", 0.0)
    if leak > 1:
        return _level(part, x, box, gap, share)
    lines = _bend(box.low, box.high, leak, share)
    return Relaxed.apply(x, gap, _value(part, x), *lines)


def _bend(low: Tensor, high: Tensor, leak: float, share: Tensor) -> Lines:
    """Lines around max(x, leak · x)."""
    chord = (high - leak * low) / (high - low).clamp_min(torch.finfo(low.dtype).tiny)
    lower = torch.where(low >= 0, 1.0, torch.where(high <= 0, leak, leak + (1 - leak) * share))
    upper = torch.where(low >= 0, 1.0, torch.where(high <= 0, leak, chord))
    above = torch.where((low < 0) & (high > 0), (1 - upper) * high, 0.0)  # through (high, high)
    return Lines(lower, torch.zeros_like(low), upper, above)


def _sigmoidal(part, x, box, gap, share):
    """Parallel lines through the ends: the slope is the least at one of them."""
    low, high = part(box.low), part(box.high)
    least = torch.minimum(*(SLOPES[type(part)](end) for end in (low, high)))
    lines = Lines(least, low - least * box.low, least, high - least * box.high)
    return Relaxed.apply(x, gap, _value(part, x), *lines)


def _largest(part, x, box, gap, share):
    """Lines in the one entry of each window whose lower bound is the highest.

    With R the upper bound of the others the maximum is x or lies between x and max(x, R), a ReLU
    that bends at R.
    """
    if part.ceil_mode:
        return _level(part, x, box, gap, share)
    lows, highs = _windows(part, box.low), _windows(part, box.high)
    place = lows.argmax(1, keepdim=True)
    y = _value(part, x)
    low, high, picked = (
        entries.gather(1, place).view_as(y) for entries in (lows, highs, _windows(part, x))
    )
    rest = highs.scatter(1, place, -torch.inf).amax(1).view_as(y)
    rest = torch.maximum(rest, low)
    upper = _bend(low - rest, high - rest, 0.0, torch.ones_like(y))
    none = torch.zeros_like(y)
    lines = Lines(none + 1, none, upper.upper, upper.upper_at_0 + (1 - upper.upper) * rest)
    return Relaxed.apply(picked, gap, y, *lines)


def _windows(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    """Entries that compete: (batch channels) entries windows."""
    (down, right), shape = _pair(pool.padding), (pool.kernel_size, pool.dilation)
    padded = functional.pad(x, (right, right, down, down), value=-torch.inf)
    return functional.unfold(padded.flatten(0, 1)[:, None], *shape, stride=pool.stride)


def _level(part, x, box, gap, share):
    """Level lines: what intervals know."""
    low, high = part(box.low), part(box.high)
    none = torch.zeros_like(low)
    # which has a gradient, of zero
    carrier = none + 0 * x.flatten(1).sum(1).view(-1, *[1] * (low.ndim - 1))
    return Relaxed.apply(carrier, gap, _value(part, x), none, low, none, high)


def _value(part: nn.Module, x: Tensor) -> Tensor:
    return part(x.detach().clone())  # a layer may work in place


SLOPES: dict[type, Callable[[Tensor], Tensor]] = {
    nn.Tanh: lambda y: 1 - y.square(),
    nn.Sigmoid: lambda y: y * (1 - y),
}
RELAXATIONS: dict[type, Callable] = {
    nn.ReLU: _rectified,
    nn.LeakyReLU: _rectified,
    nn.Tanh: _sigmoidal,
    nn.Sigmoid: _sigmoidal,
    nn.MaxPool2d: _largest,
}

"""Squeezers: transformations that a clean image hardly minds."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class _StraightThroughRound(torch.autograd.Function):
    """Rounding whose gradient is that of the identity (BPDA, Athalye et al. 2018)."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class BitDepth(nn.Module):
    """Rounds values to the levels that so many bits can tell apart.

    Parameters
    ----------
    bits : int
        Bit depth.
    low, high : float
        Range of the values.
    straight_through : bool
        Whether gradients pass as if nothing were rounded; the exact ones are zero.
    """

    def __init__(self, bits: int, low: float, high: float, straight_through: bool):
        super().__init__()
        self.bits = bits
        self.low = low
        self.high = high
        self.straight_through = straight_through

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded rows."""
        step = (self.high - self.low) / (2**self.bits - 1)
        levels = (x - self.low) / step
        rounded = _StraightThroughRound.apply(levels) if self.straight_through else levels.round()
        return self.low + rounded * step


class MedianFilter(nn.Module):
    """Median over a square window around each pixel, channel by channel.

    Of an even number of values the upper one of the two in the middle counts, the window of an
    even size reaches farther up and left, and the border repeats, as in SciPy's median filter.

    Parameters
    ----------
    size : int
        Side of the window.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the smoothed images."""
        before, after = self.size // 2, (self.size - 1) // 2
        padded = functional.pad(x, (before, after, before, after), mode="replicate")
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1).flatten(4)
        return windows.kthvalue(self.size**2 // 2 + 1, dim=4).values


class NonLocalMeans(nn.Module):
    """Mean over the pixels around each one, weighted by how alike the patches there look.

    Parameters
    ----------
    search, patch : int
        Odd sides of the window of the mean and of the patches.
    strength : float
        h of the weights exp(−d² / h²), d² being the mean squared difference of two patches.
    """

    def __init__(self, search: int, patch: int, strength: float):
        super().__init__()
        self.search = search
        self.patch = patch
        self.strength = strength

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the smoothed images."""
        height, width = x.shape[2:]
        reach, half = self.search // 2, self.patch // 2
        padded = functional.pad(x, (reach,) * 4, mode="replicate")
        total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for down in range(self.search):
            for right in range(self.search):
                other = padded[:, :, down : down + height, right : right + width]
                squares = (x - other).square().mean(1, keepdim=True)
                squares = functional.pad(squares, (half,) * 4, mode="replicate")
                difference = functional.avg_pool2d(squares, self.patch, stride=1)
                weight = (-difference / self.strength**2).exp()  # batch 1 height width
                total, weights = total + weight * other, weights + weight
        return total / weights

"""Changes of an image that an honest user's camera, program or network makes.

A detector is told of them by ``harmless=[…]``, so that they raise no alarm; `skmrr.evaluation`
sends rows through them as through a channel. They are callables, batch → batch, of images of shape
(batch, channels, height, width) on any scale: each strength is a share of the range
``clip_values``, so that ``GaussianNoise(4 / 255)`` is four levels of an 8-bit pixel whether the
pixels are in [0, 1] or in [0, 255]. Gradients pass; what rounds passes them as if it did nothing
(BPDA, Athalye et al. 2018).
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from skmrr.nn.rows import check_values

Images = Float[Tensor, "batch channels height width"]


@dataclass(frozen=True)
class Change(ABC):
    """Base of the changes: a subclass says by `apply` what becomes of images in [0, 1].

    Examples
    --------
    >>> import torch
    >>> from skmrr.harmless import Brightness
    >>> Brightness(1.2)(torch.full((1, 1, 2, 2), 100.0), clip_values=(0, 255)).round()[0, 0, 0]
    tensor([120., 120.])
    """

    @abstractmethod
    def apply(self, x: Images, rng: np.random.Generator) -> Images:
        """Change images in [0, 1], of floats.

        Parameters
        ----------
        x : Tensor of shape (batch, channels, height, width)
            Images.
        rng : numpy.random.Generator
            The only source of randomness. Rows draw from it one after the other, so that what
            becomes of a row does not depend on the size of its batch.
        """

    def __call__(
        self,
        x: Tensor,
        clip_values: Sequence[float] = (0.0, 1.0),
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        """Change images on any scale.

        Parameters
        ----------
        x : Tensor of shape (batch, channels, height, width)
            Images.
        clip_values : tuple of float, default=(0, 1)
            Lowest and highest value of a pixel.
        rng : numpy.random.Generator, optional
            Source of randomness, for changes that have any; by default one of seed 0.

        Returns
        -------
        Tensor
            Of the same shape, within `clip_values`; of floats.

        Raises
        ------
        ValueError
            If the rows are no images.
        """
        if x.ndim != 4:
            raise ValueError(
                f"{self!r} changes images of shape (channels, height, width), but a row has shape "
                f"{tuple(x.shape[1:])}; set input_shape=… for flat rows."
            )
        low, high = clip_values
        x = x if x.is_floating_point() else x.float()
        changed = self.apply((x - low) / (high - low), rng or np.random.default_rng(0))
        return low + (high - low) * changed.clamp(0, 1)


@dataclass(frozen=True)
class JPEG(Change):
    """Save as JPEG and load again, by Pillow.

    Parameters
    ----------
    quality : int, default=75
        From 1 to 95, as Pillow counts it; colours are stored at half the resolution.
    """

    quality: int = 75

    def __post_init__(self):
        """Refuse a quality that Pillow does not know."""
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality={self.quality} must be from 1 to 100.")

    def apply(self, x, rng):
        """Encode and decode each image."""
        pillow = _import_pillow()
        if x.shape[1] not in (1, 3):
            raise ValueError(
                f"JPEG holds images of one or three channels, not {x.shape[1]}; leave it out."
            )
        levels = _to_levels(x.detach()).permute(0, 2, 3, 1).cpu().numpy()  # n h w c
        saved = [self._save(pillow, image) for image in levels]
        decoded = torch.as_tensor(np.stack(saved), device=x.device).reshape(
            len(x), *x.shape[2:], x.shape[1]
        )
        return _straight_through(x, decoded.permute(0, 3, 1, 2).to(x) / 255)

    def _save(self, pillow, image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        pillow.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(
            file, "JPEG", quality=int(self.quality)
        )
        with pillow.open(file) as loaded:
            return np.asarray(loaded)


@dataclass(frozen=True)
class Rounding(Change):
    """Round pixels to a number of bits, as each image file does.

    Parameters
    ----------
    bits : int, default=8
        Bits of a pixel.
    """

    bits: int = 8

    def __post_init__(self):
        """Refuse what is no number of bits."""
        if not 1 <= self.bits <= 16:
            raise ValueError(f"bits={self.bits} must be from 1 to 16.")

    def apply(self, x, rng):
        """Round to the nearest of 2^bits values."""
        steps = 2**self.bits - 1
        return _straight_through(x, (x.detach() * steps).round() / steps)


@dataclass(frozen=True)
class GaussianNoise(Change):
    """Add independent Gaussian noise to each value, as a camera in the dark does.

    Parameters
    ----------
    scale : float, default=2/255
        Standard deviation, as a share of the range of pixels.
    """

    scale: float = 2 / 255

    def __post_init__(self):
        """Refuse a negative scale."""
        _check_at_least(0, scale=self.scale)

    def apply(self, x, rng):
        """Add the noise."""
        noise = rng.standard_normal(tuple(x.shape), dtype=np.float32)
        return x + self.scale * torch.as_tensor(noise, device=x.device).to(x.dtype)


@dataclass(frozen=True)
class GaussianBlur(Change):
    """Blur by a Gaussian, as a lens out of focus does.

    Parameters
    ----------
    sigma : float, default=0.5
        Standard deviation, in pixels.
    """

    sigma: float = 0.5

    def __post_init__(self):
        """Refuse a blur of no width."""
        _check_above(0, sigma=self.sigma)

    def apply(self, x, rng):
        """Convolve rows and columns, borders repeated."""
        reach = max(1, round(4 * self.sigma))
        offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        kernel = torch.exp(-0.5 * (offsets / self.sigma) ** 2)
        kernel = kernel / kernel.sum()
        flat = x.flatten(0, 1)[:, None]  # images 1 h w
        flat = functional.pad(flat, [reach] * 4, mode="replicate")
        flat = functional.conv2d(flat, kernel.view(1, 1, -1, 1))
        return functional.conv2d(flat, kernel.view(1, 1, 1, -1)).view_as(x)


@dataclass(frozen=True)
class Resizing(Change):
    """Resize and resize back, bilinearly, as a thumbnail that is shown at full size.

    Parameters
    ----------
    factor : float, default=0.5
        Height and width in between, as a share of the image's own.
    """

    factor: float = 0.5

    def __post_init__(self):
        """Refuse a size of nothing."""
        _check_above(0, factor=self.factor)

    def apply(self, x, rng):
        """Interpolate there, smoothing first where that is smaller, and back."""
        interpolate = partial(
            functional.interpolate, mode="bilinear", antialias=True, align_corners=False
        )
        size = [max(1, round(self.factor * side)) for side in x.shape[2:]]
        return interpolate(interpolate(x, size=size), size=tuple(x.shape[2:]))


@dataclass(frozen=True)
class Brightness(Change):
    """Multiply pixels, as another exposure does; what is too bright is cut off.

    Parameters
    ----------
    factor : float, default=1.2
        Factor, counted from the darkest value of a pixel.
    """

    factor: float = 1.2

    def __post_init__(self):
        """Refuse a negative factor."""
        _check_at_least(0, factor=self.factor)

    def apply(self, x, rng):
        """Multiply."""
        return self.factor * x


@dataclass(frozen=True)
class Contrast(Change):
    """Stretch pixels about the image's mean; what leaves the range is cut off.

    Parameters
    ----------
    factor : float, default=1.2
        Factor.
    """

    factor: float = 1.2

    def __post_init__(self):
        """Refuse a negative factor."""
        _check_at_least(0, factor=self.factor)

    def apply(self, x, rng):
        """Stretch."""
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + self.factor * (x - mean)


@dataclass(frozen=True)
class Shift(Change):
    """Move the image by whole pixels; its border is repeated.

    Parameters
    ----------
    down, right : int, default=1
        Pixels.
    """

    down: int = 1
    right: int = 1

    def apply(self, x, rng):
        """Pad on one side, cut on the other."""
        down, right = abs(self.down), abs(self.right)
        padded = functional.pad(x, [right, right, down, down], mode="replicate")
        top, left = down - self.down, right - self.right
        return padded[..., top : top + x.shape[2], left : left + x.shape[3]]


def bind(
    change: Callable[[Tensor], Tensor],
    clip_values: Sequence[float] | None,
    seed: int | Sequence[int],
) -> Callable[[Tensor], Tensor]:
    """Return batch → changed batch, which knows the rows' range and checks what comes out.

    Parameters
    ----------
    change : callable
        A `Change`, or any function of a batch. One of these gets the rows in their own units.
    clip_values : tuple of float or None
        Declared range of the rows.
    seed : int or sequence of int
        Of what is random in a `Change`.

    Raises
    ------
    TypeError
        If it cannot be called.
    ValueError
        If a `Change` is to change rows whose range was not declared.
    """
    if not callable(change):
        raise TypeError(f"{change!r} is no change: give callables, batch → batch.")
    if isinstance(change, Change):
        if clip_values is None:
            raise ValueError(
                f"The strength of {change!r} is a share of the range of X: declare it "
                "by clip_values=(lowest, highest)."
            )
        return partial(change, clip_values=clip_values, rng=np.random.default_rng(seed))

    def checked(x: Tensor) -> Tensor:
        changed = change(x)
        if not isinstance(changed, Tensor) or changed.shape != x.shape:
            found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise ValueError(
                f"The change {change!r} made {found} of rows of shape {tuple(x.shape)}; it must "
                "return a tensor of that shape."
            )
        check_values(changed, clip_values)
        return changed

    return checked


def _straight_through(x: Tensor, changed: Tensor) -> Tensor:
    """Give `changed` the gradient of `x`."""
    return changed + (x - x.detach()) if x.requires_grad else changed


def _to_levels(x: Tensor) -> Tensor:
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


def _check_at_least(least: float, **value: float) -> None:
    for name, number in value.items():
        if not number >= least:
            raise ValueError(f"{name}={number} must be at least {least}.")


def _check_above(least: float, **value: float) -> None:
    for name, number in value.items():
        if not number > least:
            raise ValueError(f"{name}={number} must be above {least}.")


def _import_pillow():
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("JPEG is Pillow's work: pip install 'skmrr[data]'.") from error
    return Image


CHANNELS: dict[str, Change | None] = {
    "raw": None,
    "8-bit": Rounding(8),
    "JPEG 95": JPEG(95),
    "JPEG 75": JPEG(75),
    "JPEG 50": JPEG(50),
    "blurred": GaussianBlur(0.5),
    "half size": Resizing(0.5),
}
"""Ways on which an image reaches a classifier; None changes nothing."""

SEVERITIES: dict[str, tuple[Change, Change, Change]] = {
    "noise": (GaussianNoise(1 / 255), GaussianNoise(2 / 255), GaussianNoise(4 / 255)),
    "JPEG": (JPEG(95), JPEG(85), JPEG(75)),
    "rounding": (Rounding(7), Rounding(6), Rounding(5)),
    "blur": (GaussianBlur(0.3), GaussianBlur(0.4), GaussianBlur(0.5)),
    "resizing": (Resizing(0.9), Resizing(0.75), Resizing(0.5)),
    "darker": (Brightness(0.95), Brightness(0.9), Brightness(0.8)),
    "brighter": (Brightness(1.05), Brightness(1.1), Brightness(1.2)),
    "contrast": (Contrast(1.05), Contrast(1.1), Contrast(1.2)),
    "shift": (Shift(0, 1), Shift(1, 0), Shift(1, 1)),
}
"""Harmless changes, each mild, moderate and as strong as is still harmless."""

"""Images as patches, and back."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import fold, pad, unfold

MAX_VALUES = 2**24  # pixels of all patches that are held at once: 64 MB


class Patches(nn.Module):
    """Square patches of all channels of an image, on a regular grid.

    Where the grid does not end at the right and lower border, the last pixels are repeated until
    it does, so that each pixel lies in a patch. A row of one axis is one single patch.

    Parameters
    ----------
    shape : tuple of int
        (channels, height, width) of an image, or (values,) of a row.
    size : int
        Side of a patch, in pixels.
    stride : int
        Step from one patch to the next; `size` for distinct patches, less for overlapping ones.

    Raises
    ------
    ValueError
        If the shape is neither, or a patch exceeds the image.
    """

    counts: Tensor

    def __init__(self, shape: tuple[int, ...], size: int, stride: int):
        super().__init__()
        if len(shape) not in (1, 3):
            raise ValueError(
                f"A row of shape {shape} is neither an image (channels, height, width) nor flat; "
                "give input_shape=(channels, height, width)."
            )
        self.shape = shape
        self.is_flat = len(shape) == 1
        if self.is_flat:
            self.dim, self.n_patches = shape[0], 1
            return
        if not 1 <= stride <= size or size > min(shape[1:]):
            raise ValueError(
                f"Patches of {size}×{size} pixels every {stride} do not cover images of "
                f"{shape[1]}×{shape[2]}; choose 1 ≤ stride ≤ patch_size ≤ {min(shape[1:])}."
            )
        self.size, self.stride = size, stride
        self.dim = shape[0] * size**2
        grid = [math.ceil((side - size) / stride) for side in shape[1:]]
        self.padded = [size + steps * stride for steps in grid]
        self.n_patches = math.prod(steps + 1 for steps in grid)
        ones = torch.ones(1, shape[0], *self.padded)
        self.register_buffer("counts", self._add_up(unfold(ones, size, stride=stride)))

    @property
    def rows_at_once(self) -> int:
        """Rows whose patches fit in bounded memory together."""
        return max(1, MAX_VALUES // (self.n_patches * self.dim))

    def extract(self, x: Tensor) -> Float[Tensor, "batch patches dim"]:
        """Patches of each row of `x`, shape (batch, …)."""
        if self.is_flat:
            return x[:, None, :]
        bottom, right = (
            full - side for full, side in zip(self.padded, self.shape[1:], strict=True)
        )
        x = pad(x, (0, right, 0, bottom), mode="replicate")
        return unfold(x, self.size, stride=self.stride).mT

    def combine(self, patches: Float[Tensor, "batch patches dim"]) -> Tensor:
        """Rows of which these are the patches; where they overlap, their mean."""
        if self.is_flat:
            return patches[:, 0]
        image = self._add_up(patches.mT) / self.counts.to(patches.dtype)
        return image[..., : self.shape[1], : self.shape[2]]

    def _add_up(self, columns: Tensor) -> Tensor:
        return fold(columns, tuple(self.padded), self.size, stride=self.stride)

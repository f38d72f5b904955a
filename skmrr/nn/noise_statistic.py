"""How quiet an image is where clean images are quietest."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from skmrr.nn.densities import ClassMoments
from skmrr.nn.statistic import ClassFreeStatistic
from skmrr.nn.tapped import Pass

VALUES_AT_ONCE = 2**24  # of all the patches of some images
PATCHES_A_SIDE = 64  # of an image, at least, that its directions are found on
STRIDE = 2  # pixels from one position to the next: a quarter of the positions tell as much


class NoiseStatistic(ClassFreeStatistic):
    """Logarithm of a quantile, over positions, of how strongly a filter responds.

    Parameters
    ----------
    filters : Tensor of shape (filters, channels, height, width)
        Directions in the space of patches along which clean ones hardly vary.
    quantile : float
        Share of the positions that respond no more strongly. A small one looks at the quietest
        parts of an image alone.
    floor : float
        Response that counts as none.
    image_shape : tuple of int
        (channels, height, width) of a row.
    n_classes : int
        Number of classes.
    """

    filters: Tensor

    def __init__(self, filters: Tensor, quantile: float, floor: float, image_shape, n_classes: int):
        super().__init__(n_classes)
        self.register_buffer("filters", filters)
        self.quantile = quantile
        self.floor = floor
        self.image_shape = image_shape

    def level(self, x: Tensor, passed: Pass) -> Float[Tensor, " batch"]:
        """Log-response at the quantile, averaged over the filters."""
        images = x.to(self.filters).reshape(x.shape[0], *self.image_shape)
        stride = min(STRIDE, *self.filters.shape[2:])
        response = functional.conv2d(images, self.filters, stride=stride)
        response = response.flatten(2).abs()  # batch filters positions
        rank = 1 + int(self.quantile * (response.shape[2] - 1))
        is_last = rank == response.shape[2]  # of which a maximum is several times as fast
        level = response.amax(2) if is_last else response.kthvalue(rank, dim=2).values
        return (level.double() + self.floor).log().mean(1)


def quiet_directions(
    batches, patch_shape: tuple[int, int], n_filters: int
) -> Float[Tensor, "filters channels height width"]:
    """Principal directions of least variance among the patches of images.

    Of large images a grid of patches, 64 or more to each side, stands for all.

    Parameters
    ----------
    batches : iterable of Tensor of shape (batch, channels, height, width)
        Clean images.
    patch_shape : tuple of int
        (height, width) of a patch.
    n_filters : int
        Number of directions, the quietest first.
    """
    moments: ClassMoments | None = None
    height, width = patch_shape
    for batch in batches:
        stride = max(1, min(batch.shape[2:]) // PATCHES_A_SIDE)
        n = max(1, VALUES_AT_ONCE // (batch[0].numel() * height * width))
        for images in batch.split(n):
            patches = functional.unfold(images, patch_shape, stride=stride)
            patches = patches.transpose(1, 2).flatten(0, 1)
            moments = moments or ClassMoments(1, patches.shape[1])
            moments.update(patches, torch.zeros(len(patches), dtype=torch.int64))
    assert moments is not None
    directions = torch.linalg.eigh(moments.covariances[0]).eigenvectors  # ascending variance
    return directions[:, :n_filters].T.reshape(n_filters, -1, *patch_shape)

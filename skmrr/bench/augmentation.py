"""Training images that change each time they are read."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset


class Augmented(Dataset):
    """Images shifted at random, the gap filled with the border, and perhaps mirrored.

    Torch's global generator draws, which a detector's `fit` seeds.

    Parameters
    ----------
    X : ndarray of shape (n, channels, height, width)
        Images.
    shift : int
        Largest shift in each direction, in pixels.
    mirror : bool, default=False
        Whether half of the images are mirrored.
    """

    def __init__(self, X: np.ndarray, shift: int, *, mirror: bool = False):
        self.X = X
        self.shift = shift
        self.mirror = mirror

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> Tensor:
        """Image at `index`, changed."""
        x = torch.as_tensor(self.X[index])
        if self.mirror and torch.rand(()) < 0.5:
            x = x.flip(2)
        padded = functional.pad(x[None], [self.shift] * 4, mode="replicate")[0]
        top, left = torch.randint(2 * self.shift + 1, (2,)).tolist()
        return padded[:, top : top + x.shape[1], left : left + x.shape[2]]

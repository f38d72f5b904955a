"""Training images that change each time they are read."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

SHIFT = 4  # pixels, as ResNets are trained on CIFAR-10 (He et al. 2016, section 4.2)


class Augmented(Dataset):
    """Images mirrored at random and shifted by up to four pixels, the gap filled with the border.

    Torch's global generator draws, which a detector's `fit` seeds.

    Parameters
    ----------
    X : ndarray of shape (n, channels, height, width)
        Images.
    """

    def __init__(self, X: np.ndarray):
        self.X = X

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> Tensor:
        """Image at `index`, changed."""
        x = torch.as_tensor(self.X[index])
        if torch.rand(()) < 0.5:
            x = x.flip(2)
        padded = functional.pad(x[None], [SHIFT] * 4, mode="replicate")[0]
        top, left = torch.randint(2 * SHIFT + 1, (2,)).tolist()
        return padded[:, top : top + x.shape[1], left : left + x.shape[2]]

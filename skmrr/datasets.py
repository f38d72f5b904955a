"""Images that come with the package's own dependencies."""

import numpy as np
from sklearn.datasets import load_digits


def load_digits_images() -> tuple[np.ndarray, np.ndarray]:
    """Load the handwritten digits bundled with scikit-learn; needs no file and no network.

    Returns
    -------
    images : ndarray of shape (1797, 1, 8, 8), float32
        Ink in [0, 1]: the bundled 0..16 divided by 16.
    labels : ndarray of shape (1797,), int64
        Digits 0..9.

    Examples
    --------
    >>> from skmrr.datasets import load_digits_images
    >>> images, labels = load_digits_images()
    >>> images.shape, images.dtype, float(images.max())
    ((1797, 1, 8, 8), dtype('float32'), 1.0)
    """
    digits = load_digits()
    images = digits.images[:, None].astype(np.float32) / np.float32(16)
    return images, digits.target.astype(np.int64)

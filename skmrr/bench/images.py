"""Image data sets as ``(images, labels)``, found on disk, else downloaded, else explained.

Images are float32 in [0, 1] with axes (sample, channel, height, width); labels are int64.
A file is looked up in the folder ``$SKMRR_DATA``, then in `skmrr.bench.data_files.data_home`. MNIST
and CIFAR-10 are downloaded there when pooch is installed; otherwise the error says where to put the
file.
"""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skmrr._sklearn import Interval, StrOptions, validate_params
from skmrr.bench.data_files import advice, data_home, download, find, find_all, read, read_split
from skmrr.bench.image_formats import Batch, Bytes, centre_crop, decode, parse_cifar10, to_batch

MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_HASH = "sha256:731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_HASH = "md5:c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_TRAIN_SIZE = 50_000

_SPLIT = StrOptions({"train", "test"})
_SIZE = Interval(Integral, 1, None, closed="left")


@validate_params(
    {"split": [_SPLIT], "n_samples": [_SIZE, None]}, prefer_skip_nested_validation=True
)
def load_mnist(split: str = "train", *, n_samples: int | None = None) -> Batch:
    """Load MNIST from ``mnist.npz`` (Keras layout), downloading it when it is missing.

    Parameters
    ----------
    split : {"train", "test"}, default="train"
        The official 60,000 training or 10,000 test images.
    n_samples : int, default=None
        Keep the first ``n_samples`` in the official order; None keeps all.

    Returns
    -------
    images : ndarray of shape (n_samples, 1, 28, 28), float32
        Ink in [0, 1]: bytes divided by 255.
    labels : ndarray of shape (n_samples,), int64
        Digits 0..9.

    Raises
    ------
    FileNotFoundError
        If the file is in no folder and cannot be downloaded; the message says what to do.
    ValueError
        If the file is damaged, a download fails its checksum, or ``n_samples`` are not there.
    """
    path = find("mnist.npz") or download(MNIST_URL, MNIST_HASH, data_home(), "mnist.npz")
    return to_batch(*_first(*read_split(path, split, (28, 28)), n_samples, path))


@validate_params(
    {"split": [_SPLIT], "n_samples": [_SIZE, None]}, prefer_skip_nested_validation=True
)
def load_cifar10(split: str = "train", *, n_samples: int | None = None) -> Batch:
    """Load CIFAR-10 from ``cifar10.npz``, downloading and converting it when it is missing.

    Parameters
    ----------
    split : {"train", "test"}, default="train"
        The official 50,000 training or 10,000 test images.
    n_samples : int, default=None
        Keep the first ``n_samples`` in the official order; None keeps all there are.

    Returns
    -------
    images : ndarray of shape (n_samples, 3, 32, 32), float32
        RGB in [0, 1]: bytes divided by 255, not standardised.
    labels : ndarray of shape (n_samples,), int64
        0 airplane, 1 automobile, 2 bird, 3 cat, 4 deer, 5 dog, 6 frog, 7 horse, 8 ship, 9 truck.

    Raises
    ------
    FileNotFoundError
        If the file is in no folder and cannot be downloaded; the message says what to do.
    ValueError
        If the file is damaged, a download fails its checksum, or ``n_samples`` are not there.

    Notes
    -----
    A ``cifar10.npz`` may hold only the first training images. The first folder whose file holds
    as many as asked is read. With ``n_samples=None`` that may be fewer than all there are: check
    ``len(labels)``.
    """
    if split == "test":
        path = find("cifar10.npz") or _download_cifar10()
        return to_batch(*_first(*read_split(path, split, (32, 32, 3)), n_samples, path))
    return to_batch(*_cifar10_train(n_samples))


@validate_params(
    {
        "subset": [StrOptions({"train", "val", "all"})],
        "size": [_SIZE],
        "target": [StrOptions({"imagenette", "ilsvrc"})],
        "n_samples": [_SIZE, None],
    },
    prefer_skip_nested_validation=True,
)
def load_imagenette(
    subset: str = "train",
    *,
    size: int = 224,
    target: str = "imagenette",
    n_samples: int | None = None,
) -> Batch:
    """Load ten classes of ImageNet from ``imagenette224.npz``; there is no download.

    Parameters
    ----------
    subset : {"train", "val", "all"}, default="train"
        "train" is from the ILSVRC training set, "val" from its validation set: only the latter
        is new to a network trained on ImageNet.
    size : int, default=224
        Side of the centre crop; the short side is resized to it first when it differs.
    target : {"imagenette", "ilsvrc"}, default="imagenette"
        Number the classes 0..9, or 0..999 as networks trained on ImageNet do.
    n_samples : int, default=None
        Decode only that many (an image of side 224 takes 0.6 MB); None decodes all.
        The classes take turns, so every beginning of the data is balanced.

    Returns
    -------
    images : ndarray of shape (n_samples, 3, size, size), float32
        RGB in [0, 1]: bytes divided by 255, not standardised; greyscale is repeated.
    labels : ndarray of shape (n_samples,), int64
        Class numbers in the sense of ``target``.

    Raises
    ------
    FileNotFoundError
        If the file is in no folder; the message says what to do.
    ValueError
        If the file is damaged or ``n_samples`` are not there.
    ImportError
        If Pillow is missing.
    """
    path = find("imagenette224.npz")
    if path is None:
        raise FileNotFoundError(advice("imagenette224.npz"))
    jpeg, offset, label, ilsvrc, is_val = read(
        path, "jpeg", "offset", "label", "ilsvrc", "is_ilsvrc_val"
    )
    wanted = np.ones_like(is_val) if subset == "all" else is_val == (subset == "val")
    rows = _take_turns(np.flatnonzero(wanted), label)
    labels = (label if target == "imagenette" else ilsvrc)[rows]
    rows, labels = _first(rows, labels, n_samples, path)
    images = np.empty((len(rows), size, size, 3), np.uint8)
    for image, row in zip(images, rows, strict=True):
        image[:] = centre_crop(decode(jpeg[offset[row] : offset[row + 1]]), size)
    return to_batch(images, labels)


def load_nips2017(*, size: int = 224) -> Batch:
    """Load a photograph of each class of ImageNet from ``nips2017.npz``; there is no download.

    They are the development set of the NIPS 2017 adversarial competition, new to networks that
    were trained on ILSVRC.

    Parameters
    ----------
    size : int, default=224
        Side of the centre crop; the short side is resized to it first when it differs.

    Returns
    -------
    images : ndarray of shape (1000, 3, size, size), float32
        RGB in [0, 1]: bytes divided by 255, not standardised.
    labels : ndarray of shape (1000,), int64
        ILSVRC's class numbers, 0..999.

    Raises
    ------
    FileNotFoundError
        If the file is in no folder; the message says what to do.
    ImportError
        If Pillow is missing.
    """
    path = find("nips2017.npz")
    if path is None:
        raise FileNotFoundError(advice("nips2017.npz"))
    jpeg, offset, labels = read(path, "jpeg", "offset", "ilsvrc")
    images = np.empty((len(labels), size, size, 3), np.uint8)
    for row, image in enumerate(images):
        image[:] = centre_crop(decode(jpeg[offset[row] : offset[row + 1]]), size)
    return to_batch(images, labels)


def _first(
    images: NDArray[Any], labels: NDArray[Any], n_samples: int | None, path: Path
) -> tuple[NDArray[Any], NDArray[Any]]:
    if n_samples is not None and n_samples > len(labels):
        raise ValueError(
            f"n_samples={n_samples}, but {path} gives only {len(labels)} images; "
            "ask for fewer, or for all with n_samples=None."
        )
    return images[:n_samples], labels[:n_samples]


def _cifar10_train(n_samples: int | None) -> tuple[Bytes, NDArray[Any]]:
    """Read the training images from the first file that has enough, else from the first."""
    wanted = CIFAR10_TRAIN_SIZE if n_samples is None else n_samples
    paths = find_all("cifar10.npz") or [_download_cifar10()]
    path = next((p for p in paths if len(read(p, "y_train")[0]) >= wanted), paths[0])
    images, labels = read_split(path, "train", (32, 32, 3))
    return _first(images, labels, n_samples, path)


def _download_cifar10() -> Path:
    """Download the official binaries and keep them as one npz file in the cache."""
    home = data_home()
    home.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=home) as folder:
        archive = download(CIFAR10_URL, CIFAR10_HASH, Path(folder), "cifar10.npz")
        partial = Path(folder) / "cifar10.npz"
        np.savez(partial, **parse_cifar10(archive))
        partial.replace(home / partial.name)  # whole or not at all, should the process die
    return home / partial.name


def _take_turns(rows: NDArray[np.intp], label: NDArray[Any]) -> NDArray[np.intp]:
    """Reorder rows so that the classes alternate, each in its own order."""
    turn = np.empty_like(rows)
    for value in np.unique(label[rows]):
        of_class = label[rows] == value
        turn[of_class] = np.arange(of_class.sum())
    return rows[np.lexsort((label[rows], turn))]

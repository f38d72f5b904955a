"""Formats of image data: compressed images, the CIFAR-10 binaries."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skmrr.bench.data_files import Bytes

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


def to_batch(images: Bytes, labels: NDArray[Any]) -> Batch:
    """Turn bytes with channels last (or none) into float32 in [0, 1] with channels first."""
    if images.ndim == 3:
        images = images[..., None]
    batch = np.moveaxis(images, -1, 1).astype(np.float32, order="C")
    batch /= 255  # in place: the full training sets take most of a gigabyte
    return batch, labels.astype(np.int64)


def decode(encoded: Bytes) -> Any:
    """Decode one compressed image into an RGB Pillow image."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('Decoding images needs Pillow: pip install "skmrr[data]".') from error
    return Image.open(io.BytesIO(encoded.tobytes())).convert("RGB")


def centre_crop(image: Any, size: int) -> Bytes:
    """Resize the short side to ``size`` if it differs, and cut out the central square."""
    scale = size / min(image.size)
    if scale != 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def parse_cifar10(archive: Path) -> dict[str, Any]:
    """Parse records of one label byte and 3 × 32 × 32 image bytes; no pickle is involved."""
    with tarfile.open(archive, "r:gz") as tar:

        def records(name: str) -> Bytes:
            stream = tar.extractfile(f"cifar-10-batches-bin/{name}.bin")
            if stream is None:
                raise ValueError(f"{archive}: {name}.bin is not a regular file.")
            return np.frombuffer(stream.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)

        train = np.concatenate([records(f"data_batch_{i}") for i in range(1, 6)])
        splits = {"train": train, "test": records("test_batch")}
    arrays = {}
    for split, rows in splits.items():
        arrays[f"x_{split}"] = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays[f"y_{split}"] = rows[:, 0]
    return arrays

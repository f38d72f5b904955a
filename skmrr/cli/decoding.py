"""One row: an image file decoded, or a part of an array."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skmrr.cli.settings import COLOURS, Settings
from skmrr.nn.rows import check_values

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
DEEP_MODES = ("I", "F")  # as Pillow's names of 16 and 32 bits begin


@dataclass(frozen=True)
class ImageReader:
    """File → pixels of shape (channels, height, width), within the range of the rows."""

    size: tuple[int, int]
    """Height and width."""
    colours: str
    resize: str
    clip_values: Sequence[float]

    @classmethod
    def of(cls, settings: Settings) -> "ImageReader":
        """Reader as the settings have it."""
        if settings.size is None:
            raise ValueError(
                "The settings lack the size of images: give size = [height, width] in [images], "
                "or --size to skmrr init."
            )
        height, width = settings.size
        return cls((height, width), settings.colours, settings.resize, settings.bounds)

    def __call__(self, path: Path) -> Tensor:
        """Decode a file."""
        Image, ImageOps = import_pillow()
        with warnings.catch_warnings():
            # A small file may claim to hold an image that fills the memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if opened.mode.startswith(DEEP_MODES):
                    raise ValueError("it has more than 8 bits a pixel; save it with 8.")
                image = opened.convert(COLOURS[self.colours])
        height, width = self.size
        if image.size != (width, height):
            if self.resize == "crop":
                image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
            else:
                image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, dtype=np.float32) / 255
        pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        low, high = self.clip_values
        return torch.as_tensor(np.ascontiguousarray(low + (high - low) * pixels, np.float32))


@dataclass(frozen=True)
class ArrayReader:
    """Position → row of an array, refused outside its range."""

    rows: np.ndarray
    clip_values: Sequence[float]

    def __call__(self, position: int) -> Tensor:
        """Copy a row."""
        copied = np.array(self.rows[position])
        row = torch.as_tensor(copied if copied.dtype.kind == "f" else copied.astype(np.float32))
        check_values(row, self.clip_values)
        return row

    def __reduce__(self):
        """Travel to other processes by the name of the file, where there is one."""
        if isinstance(self.rows, np.memmap) and self.rows.filename is not None:
            return _read_array, (Path(self.rows.filename), self.clip_values)
        return type(self), (self.rows, self.clip_values)


def _read_array(path: Path, clip_values: Sequence[float]) -> ArrayReader:
    return ArrayReader(np.load(path, mmap_mode="r", allow_pickle=False), clip_values)


def import_pillow() -> tuple[Any, Any]:
    """Pillow's modules of images and of operations on them."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("Images are Pillow's work: pip install 'skmrr[cli]'.") from error
    return Image, ImageOps

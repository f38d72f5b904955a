"""What ``skmrr init`` finds out by itself, and whether the classifier works as the settings say."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from skmrr.cli.classifiers import count_logits, decisions, load_classifier
from skmrr.cli.data import Data, class_numbers, open_data
from skmrr.cli.decoding import SUFFIXES, import_pillow
from skmrr.cli.outcomes import say
from skmrr.cli.settings import Settings
from skmrr.cli.sound import sound_rows

TRIED_ROWS = 64


def started(settings: Settings, path: Path | None) -> Settings:
    """Complete settings by the data, if any are given, and try the classifier.

    Parameters
    ----------
    settings : Settings
        As far as they are known.
    path : Path or None
        Rows as the classifier was trained on.
    """
    if path is None:
        load_classifier(settings)
        return settings
    if settings.size is None and not path.is_file():
        settings = dataclasses.replace(settings, size=_size_in(path))
    data = open_data(path, settings)
    if data.marks is not None and data.marks.dtype.kind not in "iu":
        settings = dataclasses.replace(settings, classes=sorted(set(data.marks)))
    _try(settings, data)
    return settings


def _size_in(folder: Path) -> list[int] | None:
    """Height and width of the first image in a folder."""
    Image, _ = import_pillow()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            with Image.open(path) as image:
                return [image.height, image.width]
    return None


def _count_logits(classifier: nn.Module, x: Tensor) -> int:
    """Count the logits; if the classifier wants grey images, say so."""
    try:
        return count_logits(classifier, x)
    except ValueError as error:
        if x.ndim == 4 and x.shape[1] == 3 and _takes(classifier, x[:, :1]):
            raise ValueError(
                "The classifier takes images of one channel, and was given three: add --grey."
            ) from error
        raise


def _takes(classifier: nn.Module, x: Tensor) -> bool:
    """Whether a classifier takes such rows."""
    try:
        count_logits(classifier, x)
    except ValueError:
        return False
    return True


def _try(settings: Settings, data: Data) -> None:
    """Ask the classifier about some rows, and tell how many it gets right."""
    classifier = load_classifier(settings)
    some = np.random.default_rng(0).permutation(len(data))[:TRIED_ROWS]
    rows = sound_rows(data.at(sorted(some.tolist())), workers=0, skip=True)
    x = torch.as_tensor(rows.array())
    mean = settings.mean
    if mean is not None and len(mean) not in (1, x.shape[1]):
        raise ValueError(
            f"mean and std have {len(mean)} numbers, but rows of shape {tuple(x.shape[1:])} have "
            f"{x.shape[1]} channels: give one number for each, or one for all."
        )
    n_logits = _count_logits(classifier, x)
    y = class_numbers(rows.data, settings.classes, n_logits)
    text = f"the classifier takes rows of shape {tuple(x.shape[1:])} and has {n_logits} logits"
    if y is not None:
        right = np.mean(decisions(classifier, x) == y)
        text += f"; of {len(x)} rows it gets {right:.0%} right"
    say(text)

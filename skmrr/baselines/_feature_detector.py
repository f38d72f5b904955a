"""What detectors that look into a classifier, or at its outputs, share."""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skmrr._sklearn import StrOptions
from skmrr.base import StatisticDetector
from skmrr.nn.layer_features import LayerFeatures
from skmrr.nn.rows import Rows
from skmrr.nn.tapped import NOTHING, Pass, head_input


def favouring(
    level: Float[Tensor, " batch"], column: Int[Tensor, " batch"], n_classes: int
) -> Float[Tensor, "batch classes"]:
    """Give each class the same level, but for a step or two of rounding less at `column`.

    Whoever has to guess the class then guesses the one at `column`.
    """
    kind = torch.finfo(level.dtype)
    step = kind.eps * level.detach().abs().clamp_min(kind.tiny)  # ONNX has no nextafter
    others = torch.arange(n_classes, device=level.device) != column[:, None]
    return level[:, None] + step[:, None] * others


class Features(nn.Module):
    """Rows, or a pass of the classifier, → features of each layer in float64.

    Parameters
    ----------
    reader : LayerFeatures, optional
        Of the classifier's tapped layers. Without it the rows themselves are the features.
    """

    def __init__(self, reader: LayerFeatures | None):
        super().__init__()
        self.reader = reader

    @property
    def taps(self) -> tuple[str, ...]:
        """The layers."""
        return () if self.reader is None else self.reader.taps

    def forward(self, x: Tensor, passed: Pass) -> list[Float[Tensor, "batch dim"]]:
        """Return the features, differentiable, one tensor for each layer."""
        if self.reader is None:
            return [x.flatten(1).double()]
        return [part.double() for part in self.reader.by_layer(passed.outputs)]


class LayerMean(nn.Module):
    """Mean over layers, each in standard deviations of clean rows; a single layer as it is.

    Parameters
    ----------
    clean : Tensor of shape (rows, layers)
        Statistic of clean rows in each layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clean: Float[Tensor, "rows layers"]):
        super().__init__()
        mean, std = clean.mean(0), clean.std(0, correction=0)
        if clean.shape[1] == 1:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 0, std, 1.0))

    def forward(self, values: Float[Tensor, "... layers"]) -> Float[Tensor, "..."]:
        """Return the mean of the standardised statistics."""
        return ((values - self.mean) / self.std).mean(-1)


@dataclass(eq=False, repr=False)
class FeatureDetector(StatisticDetector):
    """Base of detectors in the features of a classifier's layers.

    Parameters
    ----------
    layer : str or list of str, optional
        The layer(s): ``"name"`` for the output of one, ``"name:input"`` for its input. By default
        the input of the linear layer whose output is the logits. Without a classifier the rows
        are the features.
    pooling : {"flatten", "mean"}, default="mean"
        Whether to keep every activation, or to average over positions.
    """

    _: KW_ONLY
    layer: str | Sequence[str] | None = None
    pooling: str = "mean"

    _parameter_constraints: ClassVar[dict] = {
        **StatisticDetector._parameter_constraints,
        "layer": [str, list, None],
        "pooling": [StrOptions({"flatten", "mean"})],
    }

    def _features(self, rows: Rows) -> Features:
        """Make what turns rows and a pass of the classifier into features."""
        if self.classifier is None:
            if self.layer is not None:
                raise ValueError(
                    f"layer={self.layer!r} names a layer of the classifier: give classifier=…, or "
                    "leave layer=None to take the rows of X for features."
                )
            return Features(None)
        names = [self.layer] if isinstance(self.layer, str) else self.layer
        if names is None:
            names = [head_input(self.classifier, rows.take([0, 0]))]
        if len(names) == 0:
            raise ValueError("layer=[] names no layer; name at least one.")
        return Features(LayerFeatures(tuple(names), self.pooling))

    @torch.no_grad()
    def _feature_batches(
        self, features: Features, rows: Rows, indices: np.ndarray
    ) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield (positions, features of each layer) of the rows at `indices`."""
        classifier = self._tapped(features.taps)
        for positions, batch in rows.batches(self.batch_size_, indices):
            x = batch.to(self._device())
            passed = NOTHING if classifier is None else classifier(x)
            yield positions, [part.cpu() for part in features(x, passed)]

    def _read_features(self, features: Features, rows: Rows, indices) -> list[Tensor]:
        """Features of the rows at `indices`, shape (rows, dim) for each layer."""
        parts = [layers for _, layers in self._feature_batches(features, rows, indices)]
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def sample_rows(indices: np.ndarray, max_rows: int, random_state) -> np.ndarray:
    """At most `max_rows` of the indices, in their order."""
    if len(indices) <= max_rows:
        return indices
    return np.sort(random_state.choice(indices, max_rows, replace=False))

"""What detectors that look into a classifier, or at its outputs, share."""

from collections.abc import Generator
from contextlib import closing

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.utils._param_validation import StrOptions
from torch import Tensor, nn

from skmrr.base import BaseDetector
from skmrr.nn.hooks import (
    as_input,
    evaluating,
    find_layer,
    last_linear,
    module_device,
    resolve_device,
)
from skmrr.nn.layers import LayerFeatures
from skmrr.nn.replica import run_changing
from skmrr.nn.rows import Rows

PENULTIMATE = "input of the last linear layer"


def favouring(
    level: Float[Tensor, " batch"], column: Int[Tensor, " batch"], n_classes: int
) -> Float[Tensor, "batch classes"]:
    """Give each class the same level, but for one step of rounding less at `column`.

    Whoever has to guess the class then guesses the one at `column`.
    """
    step = torch.nextafter(level.detach(), torch.full_like(level, torch.inf)) - level.detach()
    others = torch.arange(n_classes, device=level.device) != column[:, None]
    return level[:, None] + step[:, None] * others


class Penultimate(LayerFeatures):
    """Rows → input of a classifier's last linear layer.

    Parameters
    ----------
    model : nn.Module
        The classifier.
    pooling : {"flatten", "mean"}
        Whether to keep every activation or to average over positions.
    """

    def __init__(self, model: nn.Module, pooling: str):
        last_linear(model)
        super().__init__(model, [PENULTIMATE], pooling)

    def ask(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the classifier on `x` for its logits, and for the input of its last linear layer."""
        outputs: dict[str, Tensor] = {}

        def note(checkpoint: Tensor) -> Tensor:
            outputs[PENULTIMATE] = checkpoint
            return checkpoint

        x = as_input(x, self.model, module_device(self.model))
        logits = run_changing(self.model, x, last_linear(self.model), note, at_input=True)
        return logits, outputs


class Features(nn.Module):
    """Rows → features of each layer in float64; without a reader the rows themselves.

    Parameters
    ----------
    reader : LayerFeatures, optional
        Holds the classifier, which it shares and does not change.
    """

    def __init__(self, reader: LayerFeatures | None):
        super().__init__()
        self.reader = reader

    def forward(self, x: Tensor) -> list[Float[Tensor, "batch dim"]]:
        """Return the features of `x`, differentiable, one tensor for each layer."""
        if self.reader is None:
            return [x.flatten(1).double()]
        return self.ask(x)[1]

    def ask(self, x: Tensor) -> tuple[Tensor, list[Float[Tensor, "batch dim"]]]:
        """Return the logits of `x` and its features, from one pass of the classifier."""
        assert self.reader is not None
        logits, outputs = self.reader.ask(x)
        return logits, [part.double() for part in self.reader.by_layer(outputs).values()]


class AskedForLogits:
    """Mixin of statistics of the classifier's logits: their pass names the class as well."""

    classifier: nn.Module | None

    def ask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the classifier's logits, which are all that is to be seen."""
        assert self.classifier is not None
        logits = self.classifier(as_input(x, self.classifier, module_device(self.classifier)))
        return logits, logits


class AskedForFeatures:
    """Mixin of statistics of the classifier's features: their pass names the class as well."""

    features: Features

    @property
    def classifier(self) -> nn.Module | None:
        """Whose features they are."""
        return None if self.features.reader is None else self.features.reader.model

    def ask(self, x: Tensor) -> tuple[Tensor, list[Float[Tensor, "batch dim"]]]:
        """Return the classifier's logits, and the features of each layer."""
        return self.features.ask(x)

    def seen(self, x: Tensor, features: list[Tensor] | None) -> list[Float[Tensor, "batch dim"]]:
        """Return the features of `x`, which it may have been asked for already."""
        return self.features(x) if features is None else features


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


class FeatureDetector(BaseDetector):
    """Base of detectors in the features of a classifier's layers.

    A subclass has the parameters ``layer`` and ``pooling`` too. Without a classifier the rows
    are the features.
    """

    _parameter_constraints: dict = {
        **BaseDetector._parameter_constraints,
        "layer": [str, list, None],
        "pooling": [StrOptions({"flatten", "mean"})],
    }

    def _features(self) -> Features:
        """Build the module rows → features, around the classifier itself."""
        if self.classifier is None:
            if self.layer is not None:
                raise ValueError(
                    f"layer={self.layer!r} names a layer of the classifier: give classifier=…, or "
                    "leave layer=None to take the rows of X for features."
                )
            return Features(None)
        if self.layer is None:
            return Features(Penultimate(self.classifier, self.pooling))
        names = [self.layer] if isinstance(self.layer, str) else list(self.layer)
        if not names:
            raise ValueError("layer=[] names no layer; name at least one.")
        for name in names:
            find_layer(self.classifier, name)
        return Features(LayerFeatures(self.classifier, names, self.pooling))

    def _feature_batches(
        self, features: Features, rows: Rows, indices: np.ndarray
    ) -> Generator[tuple[slice, list[Tensor]], None, None]:
        """Yield (positions, features of each layer) of the rows at `indices`; to be closed."""
        device = resolve_device(self.device, self.classifier)
        with evaluating(features, device=device), torch.no_grad():
            for positions, batch in rows.batches(self.batch_size, indices):
                yield positions, [part.cpu() for part in features(batch.to(device))]

    def _read_features(self, features: Features, rows: Rows, indices) -> list[Tensor]:
        """Features of the rows at `indices`, shape (rows, dim) for each layer."""
        with closing(self._feature_batches(features, rows, indices)) as batches:
            parts = [layers for _, layers in batches]
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]

    def _home(self) -> torch.device:
        """Device of the fitted state: beside the classifier, which stays where it is."""
        return resolve_device(self.device if self.classifier is None else "auto", self.classifier)


def sample_rows(indices: np.ndarray, max_rows: int, random_state) -> np.ndarray:
    """At most `max_rows` of the indices, in their order."""
    if len(indices) <= max_rows:
        return indices
    return np.sort(random_state.choice(indices, max_rows, replace=False))

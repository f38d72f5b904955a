"""Outputs of tapped layers as feature vectors."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LayerFeatures(nn.Module):
    """Outputs of the tapped layers of a pass → one feature vector a row.

    Parameters
    ----------
    taps : tuple of str
        The taps, in the order of the features.
    pooling : {"flatten", "mean"}
        Whether to keep every activation or to average over positions.
    """

    def __init__(self, taps: tuple[str, ...], pooling: str):
        super().__init__()
        self.taps = taps
        self.pooling = pooling

    def forward(self, outputs: dict[str, Tensor]) -> Float[Tensor, "batch dim"]:
        """Features of all layers, one after the other."""
        return torch.cat(self.by_layer(outputs), dim=1)

    def by_layer(self, outputs: dict[str, Tensor]) -> list[Float[Tensor, "batch dim"]]:
        """Features of each layer."""
        return [self._pool(outputs[tap]) for tap in self.taps]

    def _pool(self, output: Tensor) -> Tensor:
        if self.pooling == "mean" and output.ndim > 2:
            # Channels come first in images, features last in token sequences.
            output = output.flatten(2).mean(2) if output.ndim > 3 else output.mean(1)
        return output.flatten(1)

"""Outputs of named layers as one feature vector per row."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skmrr.nn.hooks import as_input, captured, module_device


class LayerFeatures(nn.Module):
    """Rows → outputs of named layers of a network, pooled and concatenated.

    Parameters
    ----------
    model : nn.Module
        The network.
    names : list of str
        Dotted names of the layers.
    pooling : {"flatten", "mean"}
        Whether to keep every activation or to average over positions.
    """

    def __init__(self, model: nn.Module, names: list[str], pooling: str):
        super().__init__()
        self.model = model
        self.names = names
        self.pooling = pooling

    def forward(self, x: Tensor) -> Float[Tensor, "batch dim"]:
        """Run the network on `x`, and read the features."""
        return self.read(self.ask(x)[1])

    def ask(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the network on `x` for what it answers, and for the outputs of the layers."""
        with captured(self.model, self.names) as outputs:
            answer = self.model(as_input(x, self.model, module_device(self.model)))
        return answer, outputs

    def read(self, outputs: dict[str, Tensor]) -> Float[Tensor, "batch dim"]:
        """Read the features from the outputs of a pass that is over."""
        return torch.cat(list(self.by_layer(outputs).values()), dim=1)

    def by_layer(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of each layer, shape (batch, dim).

        Raises
        ------
        ValueError
            If a layer had no part in the pass.
        """
        missing = [name for name in self.names if name not in outputs]
        if missing:
            raise ValueError(f"layer(s) {missing} took no part in the network's forward pass.")
        return {name: self._pool(outputs[name]) for name in self.names}

    def _pool(self, output: Tensor) -> Tensor:
        if self.pooling == "mean" and output.ndim > 2:
            # Channels come first in images, features last in token sequences.
            output = output.flatten(2).mean(2) if output.ndim > 3 else output.mean(1)
        return output.flatten(1)

"""Latent maps: networks that place a row on the unit sphere and still name its class.

Section "Latent defender" of Rouhani et al. (2019): the replica of the victim has an L2
normalisation at the checkpoint, so that the features φ(x) it is judged by have norm 1.
"""

import copy
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from skmrr.nn.hooks import find_layer, last_linear, module_dtype

COSINE_SCALE = 16.0  # norm given to a unit feature before a cosine head


class LatentMap(nn.Module, ABC):
    """Rows → unit features φ(x) and class logits computed from them."""

    @abstractmethod
    def features_and_logits(
        self, x: Tensor
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch classes"]]:
        """Return φ(x), ‖φ(x)‖₂ = 1, and the logits that the head derives from it."""

    @abstractmethod
    def initialise(self, x: Tensor, classes: Int[Tensor, " batch"], n_classes: int) -> None:
        """Set data-dependent constants from one batch of clean rows, unless they are set."""

    def forward(self, x: Tensor) -> Float[Tensor, "batch dim"]:
        """Return the unit features alone."""
        return self.features_and_logits(x)[0]


class Replica(LatentMap):
    """Copy of a classifier with an L2 normalisation inserted at its checkpoint.

    Parameters
    ----------
    network : nn.Module
        A classifier that returns logits. It is copied.
    layer : str, optional
        Dotted name of the layer whose output is the checkpoint. By default the checkpoint is the
        input of the last linear layer.

    Notes
    -----
    The rest of the network was trained on features of their natural norm, so it sees
    ``scale * φ(x)``. The scale starts as the mean norm on clean rows and is trained.
    """

    def __init__(self, network: nn.Module, layer: str | None = None):
        super().__init__()
        if layer is None:
            last_linear(network)
        else:
            find_layer(network, layer)
        self.network = copy.deepcopy(network)
        self.layer = layer
        self.scale = nn.Parameter(torch.zeros((), dtype=module_dtype(network, torch.float32)))

    def features_and_logits(self, x):
        """Run the copy once, normalising at the checkpoint on the way."""
        scale = torch.where(self.scale > 0, self.scale, 1.0)
        features: list[Tensor] = []

        def normalise(checkpoint: Tensor) -> Tensor:
            features[:] = [functional.normalize(checkpoint.flatten(1))]
            return (scale * features[0]).view_as(checkpoint)

        logits = self._run(x, normalise)
        return features[0], logits

    def initialise(self, x, classes, n_classes):
        """Set ``scale`` to the mean norm of the checkpoint's features, the first time.

        Raises
        ------
        ValueError
            If a class index has no logit.
        """
        norms: list[Tensor] = []

        def measure(checkpoint: Tensor) -> Tensor:
            norms[:] = [checkpoint.flatten(1).norm(dim=1)]
            return checkpoint

        with torch.no_grad():
            logits = self._run(x, measure)
        if logits.shape[1] != n_classes:
            raise ValueError(
                f"y holds {n_classes} classes but the replica has {logits.shape[1]} logits; "
                "give y in the classifier's own class indices, every class present."
            )
        if self.scale == 0:
            nn.init.constant_(self.scale, float(norms[0].mean()))

    def _run(self, x, at_checkpoint):
        layer = (
            last_linear(self.network)
            if self.layer is None
            else find_layer(self.network, self.layer)
        )
        return run_changing(self.network, x, layer, at_checkpoint, at_input=self.layer is None)


def run_changing(network: nn.Module, x: Tensor, layer: nn.Module, change, *, at_input: bool):
    """Run a network in which the input or the output of a layer goes through `change`.

    Raises
    ------
    ValueError
        If the layer has no part in the pass.
    """
    n_calls = 0

    def at_layer(module, inputs, output=None):
        nonlocal n_calls
        n_calls += 1
        return (change(inputs[0]),) if at_input else change(output)

    register = layer.register_forward_pre_hook if at_input else layer.register_forward_hook
    handle = register(at_layer)
    try:
        result = network(x)
    finally:
        handle.remove()
    if n_calls == 0:
        raise ValueError(
            f"{layer} takes no part in the network's forward pass; name a layer that does with "
            "layer='…'."
        )
    return result


class CosineMap(LatentMap):
    """Any map to latent vectors, normalised, with a cosine classifier on top.

    Parameters
    ----------
    encoder : nn.Module
        Rows → latent vectors. It is copied.
    dim : int
        Number of latent dimensions.
    n_classes : int
        Number of classes.
    """

    def __init__(self, encoder: nn.Module, dim: int, n_classes: int):
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.head = nn.Linear(dim, n_classes, dtype=module_dtype(encoder, torch.float32))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features_and_logits(self, x):
        """Encode, normalise, classify."""
        features = functional.normalize(self.encoder(x).flatten(1))
        return features, self.head(COSINE_SCALE * features)

    def initialise(self, x, classes, n_classes):
        """Point the head's rows at the class means, which makes it a nearest-mean classifier."""
        if self.head.weight.any():
            return
        with torch.no_grad():
            features = self.features_and_logits(x)[0]
            means = class_means(features, classes, n_classes)
            self.head.weight.copy_(functional.normalize(means))


def replicate(classifier: nn.Module, layer: str | None = None) -> Replica:
    """Copy `classifier` into a replica whose checkpoint is the output of `layer`.

    Parameters
    ----------
    classifier : nn.Module
        The victim, which returns logits of shape (batch, classes). It is not changed.
    layer : str, optional
        Dotted name of the checkpoint; by default the input of the last linear layer.

    Returns
    -------
    Replica
        To be given to ``LatentDefender(module=…)``.

    Examples
    --------
    >>> import torch
    >>> from skmrr import replicate
    >>> victim = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> features = replicate(victim, "1")(torch.ones(5, 4))
    >>> features.shape
    torch.Size([5, 8])
    """
    return Replica(classifier, layer)


def class_means(
    features: Float[Tensor, "batch dim"], classes: Int[Tensor, " batch"], n_classes: int
) -> Float[Tensor, "classes dim"]:
    """Mean feature of each class; zero for a class without a row."""
    one_hot = functional.one_hot(classes, n_classes).to(features)  # batch classes
    return (one_hot.T @ features) / one_hot.sum(0).clamp_min(1)[:, None]

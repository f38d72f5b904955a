"""Latent maps: networks that place a row on the unit sphere and still name its class.

Section "Latent defender" of Rouhani et al. (2019): the replica of the victim has an L2
normalisation at the checkpoint, so that the features φ(x) it is judged by have norm 1.
"""

import copy
from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from skmrr.nn.layers import check_has_linear, find_layer
from skmrr.nn.narrowing import narrow
from skmrr.nn.placement import as_input, module_dtype
from skmrr.nn.tapped import (
    INPUT,
    LayerChange,
    head_input,
    keep,
    run,
    shared_copy,
    trainable_copy,
    unwrapped_name,
)

FEATURES, NATURAL = "features", "natural features"  # what a checkpoint keeps of a pass
LARGE_SIDE, SMALLER = 128, 0.75  # what scale="auto" is from so many pixels a side on
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


class Checkpoint(LayerChange):
    """Hook that normalises what passes a replica's checkpoint.

    The rest of the network was trained on features of their natural norm, so it is given
    ``scale * φ(x)``. The scale starts as the mean norm on clean rows and is trained. Where nothing
    is trained, and the logits alone are looked at, the features may keep their norm (`is_natural`).
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros((), dtype=dtype))  # zero: not known yet
        self.is_natural = False

    def changed(self, value):
        """Put the features on the sphere of radius ``scale``, unless they keep their norm."""
        scale = torch.where(self.scale > 0, self.scale, 1.0)
        features = functional.normalize(value.flatten(1))
        keep(FEATURES, features)
        keep(NATURAL, value)
        return value if self.is_natural else (scale * features).view_as(value)


class Replica(LatentMap):
    """Copy of a classifier with an L2 normalisation inserted at its checkpoint.

    Parameters
    ----------
    network : nn.Module
        A classifier that returns logits. It is copied.
    layer : str, optional
        The checkpoint: dotted name of a layer for its output, followed by ``":input"`` for its
        input. By default the input of the linear layer whose output is the logits, which the first
        rows that the replica sees tell.
    width : float, default=1.0
        Share of the channels and units of each hidden layer. Below 1 the first rows that the
        replica sees make it an untrained network of that width.
    scale : float or "auto", default=1.0
        Share of the height and width of an image that the replica sees. ``"auto"`` is three
        quarters for images of 128 pixels a side and more, if the network takes such, else 1.
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str | None = None,
        width: float = 1.0,
        scale: float | Literal["auto"] = 1.0,
    ):
        super().__init__()
        if not 0 < width <= 1:
            raise ValueError(f"width={width} must be above 0 and at most 1, the classifier's own.")
        if scale != "auto" and not 0 < scale <= 1:
            raise ValueError(f"scale={scale} must be above 0 and at most 1, or 'auto'.")
        self.network = trainable_copy(network)
        if layer is None:
            check_has_linear(self.network)
        else:
            layer = unwrapped_name(layer, network)
            find_layer(self.network, layer.removesuffix(INPUT))
        self.layer = layer
        self.width = width
        self.scale = scale
        self.checkpoint = Checkpoint(module_dtype(self.network, torch.float32))
        self.is_prepared = False
        if layer is not None and width == scale == 1:
            self._attach(layer)

    @property
    def is_fresh(self) -> bool:
        """Whether it is as `replicate` made it."""
        return not self.checkpoint.scale.detach().any()

    def prepare(self, x: Tensor) -> None:
        """Find the checkpoint, and narrow and shrink the network, by a pass of a few rows."""
        if self.is_prepared:
            return
        layer = self.layer or head_input(self.network, x)
        if self.width < 1:
            self.network = narrow(self.network, self.width, x)
        self.scale = self.scale_for(x)
        if self.scale < 1:
            self.network = nn.Sequential(Shrunk(self.scale), self.network)
            layer = f"1.{layer}"
        self._attach(layer)

    def scale_for(self, x: Tensor) -> float:
        """Share of the height and width that it sees of images like these few."""
        if self.scale == "auto":
            return SMALLER if _can_be_smaller(self.network, x) else 1.0
        return self.scale

    def _attach(self, layer: str) -> None:
        self.checkpoint.attach(self.network, layer)
        self.layer, self.is_prepared = layer, True

    def features_and_logits(self, x):
        """Run the copy once, normalising at the checkpoint on the way.

        Raises
        ------
        ValueError
            If the checkpoint has no part in the pass.
        """
        logits, seen = self._run(x)
        return seen[FEATURES], logits

    def initialise(self, x, classes, n_classes):
        """Set the scale to the mean norm of the checkpoint's features, the first time.

        Raises
        ------
        ValueError
            If a class index has no logit.
        """
        self.prepare(x)
        with torch.no_grad():
            logits, seen = self._run(x)
        check_logits(logits.shape[1], n_classes)
        if self.is_fresh:
            norms = seen[NATURAL].flatten(1).norm(dim=1)
            nn.init.constant_(self.checkpoint.scale, float(norms.mean()))

    def _run(self, x: Tensor) -> tuple[Tensor, dict]:
        self.prepare(x)
        logits, seen = run(self.network, x)
        if isinstance(logits, tuple | list):
            logits = logits[0]  # beside which auxiliary heads answer, in training mode
        if FEATURES not in seen:
            raise ValueError(
                f"layer={self.layer!r} takes no part in the network's forward pass; name a layer "
                "that does with layer='…'."
            )
        return logits, seen

    def bare_network(self) -> nn.Module:
        """Copy of the network without the normalisation."""
        network = copy.deepcopy(self.network)
        for part in network.modules():
            for hooks in (part._forward_hooks, part._forward_pre_hooks):
                for key in [k for k, hook in hooks.items() if isinstance(hook, Checkpoint)]:
                    del hooks[key]
        return network


class Shrunk(nn.Module):
    """Images at a share of their height and width: each pixel the mean of those it stands for.

    Parameters
    ----------
    scale : float
        The share.
    """

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Shrink the images."""
        size = [max(1, round(self.scale * side)) for side in x.shape[2:]]
        return functional.interpolate(x, size=size, mode="area")


@torch.no_grad()
def _can_be_smaller(network: nn.Module, x: Tensor) -> bool:
    """Whether rows are large images that a network takes at a smaller size too."""
    if x.ndim != 4 or min(x.shape[2:]) < LARGE_SIDE:
        return False
    copied = shared_copy(network)
    x = as_input(x[:2], copied)
    try:
        return copied(Shrunk(SMALLER)(x)).shape == copied(x).shape
    except RuntimeError:
        return False


def check_logits(n_logits: int, n_classes: int) -> None:
    """Raise a ValueError unless a network has a logit for each class, and none beside."""
    if n_logits != n_classes:
        raise ValueError(
            f"There are {n_classes} classes but the network has {n_logits} logits; give a network "
            "with a logit for each class of the classifier."
        )


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
        self.encoder = trainable_copy(encoder)
        self.head = nn.Linear(dim, n_classes, dtype=module_dtype(self.encoder, torch.float32))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features_and_logits(self, x):
        """Encode, normalise, classify."""
        encoded = run(self.encoder, x)[0]
        encoded = encoded[0] if isinstance(encoded, tuple | list) else encoded
        features = functional.normalize(encoded.flatten(1))
        return features, self.head(COSINE_SCALE * features)

    def initialise(self, x, classes, n_classes):
        """Point the head's rows at the class means, which makes it a nearest-mean classifier."""
        if self.head.weight.any():
            return
        with torch.no_grad():
            features = self.features_and_logits(x)[0]
            means = class_means(features, classes, n_classes)
            self.head.weight.copy_(functional.normalize(means))


def replicate(
    classifier: nn.Module,
    layer: str | None = None,
    *,
    width: float = 1.0,
    scale: float | Literal["auto"] = 1.0,
) -> Replica:
    """Copy `classifier` into a replica whose features are those of a checkpoint.

    Parameters
    ----------
    classifier : nn.Module
        The victim, which returns logits of shape (batch, classes). It is not changed.
    layer : str, optional
        The checkpoint: dotted name of a layer for its output, followed by ``":input"`` for its
        input. By default the input of the linear layer whose output is the logits.
    width : float, default=1.0
        Share of the classifier's channels and units that the replica has. Below 1 it is not a copy
        of the classifier, but an untrained network of its architecture that costs less.
    scale : float or "auto", default=1.0
        Share of the height and width of an image that the replica sees: at a half it costs a
        quarter. ``"auto"`` is three quarters for images of 128 pixels a side and more, if the
        classifier takes such, else 1.

    Returns
    -------
    Replica
        To be given to ``LatentDefender(module=…)``.

    Examples
    --------
    >>> import torch
    >>> from skmrr import replicate
    >>> victim = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> features = replicate(victim)(torch.ones(5, 4))
    >>> features.shape
    torch.Size([5, 8])
    """
    return Replica(classifier, layer, width, scale)


def class_means(
    features: Float[Tensor, "batch dim"], classes: Int[Tensor, " batch"], n_classes: int
) -> Float[Tensor, "classes dim"]:
    """Mean feature of each class; zero for a class without a row."""
    one_hot = functional.one_hot(classes, n_classes).to(features)  # batch classes
    return (one_hot.T @ features) / one_hot.sum(0).clamp_min(1)[:, None]

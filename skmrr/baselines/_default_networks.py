"""Small networks that the rivals train by default.

Those of flat rows compute in double precision, as scores of features are compared to the last digit
where their order and number change.
"""

import torch
from torch import Tensor, nn

from skmrr.nn.placement import as_input
from skmrr.nn.tapped import Tapped


class ToUnit(nn.Module):
    """Map values from [low, high] to [0, 1]."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.low = low
        self.high = high

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows in units of the range."""
        return (x - self.low) / (self.high - self.low)


class FromUnit(ToUnit):
    """Map values from [0, 1] to [low, high]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows in their own units."""
        return self.low + (self.high - self.low) * x


class InRange(nn.Module):
    """A network whose rows stay in a range.

    Parameters
    ----------
    network : nn.Module
        Rows → rows.
    low, high : float
        The range.
    """

    def __init__(self, network: nn.Module, low: float, high: float):
        super().__init__()
        self.network = network
        self.low = low
        self.high = high

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's rows, clipped."""
        return self.network(x).clamp(self.low, self.high)


class Crop(nn.Module):
    """Cut images to a height and width."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height = height
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return the upper left part."""
        return x[:, :, : self.height, : self.width]


def is_image(shape: tuple[int, ...], side: int) -> bool:
    """Whether rows are images of at least `side` pixels each way."""
    return len(shape) == 3 and min(shape[1:]) >= side


def autoencoder(shape: tuple[int, ...], low: float, high: float) -> nn.Module:
    """Rows → rows: that of MagNet for MNIST, or one dense hidden layer half as wide as the row."""
    if not is_image(shape, 2):
        dim = int(torch.Size(shape).numel())
        return _dense(shape, low, high, max(2, dim // 2))
    channels, *size = shape
    few = 3 * channels
    return nn.Sequential(
        ToUnit(low, high),
        *(_conv(channels, few), nn.Sigmoid(), nn.AvgPool2d(2)),
        *(_conv(few, few), nn.Sigmoid(), _conv(few, few), nn.Sigmoid()),
        nn.Upsample(size=tuple(size)),
        *(_conv(few, few), nn.Sigmoid(), _conv(few, channels), nn.Sigmoid()),
        FromUnit(low, high),
    )


def generator(shape: tuple[int, ...], low: float, high: float, width: int) -> nn.Module:
    """Rows → rows: two strided convolutions and back, or one dense hidden layer."""
    if not is_image(shape, 8):
        return _dense(shape, low, high, 4 * width)
    channels, height, breadth = shape
    return nn.Sequential(
        ToUnit(low, high),
        *(nn.Conv2d(channels, width, 3, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)),
        *(nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)),
        *(nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Sigmoid()),
        Crop(height, breadth),
        FromUnit(low, high),
    )


def discriminator(shape: tuple[int, ...], low: float, high: float, width: int) -> nn.Module:
    """Rows → one logit, high for rows taken to be clean."""
    if not is_image(shape, 8):
        dim = int(torch.Size(shape).numel())
        return nn.Sequential(
            *(ToUnit(low, high), nn.Flatten(), nn.Linear(dim, 4 * width), nn.LeakyReLU(0.2)),
            nn.Linear(4 * width, 1),
        )
    channels, height, breadth = shape
    n_positions = -(-height // 4) * -(-breadth // 4)
    return nn.Sequential(
        ToUnit(low, high),
        *(nn.Conv2d(channels, width, 3, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Flatten(), nn.Linear(2 * width * n_positions, 1)),
    )


def softmax_network(
    shape: tuple[int, ...], low: float, high: float, n_classes: int, width: int = 64
) -> nn.Module:
    """Rows → logits, with one hidden layer."""
    dim = int(torch.Size(shape).numel())
    return nn.Sequential(
        *(ToUnit(low, high), nn.Flatten(), nn.Linear(dim, width), nn.ReLU()),
        nn.Linear(width, n_classes),
    ).double()


def _conv(n_in: int, n_out: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1)


def _dense(shape: tuple[int, ...], low: float, high: float, width: int) -> nn.Module:
    dim = int(torch.Size(shape).numel())
    return nn.Sequential(
        *(ToUnit(low, high), nn.Flatten()),
        *(nn.Linear(dim, width), nn.LeakyReLU(0.2), nn.Linear(width, dim), nn.Sigmoid()),
        *(nn.Unflatten(1, shape), FromUnit(low, high)),
    ).double()


class RebuildingClassifier(nn.Module):
    """A classifier that is shown rebuilt rows.

    Parameters
    ----------
    rebuild : nn.Module
        Rows → rows.
    classifier : Tapped
        Rows → logits.
    """

    def __init__(self, rebuild: nn.Module, classifier: Tapped):
        super().__init__()
        self.rebuild = rebuild
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (batch, classes)."""
        logits = self.classifier(self.rebuild(as_input(x, self.rebuild))).logits
        assert logits is not None
        return logits

"""The victims' networks: images in [0, 1] → logits of ten classes."""

import torch
from torch import nn
from torch.nn import functional


def build_digits() -> nn.Sequential:
    """Two convolutions, two dense layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(64, 10),
    )


def build_mnist() -> nn.Sequential:
    """Two convolutions, three dense layers; the input of the last one is the checkpoint."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),  # after the pooling: the same values, a quarter of the work
        nn.Conv2d(16, 32, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 200),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(200, 10),
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_certified() -> nn.Sequential:
    """Build a small network of plain layers, to be trained by bounds, for MNIST."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 49, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def build_small_certified() -> nn.Sequential:
    """Build the same for digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class ResNet(nn.Module):
    """Three stages of residual blocks (He et al. 2016, section 4.2); images in [0, 1].

    Parameters
    ----------
    depth : int, default=20
        Number of layers, 6 n + 2 with n blocks a stage.
    """

    def __init__(self, depth: int = 20):
        super().__init__()
        n = (depth - 2) // 6
        self.register_buffer("mean", rgb(0.485, 0.456, 0.406), persistent=False)
        self.register_buffer("std", rgb(0.229, 0.224, 0.225), persistent=False)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Residual(n_in, n_out), *(Residual(n_out, n_out) for _ in range(n - 1)))
            for n_in, n_out in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        """Images → logits."""
        x = self.relu(self.bn1(self.conv1((x - self.mean) / self.std)))
        x = self.layer3(self.layer2(self.layer1(x)))  # batch 64 8 8
        return self.linear(x.mean((2, 3)))


def rgb(*values: float) -> torch.Tensor:
    """One value a channel: channels 1 1."""
    return torch.tensor(values).view(-1, 1, 1)


class Residual(nn.Module):
    """Two convolutions beside a shortcut without parameters (option A)."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.stride = n_out // n_in  # twice the channels, half the side
        self.conv1 = nn.Conv2d(n_in, n_out, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        """Features → features."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        new = (out.shape[1] - x.shape[1]) // 2  # channels of zeros, before and after
        x = x[:, :, :: self.stride, :: self.stride]
        return self.relu2(out + functional.pad(x, (0, 0, 0, 0, new, new)))


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019, without squeeze and excitation); images of 224×224.

    Parameters
    ----------
    features : nn.Module
        Normalised images → feature maps, shape (batch, 1280, height, width).
    head : nn.Linear
        Mean feature → logits.
    classes : list of int
        Classes whose logits are kept.
    """

    def __init__(self, features: nn.Module, head: nn.Linear, classes: list[int]):
        super().__init__()
        self.features = features
        self.linear = nn.Linear(head.in_features, len(classes))
        with torch.no_grad():
            self.linear.weight.copy_(head.weight[classes])
            self.linear.bias.copy_(head.bias[classes])

    def forward(self, x):
        """Images → logits."""
        features = self.features((x * 255 - 127) / 128)  # the scale that it was trained in
        return self.linear(features.mean((2, 3)))


class FeatureMaps(nn.Module):
    """The convolutions of a network of ``efficientnet-lite-pytorch``."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        del network._fc  # its weights live in the head

    def forward(self, x):
        """Normalised images → feature maps."""
        return self.network.extract_features(x)  # type: ignore[operator]


def build_colour_autoencoder() -> nn.Sequential:
    """Build MagNet's autoencoder for CIFAR-10 (Meng and Chen 2017): it keeps the full size."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Sigmoid(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Sigmoid(),
        nn.Conv2d(32, 3, 3, padding=1),
        nn.Sigmoid(),
    )

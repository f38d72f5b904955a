"""
Victims and attacks
===================

What the measurements of this folder share: for each data set one victim, the images to fit,
calibrate and test a defender on, and attacks that see the victim alone. An attack starts from test
images that the victim classifies rightly, and only its successes count.

Nothing here runs by itself. Trained victims and attacks are kept in a ``joblib.Memory``, which
knows nothing of changes in the functions that those two call: start an empty one after such.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR

from skmrr.art import Attack, paper_attacks, run_attacks
from skmrr.datasets import data_home, load_cifar10, load_digits_images, load_mnist

N_VICTIM, N_FIT = 50_000, 20_000  # training images of MNIST's victim, and of the defenders
N_CALIBRATION = 2_000  # test images of CIFAR-10, whose victim has seen all training images
BATCH = 100  # larger ones leave the processor's cache and are slower


@dataclass(frozen=True)
class AttackedSet:
    """A victim, clean images to fit, calibrate and test a defender on, and successful attacks."""

    victim: nn.Module
    """In evaluation mode; images → logits."""
    X_fit: np.ndarray
    y_fit: np.ndarray
    X_calibration: np.ndarray
    """New to the victim, and no part of `X_fit`."""
    X_test: np.ndarray
    """The clean side: all of them, the victim's own errors included."""
    y_test: np.ndarray
    adversarial: dict[str, np.ndarray]
    """By attack, the images that fool the victim; an attack without any is left out."""
    distortion: dict[str, float]
    """By attack, the mean L2 norm of these images' change."""


def in_levels(attacks: dict[str, Attack]) -> dict[str, Attack]:
    """Name sizes ε in levels of an 8-bit pixel: n/255."""
    return {
        f"{name.split()[0]} {round(attack.params['eps'] * 255)}/255"
        if "eps" in attack.params
        else name: attack
        for name, attack in attacks.items()
    }


# The first word of a name is the attack's kind. All data sets know the kinds in KINDS.
KINDS = ("FGSM", "BIM", "DeepFool", "CW")
DIGITS_ATTACKS = paper_attacks(jsma=())
MNIST_ATTACKS = paper_attacks(
    fgsm=(0.05, 0.1, 0.2, 0.3),
    bim=(0.1, 0.2, 0.3),
    bim_steps=(10, 20),
    deepfool=1e-6,  # ART's default, which is too short for ResNet-20's rounding
    jsma=(0.05, 0.1),  # γ = 5 % of the pixels is the setting of the paper's released program
    carlini=(0, 10, 20, 40),
    max_iter=150,
)
CIFAR10_ATTACKS = in_levels(
    paper_attacks(
        fgsm=tuple(n / 255 for n in (1, 2, 4, 8, 16)),
        bim=tuple(n / 255 for n in (1, 2, 4, 8)),
        bim_steps=(4, 10),
        jsma=(0.05,),
        carlini=(0, 10, 20),
        # ResNet-20 is fooled by changes so small that the default steps overshoot.
        learning_rate=0.01,
        initial_const=0.01,
        max_iter=60,
    )
)


def digits(seed: int, memory: joblib.Memory, *, kinds: tuple = KINDS) -> AttackedSet:
    """Digits of 8×8 pixels: the splits and the victim of the quickstart; all images attacked."""
    X, y = load_digits_images()
    X_rest, X_test, y_rest, y_test = train_test_split(
        X, y, test_size=0.25, random_state=seed, stratify=y
    )
    X_train, X_new, y_train, _ = train_test_split(X_rest, y_rest, test_size=0.2, random_state=seed)
    weights = memory.cache(train_digits)(seed, X_train, y_train)
    images = X_train, y_train, X_new, X_test, y_test
    attacks = of_kinds(DIGITS_ATTACKS, kinds)
    return attacked_set(seed, memory, build_digits, weights, images, attacks, len(y_test))


def mnist(
    seed: int,
    memory: joblib.Memory,
    *,
    n_attacked: int = 500,
    victim_epochs: int = 25,
    kinds: tuple = KINDS,
) -> AttackedSet:
    """MNIST: the victim learns the first 50,000 training images, the last 10,000 calibrate."""
    X, y = load_mnist("train")
    weights = memory.cache(train_mnist)(seed, N_VICTIM, victim_epochs)
    images = X[:N_FIT], y[:N_FIT], X[N_VICTIM:], *load_mnist("test")
    attacks = of_kinds(MNIST_ATTACKS, kinds)
    # FGSM is cheap, and of a weak attack few succeed.
    return attacked_set(
        seed, memory, build_mnist, weights, images, attacks, n_attacked, from_all=("FGSM",)
    )


def cifar10(
    seed: int, memory: joblib.Memory, *, n_attacked: int = 500, kinds: tuple = KINDS
) -> AttackedSet:
    """CIFAR-10: a pretrained ResNet-20; the seed draws the test images that calibrate."""
    X, y = load_cifar10("test")
    order = np.random.default_rng(seed).permutation(len(y))
    new, test = order[:N_CALIBRATION], order[N_CALIBRATION:]
    images = *load_cifar10("train", n_samples=N_FIT), X[new], X[test], y[test]
    attacks = of_kinds(CIFAR10_ATTACKS, kinds)
    return attacked_set(seed, memory, ResNet20, read_resnet20(), images, attacks, n_attacked)


def of_kinds(attacks: dict[str, Attack], kinds: tuple) -> dict[str, Attack]:
    """Keep the attacks of these kinds, in the table's order."""
    return {name: attack for name, attack in attacks.items() if name.split()[0] in kinds}


def attacked_set(
    seed: int,
    memory: joblib.Memory,
    build: Callable,
    weights: dict,
    images: tuple,
    attacks: dict[str, Attack],
    n_attacked: int,
    from_all: tuple = (),
) -> AttackedSet:
    """Attack `n_attacked` of the test images that the victim classifies rightly.

    `images` are the arrays of an `AttackedSet`, from `X_fit` to `y_test`. Attacks of the kinds in
    `from_all` start from every right image.
    """
    X_test, y_test = images[-2:]
    victim = load_victim(build, weights)
    wrapped = PyTorchClassifier(
        victim, nn.CrossEntropyLoss(), X_test.shape[1:], nb_classes=10, clip_values=(0, 1)
    )
    right = np.flatnonzero(predict(victim, X_test) == y_test)
    rows = np.random.default_rng(seed).permutation(right)
    adversarial, distortion = {}, {}
    for name, attack in attacks.items():
        start = rows if name.split()[0] in from_all else rows[:n_attacked]
        result = run_attacks(
            wrapped, {name: attack}, X_test[start], y_test[start], batch_size=BATCH, memory=memory
        )[name]
        if result.success.any():
            adversarial[name] = result.adversarial[result.success].numpy()
            distortion[name] = float(result.distortion[result.success].mean())
    return AttackedSet(victim, *images, adversarial, distortion)


def load_victim(build: Callable, weights: dict) -> nn.Module:
    """Victim with the given weights, in evaluation mode."""
    victim = build()
    victim.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
    return victim.to(memory_format=torch.channels_last).eval()


def predict(victim: nn.Module, X) -> np.ndarray:
    """Labels by the victim."""
    with torch.no_grad():
        parts = [victim(x).argmax(1) for x in torch.as_tensor(X).split(BATCH)]
    return torch.cat(parts).numpy()


def auc(clean, odd) -> float:
    """Area under the ROC curve of two sets of scores."""
    truth = np.r_[np.zeros(len(clean)), np.ones(len(odd))]
    return float(roc_auc_score(truth, -np.r_[clean, odd]))


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


def read_resnet20() -> dict:
    """Weights by akamaster/pytorch_resnet_cifar10, where the data sets are."""
    folder = Path(os.environ.get("SKMRR_DATA") or data_home()).expanduser()
    path = folder / "weights" / "resnet20-12fca82f.th"
    saved = torch.load(path, weights_only=True, map_location="cpu")
    state = saved["state_dict"].items()
    return {name.removeprefix("module."): tensor.numpy() for name, tensor in state}


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
    ).to(memory_format=torch.channels_last)


class ResNet20(nn.Module):
    """Three stages of three residual blocks (He et al. 2016, section 4.2); images in [0, 1]."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", rgb(0.485, 0.456, 0.406), persistent=False)
        self.register_buffer("std", rgb(0.229, 0.224, 0.225), persistent=False)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Residual(n_in, n_out), Residual(n_out, n_out), Residual(n_out, n_out))
            for n_in, n_out in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        """Images → logits."""
        x = self.bn1(self.conv1((x - self.mean) / self.std)).relu()
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

    def forward(self, x):
        """Features → features."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        new = (out.shape[1] - x.shape[1]) // 2  # channels of zeros, before and after
        x = x[:, :, :: self.stride, :: self.stride]
        return (out + functional.pad(x, (0, 0, 0, 0, new, new))).relu()

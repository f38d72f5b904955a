"""The challenges there are: the rule of each, its rows, and the recipe of what is published."""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
from torch import nn

from skmrr.base import BaseDetector
from skmrr.bench.architectures import (
    build_certified,
    build_digits,
    build_mnist,
    build_small_certified,
)
from skmrr.bench.hardening import harden
from skmrr.bench.images import load_cifar10, load_mnist
from skmrr.bench.victims import load_victim, read_resnet, train_digits, train_mnist
from skmrr.datasets import load_digits_images
from skmrr.defenders import CertifiedDefender, LatentDefender
from skmrr.nn.replica import replicate

Images = tuple[np.ndarray, np.ndarray]
Checkpoint = str | PathLike | None
Recipe = Callable[[np.ndarray, np.ndarray, Checkpoint, bool], BaseDetector]

SEED = 1
PARTS = ("test", "calibration", "training")


@dataclass(frozen=True)
class Challenge:
    """A rule, the rows it is about, and how victim and detector come about."""

    title: str
    """Of what images."""
    eps: tuple[float, ...]
    """Radii of the ball that a change must stay in; each has a score of its own."""
    security_parameter: float
    rows: Callable[[str], Images]
    """Images and classes of a part: "test", "calibration" or "training"."""
    victim: Callable[[], nn.Module]
    """Builds the victim, where `publishes_victim` without its weights."""
    recipe: Recipe
    """Training rows, their classes, checkpoint and ``verbose`` → the fitted detector, with its
    victim. A long training goes on from the checkpoint."""
    sha256: tuple[str, str]
    """Checksums of the files of the detector and of the victim."""
    publishes_victim: bool = True
    """Whether the victim's weights are in its file."""


def digits_rows(part: str) -> Images:
    """Split scikit-learn's digits once and for all."""
    X, y = load_digits_images()
    # RandomState, whose stream NumPy has frozen: the rows stay what they are.
    order = np.random.RandomState(SEED).permutation(len(X))
    rows = dict(zip(PARTS, np.split(order, [500, 800]), strict=True))[part]
    return X[rows], y[rows]


def mnist_rows(part: str) -> Images:
    """Take the official test images; the last 10,000 training images calibrate."""
    if part == "test":
        return load_mnist("test")
    n_training = 50_000
    if part == "training":
        return load_mnist("train", n_samples=n_training)
    X, y = load_mnist("train")
    return X[n_training:], y[n_training:]


def cifar10_rows(part: str) -> Images:
    """Take the official training images; of the test images 2,000 calibrate."""
    if part == "training":
        return load_cifar10("train", n_samples=50_000)
    X, y = load_cifar10("test")
    order = np.random.RandomState(SEED).permutation(len(X))
    rows = dict(zip(("calibration", "test"), np.split(order, [2000]), strict=True))[part]
    return X[rows], y[rows]


def digits_detector(X, y, checkpoint: Checkpoint, verbose: bool) -> CertifiedDefender:
    """Train the victim, and a small network by interval bounds."""
    with torch.random.fork_rng(devices=[]):
        victim = load_victim(build_digits, train_digits(SEED, X, y))
        network = build_small_certified()
    return _certified(
        network,
        victim,
        verbose,
        exploration_radius=0.15,
        certified_radius=0.075,
        max_epochs=60,
        training_batch_size=32,
    ).fit(X, y)


def mnist_detector(X, y, checkpoint: Checkpoint, verbose: bool) -> CertifiedDefender:
    """Train the victim on turned and shifted digits, and a small network by interval bounds."""
    with torch.random.fork_rng(devices=[]):
        victim = load_victim(build_mnist, train_mnist(SEED, len(y), epochs=8))
        network = build_certified()
    return _certified(
        network,
        victim,
        verbose,
        exploration_radius=0.33,
        certified_radius=0.1,
        max_epochs=24,
        training_batch_size=128,
    ).fit(X, y)


def cifar10_detector(X, y, checkpoint: Checkpoint, verbose: bool) -> LatentDefender:
    """Harden a copy of the victim on the victim's own answers."""
    victim = read_resnet()
    hardened = harden(
        victim,
        X,
        radius=3 / 255,
        epochs=14,
        seed=SEED,
        checkpoint=checkpoint,
        verbose=verbose,
    )
    return LatentDefender(
        replicate(hardened),
        realign=False,
        classifier=victim,
        clip_values=(0, 1),
        calibration_fraction=0,
        random_state=SEED,
    ).fit(X, y)


def _certified(network: nn.Module, victim: nn.Module, verbose: bool, **params) -> CertifiedDefender:
    """Defender with what the recipes have in common."""
    return CertifiedDefender(
        network,
        classifier=victim,
        clip_values=(0, 1),
        learning_rate=2e-3,
        calibration_fraction=0,
        random_state=SEED,
        verbose=verbose,
        **params,
    )


CHALLENGES: dict[str, Challenge] = {
    "digits": Challenge(
        title="digits of 8×8 pixels",
        eps=(0.1,),
        security_parameter=0.05,
        rows=digits_rows,
        victim=build_digits,
        recipe=digits_detector,
        sha256=(
            "1664b492c53c4ad1d72f56fce3a3ff0fd32745362c944de11cbf4b45094b2ce1",
            "ffe8693724a73f2a4f361b78638b621ffb03141ba5211aa4a4e63e5c32e92fae",
        ),
    ),
    "mnist": Challenge(
        title="MNIST's digits of 28×28 pixels",
        eps=(0.3,),
        security_parameter=0.05,
        rows=mnist_rows,
        victim=build_mnist,
        recipe=mnist_detector,
        sha256=(
            "45a14522e2f8eda74fac63a0b73fb683879ab751955469b410a5004fc896ee0c",
            "cb082e47cf1b1913e662f6baa69d256d6703825afcf6f9a361ecd8645a248b4c",
        ),
    ),
    "cifar10": Challenge(
        title="CIFAR-10's photographs of 32×32 pixels",
        eps=(2 / 255, 8 / 255),
        security_parameter=0.05,
        rows=cifar10_rows,
        victim=read_resnet,
        recipe=cifar10_detector,
        sha256=(
            "98f18af9e0db6c6d6c968ff9ec4fcd7a165b507fb0dd76eac1d1c85ace5615f0",
            "1d6064ff9fe69f8fa6a6e1cbc2eb8c88985d41b02236059bc89e5e0b49766c24",
        ),
        publishes_victim=False,
    ),
}


def find(name: str) -> Challenge:
    """Look a challenge up.

    Raises
    ------
    ValueError
        If there is none of that name; the message lists those there are.
    """
    if name not in CHALLENGES:
        raise ValueError(f"There is no challenge {name!r}; there are: {', '.join(CHALLENGES)}.")
    return CHALLENGES[name]

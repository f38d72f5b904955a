"""Problems: a victim, rows to fit, calibrate and test detectors on, and attacks on the victim.

An attack sees the victim alone and starts from test images that the victim classifies rightly;
only its successes count. Trained victims and attacks are kept in a ``joblib.Memory``, which knows
nothing of changes in the functions that those two call: start an empty one after such.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import joblib
import numpy as np
from sklearn.model_selection import train_test_split
from torch import nn

from skmrr.art import Attack, as_art_classifier, modern_attacks, paper_attacks, run_attacks
from skmrr.bench.architectures import build_digits, build_mnist
from skmrr.bench.images import load_cifar10, load_imagenette, load_mnist
from skmrr.bench.victims import (
    batch_of,
    load_victim,
    predict,
    read_efficientnet,
    read_resnet,
    train_digits,
    train_mnist,
)
from skmrr.datasets import load_digits_images
from skmrr.evaluation import Successes

N_VICTIM, N_FIT = 50_000, 20_000  # training images of MNIST's victim, and of the detectors
N_CALIBRATION = {"cifar10": 2_000, "imagenette": 200}  # test images of victims that saw all others

Images = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
# The first word of a name is the attack's kind. These are the paper's.
KINDS = ("FGSM", "BIM", "DeepFool", "JSMA", "CW")
MODERN = ("PGD", "APGD", "APGD-DLR", "AutoAttack", "Square", "HopSkipJump")


@dataclass(frozen=True)
class Problem:
    """A victim, clean images to fit, calibrate and test a detector on, and successful attacks."""

    name: str
    seed: int
    victim: nn.Module
    """In evaluation mode; images → logits."""
    X_fit: np.ndarray
    y_fit: np.ndarray
    X_calibration: np.ndarray
    """New to the victim, and no part of `X_fit`."""
    X_test: np.ndarray
    """The clean side: all of them, the victim's own errors included."""
    y_test: np.ndarray
    rows: np.ndarray
    """Positions of the test images that the victim classifies rightly, in the order of attack."""
    attacks: dict[str, Successes]
    """By attack, the images that fool the victim."""

    @property
    def adversarial(self) -> dict[str, np.ndarray]:
        """By attack that fools the victim at all, the images that do."""
        return {name: attack.X for name, attack in self.attacks.items() if len(attack.X)}

    @property
    def distortion(self) -> dict[str, float]:
        """By attack, the mean L2 norm of these images' change."""
        return {name: float(self.attacks[name].distortion.mean()) for name in self.adversarial}


def in_levels(attacks: dict[str, Attack]) -> dict[str, Attack]:
    """Name sizes ε in levels of an 8-bit pixel: n/255."""
    return {
        f"{name.split()[0]} {round(attack.params['eps'] * 255)}/255"
        if "eps" in attack.params
        else name: attack
        for name, attack in attacks.items()
    }


ATTACKS: dict[str, dict[str, Attack]] = {
    "digits": {**paper_attacks(), **modern_attacks(eps=(0.1, 0.2))},
    "mnist": {
        **paper_attacks(
            fgsm=(0.05, 0.1, 0.2, 0.3),
            bim=(0.1, 0.2, 0.3),
            bim_steps=(10, 20),
            deepfool=1e-6,  # ART's default, which is too short for ResNet-20's rounding
            jsma=(0.05, 0.1),  # γ = 5 % of the pixels is that of the paper's released program
            carlini=(0, 10, 20, 40),
            max_iter=150,
        ),
        **modern_attacks(eps=(0.1, 0.2, 0.3)),
    },
    "cifar10": in_levels(
        {
            **paper_attacks(
                fgsm=tuple(n / 255 for n in (1, 2, 4, 8, 16)),
                bim=tuple(n / 255 for n in (1, 2, 4, 8)),
                bim_steps=(4, 10),
                jsma=(0.05,),
                carlini=(0, 10, 20),
                # ResNet-20 is fooled by changes so small that the default steps overshoot.
                learning_rate=0.01,
                initial_const=0.01,
                max_iter=60,
            ),
            **modern_attacks(eps=(2 / 255, 8 / 255), steps=30, restarts=1, square_steps=300),
        }
    ),
    "imagenette": in_levels(
        {
            **paper_attacks(
                fgsm=tuple(n / 255 for n in (1, 2, 4, 8)),
                bim=tuple(n / 255 for n in (1, 2, 4)),
                bim_steps=(4, 10),
                deepfool=0.02,
                jsma=(),  # a step of two values takes .14 s, 5 % of the values nine minutes
                carlini=(0, 10),
                learning_rate=0.005,
                initial_const=0.01,
                max_iter=30,
                search_steps=3,
            ),
            **modern_attacks(
                eps=(2 / 255,), steps=10, restarts=1, square_steps=100, hop_steps=None
            ),
        }
    ),
}


def of_kinds(attacks: Mapping[str, Attack], kinds: Sequence[str]) -> dict[str, Attack]:
    """Keep the attacks of these kinds, in the table's order."""
    return {name: attack for name, attack in attacks.items() if name.split()[0] in kinds}


def digits(seed: int, memory: joblib.Memory, **params) -> Problem:
    """Digits of 8×8 pixels: the splits and the victim of the quickstart; all images attacked."""
    X, y = load_digits_images()
    X_rest, X_test, y_rest, y_test = train_test_split(
        X, y, test_size=0.25, random_state=seed, stratify=y
    )
    X_train, X_new, y_train, _ = train_test_split(X_rest, y_rest, test_size=0.2, random_state=seed)
    weights = memory.cache(train_digits)(seed, X_train, y_train)
    images = X_train, y_train, X_new, X_test, y_test
    victim = load_victim(build_digits, weights)
    return with_attacks("digits", seed, memory, victim, images, **params)


def mnist(seed: int, memory: joblib.Memory, *, victim_epochs: int = 25, **params) -> Problem:
    """MNIST: the victim learns the first 50,000 training images, the last 10,000 calibrate."""
    X, y = load_mnist("train")
    weights = memory.cache(train_mnist)(seed, N_VICTIM, victim_epochs)
    images = X[:N_FIT], y[:N_FIT], X[N_VICTIM:], *load_mnist("test")
    victim = load_victim(build_mnist, weights)
    # FGSM is cheap, and of a weak attack few succeed.
    return with_attacks("mnist", seed, memory, victim, images, **{"from_all": ("FGSM",), **params})


def cifar10(seed: int, memory: joblib.Memory, *, n_fit: int = N_FIT, **params) -> Problem:
    """CIFAR-10: a pretrained ResNet-20; the seed draws the test images that calibrate."""
    images = *load_cifar10("train", n_samples=n_fit), *calibration_split("cifar10", seed)
    return with_attacks("cifar10", seed, memory, read_resnet(), images, **params)


def imagenette(seed: int, memory: joblib.Memory, **params) -> Problem:
    """Ten classes of ImageNet: EfficientNet-Lite0; the seed draws the images that calibrate."""
    images = *load_imagenette("train"), *calibration_split("imagenette", seed)
    return with_attacks("imagenette", seed, memory, read_efficientnet(), images, **params)


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "imagenette": imagenette,
}


def calibration_split(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images to calibrate on, and images to test on with their classes, none of them in training.

    Of ImageNet these are the images of the validation set.
    """
    X, y = load_cifar10("test") if name == "cifar10" else load_imagenette("val")
    order = np.random.default_rng(seed).permutation(len(y))
    new, test = order[: N_CALIBRATION[name]], order[N_CALIBRATION[name] :]
    return X[new], X[test], y[test]


def with_attacks(
    name: str,
    seed: int,
    memory: joblib.Memory,
    victim: nn.Module,
    images: Images,
    *,
    n_attacked: int = 500,
    kinds: Sequence[str] = KINDS,
    attacks: Mapping[str, Attack] | None = None,
    from_all: Sequence[str] = (),
    verbose: bool = False,
) -> Problem:
    """Attack test images that the victim classifies rightly.

    Parameters
    ----------
    name, seed : str, int
        The problem's.
    memory : joblib.Memory
        Cache.
    victim : nn.Module
        Images → logits.
    images : tuple
        The arrays of a `Problem`, from ``X_fit`` to ``y_test``.
    n_attacked : int, default=500
        Number of images to attack.
    kinds : sequence of str
        Attacks to run, by the first word of their names.
    attacks : mapping of str to Attack, optional
        Suite to choose from; by default the problem's own.
    from_all : sequence of str, default=()
        Kinds that start from every right image.
    verbose : bool, default=False
        Whether to show a progress bar.
    """
    X_test, y_test = images[-2:]
    wrapped = as_art_classifier(victim, X_test.shape[1:], 10, clip_values=(0, 1))
    right = np.flatnonzero(predict(victim, X_test) == y_test)
    rows = np.random.default_rng(seed).permutation(right)
    suite = of_kinds(ATTACKS[name] if attacks is None else attacks, kinds)
    found = {}
    for attack, how in suite.items():
        kind = attack.split()[0]
        start = rows if kind in from_all else rows[:n_attacked]
        result = run_attacks(
            wrapped,
            {attack: how},
            X_test[start],
            y_test[start],
            batch_size=batch_of(X_test),
            memory=memory,
            verbose=verbose,
        )[attack]
        found[attack] = Successes.of(result, start)
    return Problem(name, seed, victim, *images, rows, found)

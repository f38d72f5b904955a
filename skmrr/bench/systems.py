"""The detectors that are compared, ours and others'.

Each is as its paper has it, as far as clean images allow; docstrings say where they deviate.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import joblib
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn

from skmrr import persistence
from skmrr.base import BaseDetector
from skmrr.baselines import (
    APEGANDetector,
    CPRDetector,
    EfficientDefensesDetector,
    EnergyDetector,
    FeatureSqueezingDetector,
    KernelDensityDetector,
    LIDDetector,
    MagNetDetector,
    MahalanobisDetector,
    MaxSoftmaxDetector,
    NearestNeighborsDetector,
    PIDDetector,
)
from skmrr.bench import challenge_files
from skmrr.bench.architectures import (
    build_certified,
    build_colour_autoencoder,
    build_small_certified,
)
from skmrr.bench.augmentation import Augmented
from skmrr.bench.images import load_cifar10, load_mnist
from skmrr.bench.problems import N_VICTIM, Problem
from skmrr.bench.victims import read_resnet
from skmrr.defenders import (
    CertifiedDefender,
    LatentDefender,
    NoiseDefender,
    default_defenders,
)
from skmrr.defenders.defaults import default_template
from skmrr.ensemble import MRREnsemble
from skmrr.nn.placement import seeded
from skmrr.nn.replica import LatentMap

ENSEMBLE = "MRREnsemble"
WITH_NOISE = "MRREnsemble, with noise members"
CERTIFIED = "CertifiedDefender"
HARDENED = "LatentDefender, hardened"
PID, ROBUST_PID = "PID", "PID, robust"
OURS = (ENSEMBLE, WITH_NOISE, CERTIFIED, HARDENED)
DETECTORS = (
    *OURS,
    *("MagNet", "Efficient Defenses", "APE-GAN", "Mahalanobis", "LID", "kernel density", "k-NN"),
    *("feature squeezing", "max-softmax", "energy", PID, ROBUST_PID, "CPR"),
)
# On colour images intervals bound nothing; on large ones a CPU affords one trained rival. A
# hardened copy is published of one victim.
LEFT_OUT = {
    "digits": {HARDENED},
    "mnist": {HARDENED},
    "cifar10": {CERTIFIED},
    "imagenette": {CERTIFIED, HARDENED, "Efficient Defenses", "APE-GAN", PID, ROBUST_PID, "CPR"},
}
# A quantile's gradient hides noise members from Carlini's attack: table 2 leaves them out.
TABLE2 = (ENSEMBLE, CERTIFIED, "MagNet", "Efficient Defenses", "APE-GAN")


@dataclass(frozen=True)
class Fitted:
    """A fitted and calibrated detector."""

    detector: BaseDetector
    fit_seconds: float
    """Wall-clock time of fit and calibration."""


def detectors_on(name: str) -> list[str]:
    """Names of the detectors that are compared on a problem, ours first."""
    return [detector for detector in DETECTORS if detector not in LEFT_OUT.get(name, ())]


def unfitted(
    problem: Problem, *, names: list[str] | None = None, quick: bool = False
) -> dict[str, BaseDetector]:
    """Detectors to compare on a problem, by name, ours first.

    Parameters
    ----------
    problem : Problem
        Its victim is theirs.
    names : list of str, optional
        Detectors that are wanted, by default all: files that others need are not read.
    quick : bool, default=False
        Whether to train everything for a moment only.
    """
    shared: dict[str, Any] = {
        "classifier": problem.victim,
        "clip_values": (0, 1),
        "calibration_fraction": 0,
        # Where the victim is given, the seed draws the images; networks are trained once for all.
        "random_state": problem.seed if problem.name in ("digits", "mnist") else 0,
    }
    detectors = _ours(problem, shared, quick) | _trained_rivals(problem, shared, quick)
    layers, own = LAYERS[problem.name], RIVALS[problem.name]
    wanted = detectors_on(problem.name) if names is None else names
    if HARDENED in wanted:
        detectors[HARDENED] = LatentDefender(_hardened(problem.victim), realign=False, **shared)
    # The shallower peers fit by looking at the training rows once.
    return detectors | {
        "Mahalanobis": MahalanobisDetector(layer=layers, **shared),
        "LID": LIDDetector(layer=layers, **shared, **own.get("LID", {})),
        "kernel density": KernelDensityDetector(**shared),
        "k-NN": NearestNeighborsDetector(**shared),
        "feature squeezing": FeatureSqueezingDetector(**shared, **own["feature squeezing"]),
        "max-softmax": MaxSoftmaxDetector(**shared),
        "energy": EnergyDetector(**shared),
        **_second_looks(problem, shared, wanted, quick),
    }


# Outputs of the victims' stages, down to the input of the last linear layer.
LAYERS = {
    "digits": ["1", "3", "7"],
    "mnist": ["2", "5", "8", "11"],
    "cifar10": ["layer1", "layer2", "layer3"],
    "imagenette": [*(f"features.network._blocks.{n}" for n in (2, 4, 10, 14)), "features"],
}
# Trained from scratch as published, where that is cheap. On colour images finer noise and weaker
# attacks. A discriminator with the paper's say leaves a generator of tiny or colour images nothing
# else to learn. Squeezers are those of the paper for each data set.
RIVALS: dict[str, dict[str, dict]] = {
    "digits": {
        "Efficient Defenses": {"from_scratch": True, "max_epochs": 60},
        "APE-GAN": {"adversarial_weight": 0.05, "max_epochs": 30},
        "feature squeezing": {"bit_depth": 1},
        PID: {"max_epochs": 30},
        ROBUST_PID: {"eps": 0.15, "max_epochs": 30},
        "CPR": {"eps": 0.1, "n_steps": 20},
    },
    "mnist": {
        "Efficient Defenses": {"from_scratch": True, "max_epochs": 15},
        "feature squeezing": {"bit_depth": 1},
        PID: {"max_epochs": 10},
        ROBUST_PID: {"eps": 0.3, "max_epochs": 10},
        "CPR": {"eps": 0.1, "n_steps": 20},
    },
    "cifar10": {
        "MagNet": {"noise_scale": 0.025, "max_epochs": 15, "learning_rate": 3e-3},
        "Efficient Defenses": {"noise_scale": 0.05, "max_epochs": 3, "learning_rate": 3e-4},
        "APE-GAN": {"eps": 8 / 255, "adversarial_weight": 0.001, "max_epochs": 3},
        "feature squeezing": {"non_local_means": (13, 3, 2)},
        ROBUST_PID: {"eps": 4 / 255, "max_epochs": 4, "learning_rate": 1e-3},
        "CPR": {"eps": 0.0055, "n_steps": 10},
    },
    "imagenette": {
        "MagNet": {
            "noise_scale": 0.025,
            "max_epochs": 3,
            "learning_rate": 3e-3,
            "training_batch_size": 4,
        },
        "LID": {"pooling": "mean"},
        "feature squeezing": {"non_local_means": (11, 3, 4)},
    },
}


def fit_all(
    problem: Problem,
    memory: joblib.Memory,
    *,
    names: list[str] | None = None,
    quick: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Fitted]:
    """Fit detectors on a problem's clean images, and calibrate them on images new to the victim.

    Parameters
    ----------
    problem : Problem
        Where its attacks come from does not matter: no detector sees them.
    memory : joblib.Memory
        Cache of fitted detectors.
    names : list of str, optional
        Which detectors, by default all; unknown names raise a ValueError.
    quick : bool, default=False
        As in `unfitted`.
    progress : callable, optional
        Told what begins.
    """
    known = detectors_on(problem.name)
    names = known if names is None else names
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"There is no detector {unknown} on {problem.name}; there are {known}.")
    detectors = unfitted(problem, names=names, quick=quick)
    fitted = {}
    for name in [name for name in known if name in names]:
        progress(f"{problem.name}, seed {problem.seed}: {name}")
        source = ENSEMBLE if name == WITH_NOISE else name
        rows = fit_rows(problem, source, quick=quick)
        fit = memory.cache(fit_one).call_and_shelve(detectors[source], *rows)
        detector, seconds = fit.get()  # as read back, so that its hash is that of later runs
        start = time.perf_counter()
        if name == WITH_NOISE:
            detector = with_noise(detector, problem)
        detector.calibrate(problem.X_calibration)
        fitted[name] = Fitted(detector, seconds + time.perf_counter() - start)
    return {name: fitted[name] for name in names}


def fit_one(detector: BaseDetector, X, y) -> tuple[BaseDetector, float]:
    """Fit a clone of a detector; return it and the seconds that it took."""
    start = time.perf_counter()
    detector = clone(detector).fit(X, y)
    return detector, time.perf_counter() - start


def fit_rows(problem: Problem, name: str, *, quick: bool = False) -> tuple:
    """Clean images with their classes that a detector learns from."""
    # as many as the victim has
    if problem.name == "mnist" and name == CERTIFIED and not quick:
        return load_mnist("train", n_samples=N_VICTIM)
    if problem.name == "cifar10" and name == ENSEMBLE and not quick:
        X, y = load_cifar10("train", n_samples=N_VICTIM)
        # as ResNets are trained there (He et al. 2016, section 4.2)
        return Augmented(X, shift=4, mirror=True), y
    if problem.name == "mnist" and name == ENSEMBLE:
        # Shown every digit in its place alone, the map finds a shift by one pixel odd.
        return Augmented(problem.X_fit, shift=1), problem.y_fit
    return problem.X_fit, problem.y_fit


def with_noise(ensemble: MRREnsemble, problem: Problem) -> MRREnsemble:
    """Ensemble of the same fitted members, and noise members beside them."""
    fitted = zip(ensemble.named_defenders_.items(), ensemble.weights_, strict=True)
    members = [(name, FrozenEstimator(member), weight) for (name, member), weight in fitted]
    noise = [
        member for member in default_defenders(noise=True) if isinstance(member[1], NoiseDefender)
    ]
    other = clone(ensemble).set_params(defenders=[*members, *noise], estimator=None)
    return other.fit(problem.X_fit, problem.y_fit)


def _ours(problem: Problem, shared: dict, quick: bool) -> dict[str, BaseDetector]:
    template = default_template(problem.victim)
    if problem.name == "cifar10":
        template.set_params(max_epochs=4, training_batch_size=128)
    if quick and problem.name != "imagenette":  # which trains nothing
        template.set_params(max_epochs=2)
    ensemble = MRREnsemble(estimator=template, **shared)
    if CERTIFIED not in detectors_on(problem.name):
        return {ENSEMBLE: ensemble}
    build, certified = CERTIFIED_PARAMS[problem.name]
    network = _drawn(build)
    certified = certified | ({"max_epochs": 2} if quick else {})
    return {
        ENSEMBLE: ensemble,
        CERTIFIED: CertifiedDefender(network, **certified, **shared),
    }


def _drawn(build: Callable[[], nn.Module]) -> nn.Module:
    """Network with the same fresh weights in each process, as a cache hashes them."""
    with seeded(0):
        return build()


def _hardened(victim: nn.Module) -> LatentMap:
    """Copy of the victim on CIFAR-10 whose training takes hours, as the challenge publishes it."""
    path = challenge_files.paths_of("cifar10")[0]
    return persistence.load(path, classifier=victim).latent_map_


CERTIFIED_PARAMS: dict[str, tuple] = {
    "digits": (
        build_small_certified,
        {
            "exploration_radius": 0.15,
            "certified_radius": 0.05,
            "learning_rate": 2e-3,
            "max_epochs": 60,
            "training_batch_size": 32,
        },
    ),
    "mnist": (
        build_certified,
        {
            "exploration_radius": 0.33,
            "certified_radius": 0.1,
            "learning_rate": 2e-3,
            "max_epochs": 24,
            "training_batch_size": 128,
        },
    ),
}


def _second_looks(
    problem: Problem, shared: dict, names: list[str], quick: bool
) -> dict[str, BaseDetector]:
    """Rivals that ask another network, or the victim about the surroundings of a row."""
    own = RIVALS[problem.name]
    short = {"max_epochs": 1} if quick else {}
    plain, robust = own.get(PID, {}) | short, own.get(ROBUST_PID, {}) | short
    if problem.name == "cifar10" and PID in names:
        # Of another architecture, and trained on the same images by others
        plain = {"auxiliary": read_resnet(56), "max_epochs": 0}
    if problem.name == "cifar10":
        robust |= {"auxiliary": problem.victim}  # fresh weights would take a day
    rivals: dict[str, BaseDetector] = {
        PID: PIDDetector(**shared, **plain),
        ROBUST_PID: PIDDetector(**shared, **robust),
        "CPR": CPRDetector(**shared, **own.get("CPR", {})),
    }
    return {name: rival for name, rival in rivals.items() if name in names}


def _trained_rivals(problem: Problem, shared: dict, quick: bool) -> dict[str, BaseDetector]:
    """Rivals that train networks."""
    rivals: dict[str, type[BaseDetector]] = {
        "MagNet": MagNetDetector,
        "Efficient Defenses": EfficientDefensesDetector,
        "APE-GAN": APEGANDetector,
    }
    own = RIVALS[problem.name]
    if problem.X_fit.shape[1] == 3:
        own = own | {"MagNet": {"autoencoder": _drawn(build_colour_autoencoder), **own["MagNet"]}}
    short = {"max_epochs": 1} if quick else {}
    return {
        name: kind(**shared, **(own.get(name, {}) | short))
        for name, kind in rivals.items()
        if name in detectors_on(problem.name)
    }

"""What a report measures, on rows that a detector has not seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from skmrr.attacks import SelectivePGD, adaptive_suite, carlini_l2
from skmrr.base import BaseDetector
from skmrr.evaluation import (
    AdaptiveEvaluation,
    DetectionEvaluation,
    Successes,
    evaluate_adaptive,
    evaluate_detection,
    flag_rates,
)
from skmrr.evaluation.attacked_rows import asked, classifier_of, clip_values_of

if TYPE_CHECKING:
    import pandas as pd

N_TARGETS = 2  # wrong classes that each attack tries, the likeliest first
CONFIDENCES = (0.0, 5.0)  # κ of Carlini's attack
SEARCH_STEPS = 4  # for its weight


@dataclass(frozen=True)
class Effort:
    """How much an attacker tries."""

    n_attacked: int
    """Rows that attacks on the classifier begin from."""
    n_adaptive: int
    """Rows that attacks on classifier and detector begin from."""
    steps: int
    eps: Sequence[float]
    """Radii of the balls, in the units of the rows."""


@dataclass(frozen=True)
class Measures:
    """Outcome of `measure`."""

    scores: np.ndarray
    """Of the clean rows."""
    answers: np.ndarray
    """The classifier's decisions for them."""
    detection: DetectionEvaluation | None
    """None where no attack fooled the classifier."""
    harmless: "pd.DataFrame | None"
    """None where rows are no images."""
    adaptive: AdaptiveEvaluation


def measure(
    detector: BaseDetector,
    X: np.ndarray,
    y: np.ndarray,
    effort: Effort,
    progress: Callable[[str], None],
) -> Measures:
    """Score clean rows, change them harmlessly, and attack some of them.

    Parameters
    ----------
    detector : BaseDetector
        Fitted and calibrated.
    X : ndarray of shape (n_samples, …)
        Rows that it has not seen.
    y : ndarray of shape (n_samples,)
        Their true classes.
    effort : Effort
        How much the attacker tries.
    progress : callable
        Told what comes next.
    """
    rates = [detector.security_parameter]
    progress("clean rows")
    scores, answers = detector.score_samples(X), asked(detector, X, y)[2].cpu().numpy()
    progress("attacks on the classifier")
    attacks = attack_classifier(detector, X, y, effort)
    detection = None
    if any(len(attack.X) for attack in attacks.values()):
        detection = evaluate_detection(
            {"detector": detector}, X, y, attacks, channels={"raw": None}, security_parameters=rates
        )
    progress("harmless changes")
    harmless = None
    if are_images(X):
        harmless = flag_rates({"detector": detector}, X, y, security_parameters=rates)
    progress("attacks on classifier and detector")
    suite = adaptive_suite(effort.steps, n_targets=N_TARGETS)
    if len(np.unique(answers)) < len(detector.classes_):  # no row would guide to some classes
        suite = {
            name: attack
            for name, attack in suite.items()
            if not getattr(attack, "needs_guides", True)
        }
    adaptive = evaluate_adaptive(
        detector,
        X,
        y,
        eps=effort.eps,
        attacks=suite,
        security_parameters=rates,
        n_attacked=effort.n_adaptive,
    )
    return Measures(scores, answers, detection, harmless, adaptive)


def attack_classifier(
    detector: BaseDetector, X: np.ndarray, y: np.ndarray, effort: Effort
) -> dict[str, Successes]:
    """Attack the classifier alone, which is all that the attacker knows of."""
    x, labels, answers = asked(detector, X, y)
    rows = torch.nonzero(answers == labels)[:, 0][: effort.n_attacked]
    x, labels, positions = x[rows], labels[rows], rows.cpu().numpy()
    network, bounds = classifier_of(detector).network, tuple(clip_values_of(detector))
    pgd = SelectivePGD(steps=effort.steps, start="clean", n_targets=N_TARGETS)
    attacks = {"one step": replace(pgd, steps=1, step_size=1.0), "PGD": pgd}
    found = {
        f"{name}, ε = {eps:g}": attack(network, x, labels, eps=eps, clip_values=bounds)
        for eps in effort.eps
        for name, attack in attacks.items()
    }
    for confidence in CONFIDENCES:
        found[f"Carlini-L2, κ = {confidence:g}"] = carlini_l2(
            network,
            x,
            labels,
            confidence=confidence,
            clip_values=bounds,
            search_steps=SEARCH_STEPS,
            max_iter=effort.steps,
        )
    return {name: Successes.of(result, positions) for name, result in found.items()}


def are_images(X: np.ndarray) -> bool:
    """Whether rows can be shown, and come as a JPEG: (channels, height, width), grey or colour."""
    return X.ndim == 4 and X.shape[1] in (1, 3)

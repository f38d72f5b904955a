"""Attacks in torch, batched: on a classifier, and on a classifier with its detector."""

from skmrr.attacks.carlini import carlini_l2
from skmrr.attacks.guides import Guides
from skmrr.attacks.projected import (
    FeatureMatchingPGD,
    LagrangianPGD,
    OrthogonalPGD,
    ProjectedGradient,
    SelectivePGD,
    Transfer,
)
from skmrr.attacks.result import AttackResult, worst_case
from skmrr.attacks.suite import adaptive_suite

__all__ = [
    "AttackResult",
    "FeatureMatchingPGD",
    "Guides",
    "LagrangianPGD",
    "OrthogonalPGD",
    "ProjectedGradient",
    "SelectivePGD",
    "Transfer",
    "adaptive_suite",
    "carlini_l2",
    "worst_case",
]

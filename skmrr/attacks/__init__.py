"""Attacks in torch, batched: on a classifier, and on a classifier with its detector."""

from skmrr.attacks.auto_pgd import AutoPGD
from skmrr.attacks.carlini import carlini_l2
from skmrr.attacks.directions import (
    FeatureMatchingPGD,
    LagrangianPGD,
    OrthogonalPGD,
    SelectivePGD,
)
from skmrr.attacks.expectation import OverChannels
from skmrr.attacks.guides import Guides
from skmrr.attacks.projected import ProjectedGradient
from skmrr.attacks.rays import RayS
from skmrr.attacks.result import AttackResult, worst_case
from skmrr.attacks.suite import adaptive_suite
from skmrr.attacks.transfer import Transfer

__all__ = [
    "AttackResult",
    "AutoPGD",
    "FeatureMatchingPGD",
    "Guides",
    "LagrangianPGD",
    "OrthogonalPGD",
    "OverChannels",
    "ProjectedGradient",
    "RayS",
    "SelectivePGD",
    "Transfer",
    "adaptive_suite",
    "carlini_l2",
    "worst_case",
]

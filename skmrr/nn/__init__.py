"""Torch modules and functions under the estimators; nothing here imports scikit-learn."""

from skmrr.nn.densities import ClassMoments, QuadraticDensity
from skmrr.nn.detector import DetectorModule, LatentStatistic
from skmrr.nn.hooks import captured, evaluating
from skmrr.nn.replica import CosineMap, LatentMap, Replica, replicate
from skmrr.nn.rows import Rows

__all__ = [
    "ClassMoments",
    "CosineMap",
    "DetectorModule",
    "LatentMap",
    "LatentStatistic",
    "QuadraticDensity",
    "Replica",
    "Rows",
    "captured",
    "evaluating",
    "replicate",
]

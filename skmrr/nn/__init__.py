"""Torch modules and functions under the estimators; nothing here imports scikit-learn."""

from skmrr.nn.detector import DetectorModule
from skmrr.nn.replica import LatentMap, Replica, replicate

__all__ = ["DetectorModule", "LatentMap", "Replica", "replicate"]

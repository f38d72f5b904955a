"""Torch modules and functions under the estimators; nothing here imports scikit-learn."""

from skmrr.nn.defended import DefendedClassifier, LabelAwareClassifier
from skmrr.nn.detector_module import DetectorModule, Evidence
from skmrr.nn.dictionary_learning import learn_dictionary
from skmrr.nn.intervals import IntervalMap
from skmrr.nn.replica import LatentMap, Replica, replicate
from skmrr.nn.sparse_coding import SparseCoder, SparseCodes
from skmrr.nn.statistic import Statistic
from skmrr.nn.tapped import Pass, Tapped

__all__ = [
    "DefendedClassifier",
    "DetectorModule",
    "Evidence",
    "IntervalMap",
    "LabelAwareClassifier",
    "LatentMap",
    "Pass",
    "Replica",
    "SparseCoder",
    "SparseCodes",
    "Statistic",
    "Tapped",
    "learn_dictionary",
    "replicate",
]

"""Torch modules and functions under the estimators; nothing here imports scikit-learn."""

from skmrr.nn.defended import DefendedClassifier, LabelAwareClassifier
from skmrr.nn.detector import DetectorModule
from skmrr.nn.dictionary_learning import learn_dictionary
from skmrr.nn.ensemble import EnsembleModule
from skmrr.nn.replica import LatentMap, Replica, replicate
from skmrr.nn.sparse_coding import SparseCoder, SparseCodes

__all__ = [
    "DefendedClassifier",
    "DetectorModule",
    "EnsembleModule",
    "LabelAwareClassifier",
    "LatentMap",
    "Replica",
    "SparseCoder",
    "SparseCodes",
    "learn_dictionary",
    "replicate",
]

"""Calibrated detection of adversarial inputs to torch classifiers, as scikit-learn estimators."""

from skmrr.base import BaseDetector, StatisticDetector
from skmrr.calibration import ConformalSurvival
from skmrr.defenders import (
    CertifiedDefender,
    InputDictionaryDefender,
    LatentDefender,
    MarginDetector,
    NoiseDefender,
    default_defenders,
)
from skmrr.ensemble import MRREnsemble
from skmrr.exporting import Agreement, export
from skmrr.features import FeatureExtractor
from skmrr.monitor import RiskMonitor
from skmrr.nn.logits import LogitsOf
from skmrr.nn.replica import replicate
from skmrr.persistence import load, save
from skmrr.threshold import FixedThresholdDetector

__version__ = "0.2.0"

__all__ = [
    "Agreement",
    "BaseDetector",
    "CertifiedDefender",
    "ConformalSurvival",
    "FeatureExtractor",
    "FixedThresholdDetector",
    "InputDictionaryDefender",
    "LatentDefender",
    "LogitsOf",
    "MRREnsemble",
    "MarginDetector",
    "NoiseDefender",
    "RiskMonitor",
    "StatisticDetector",
    "default_defenders",
    "export",
    "load",
    "replicate",
    "save",
]

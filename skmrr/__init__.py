"""Calibrated detection of adversarial inputs to torch classifiers, as scikit-learn estimators."""

from skmrr.base import BaseDetector
from skmrr.calibration import ConformalSurvival
from skmrr.dictionary import InputDictionaryDefender
from skmrr.ensemble import MRREnsemble
from skmrr.features import FeatureExtractor
from skmrr.latent import LatentDefender
from skmrr.nn.replica import replicate
from skmrr.noise import NoiseDefender
from skmrr.threshold import FixedThresholdDetector

__version__ = "0.1.0"

__all__ = [
    "BaseDetector",
    "ConformalSurvival",
    "FeatureExtractor",
    "FixedThresholdDetector",
    "InputDictionaryDefender",
    "LatentDefender",
    "MRREnsemble",
    "NoiseDefender",
    "replicate",
]

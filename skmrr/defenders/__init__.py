"""The detectors of this package, and which of them an ensemble takes by default."""

from skmrr.defenders.certified import CertifiedDefender
from skmrr.defenders.defaults import default_defenders
from skmrr.defenders.dictionary import InputDictionaryDefender
from skmrr.defenders.latent import LatentDefender
from skmrr.defenders.margin import MarginDetector
from skmrr.defenders.noise import NoiseDefender

__all__ = [
    "CertifiedDefender",
    "InputDictionaryDefender",
    "LatentDefender",
    "MarginDetector",
    "NoiseDefender",
    "default_defenders",
]

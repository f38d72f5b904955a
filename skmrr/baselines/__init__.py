"""Detectors of other papers, under the same contract, to compare with."""

from skmrr.baselines.ape_gan import APEGANDetector
from skmrr.baselines.confidence import EnergyDetector, MaxSoftmaxDetector
from skmrr.baselines.consistent_prediction import CPRDetector
from skmrr.baselines.efficient_defenses import EfficientDefensesDetector
from skmrr.baselines.feature_squeezing import FeatureSqueezingDetector
from skmrr.baselines.kernel_density import KernelDensityDetector
from skmrr.baselines.lid import LIDDetector
from skmrr.baselines.magnet import MagNetDetector
from skmrr.baselines.mahalanobis import MahalanobisDetector
from skmrr.baselines.nearest_neighbours import NearestNeighborsDetector
from skmrr.baselines.prediction_inconsistency import PIDDetector

__all__ = [
    "APEGANDetector",
    "CPRDetector",
    "EfficientDefensesDetector",
    "EnergyDetector",
    "FeatureSqueezingDetector",
    "KernelDensityDetector",
    "LIDDetector",
    "MagNetDetector",
    "MahalanobisDetector",
    "MaxSoftmaxDetector",
    "NearestNeighborsDetector",
    "PIDDetector",
]

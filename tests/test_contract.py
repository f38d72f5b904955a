"""Every estimator against every check of scikit-learn, on 2-D input that it really fits."""

from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from skmrr import (
    FeatureExtractor,
    FixedThresholdDetector,
    InputDictionaryDefender,
    LatentDefender,
    MRREnsemble,
    NoiseDefender,
)
from skmrr.baselines import (
    APEGANDetector,
    EfficientDefensesDetector,
    EnergyDetector,
    FeatureSqueezingDetector,
    KernelDensityDetector,
    LIDDetector,
    MagNetDetector,
    MahalanobisDetector,
    MaxSoftmaxDetector,
    NearestNeighborsDetector,
    PIDDetector,
)

# The checks fit on ten rows and up: a coarse false-alarm rate that so few can promise, and
# short trainings. Everything else is as users get it.
coarse = {"security_parameter": 0.25, "calibration_fraction": 0.5}
small = {**coarse, "max_epochs": 2}

BASELINE_SCORES = [
    EnergyDetector(**coarse),
    FeatureSqueezingDetector(**coarse),
    KernelDensityDetector(**coarse),
    LIDDetector(**coarse, n_neighbors=3),
    MahalanobisDetector(**coarse),
    MahalanobisDetector(**coarse, statistic="class"),
    MaxSoftmaxDetector(**coarse),
    NearestNeighborsDetector(**coarse, n_neighbors=3),
]

ESTIMATORS = [
    *BASELINE_SCORES,
    FeatureExtractor(nn.Sequential(nn.Tanh()), layer="0"),
    FixedThresholdDetector(LatentDefender(**small, random_state=0), security_parameter=0.25),
    InputDictionaryDefender(**coarse),
    InputDictionaryDefender(**coarse, remove_mean=True, selection="ormp", n_atoms=20),
    LatentDefender(**small),
    LatentDefender(**coarse, density="gaussian", statistic="likelihood", realign=False),
    LatentDefender(**small, density="ppca", statistic="likelihood", exploration_radius=0.1),
    LatentDefender(**small, density="distance", statistic="likelihood", early_stopping=True),
    MRREnsemble(**coarse, estimator=LatentDefender(max_epochs=2)),
    MRREnsemble(
        **coarse,
        fusion="harmonic",
        defenders=[
            ("a", LatentDefender(max_epochs=2), 1),
            ("b", NoiseDefender(noise="sparse"), 0.5),
        ],
    ),
    NoiseDefender(**coarse),
    APEGANDetector(**small),
    EfficientDefensesDetector(**small),
    MagNetDetector(**small),
    PIDDetector(**small),
    PIDDetector(**small, eps=0.1),
]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_checks_are_not_vacuous():
    """No estimator opts out of the checks by its tags."""
    for estimator in ESTIMATORS:
        tags = estimator.__sklearn_tags__()
        assert not tags._skip_test
        assert not tags.no_validation
        assert tags.input_tags.two_d_array

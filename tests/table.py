"""One table of all detectors, for the properties that each of them must have."""

from dataclasses import dataclass

from sklearn.pipeline import make_pipeline
from torch import nn

from skmrr import (
    CertifiedDefender,
    FeatureExtractor,
    InputDictionaryDefender,
    LatentDefender,
    MarginDetector,
    MRREnsemble,
    NoiseDefender,
    default_defenders,
    replicate,
)
from skmrr.baselines import (
    APEGANDetector,
    CPRDetector,
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

SHARED = {"clip_values": (0, 1), "random_state": 0, "security_parameter": 0.05}
BRIEF = {"max_epochs": 1, **SHARED}
SMALL_DICTIONARY = {"patch_size": 4, "n_atoms": 24, "n_nonzero_coefs": 2, "n_patches": 500}


@dataclass(frozen=True)
class Case:
    """A detector of digits, by the classifier that it guards."""

    name: str
    build: object
    exports: bool = True
    """Whether all its parts are torch's, so that it can be exported."""
    compiles: bool = True
    """Whether ``torch.compile`` makes one graph of it."""
    has_gradient: bool = True
    """Whether its score changes smoothly with each pixel."""


def plain_network() -> nn.Sequential:
    """Network for a `CertifiedDefender`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def latent(statistic="margin", **params):
    """Build a LatentDefender on a replica of the classifier."""
    return lambda net: LatentDefender(
        replicate(net), classifier=net, statistic=statistic, **{**BRIEF, **params}
    )


def rival(kind, **params):
    """Build another detector."""
    return lambda net: kind(net, **{**SHARED, **params})


def ensemble_of_all(net):
    """Build an ensemble of members of every kind."""
    members = [
        ("replica", LatentDefender(replicate(net), max_epochs=1), 1),
        (
            "features",
            make_pipeline(
                FeatureExtractor(net, "5"), LatentDefender(max_epochs=1, statistic="likelihood")
            ),
            0.5,
        ),
        ("mahalanobis", MahalanobisDetector(net), 1),
        ("margin", MarginDetector(), 1),
    ]
    return MRREnsemble(net, defenders=members, **SHARED)


def default_ensemble(net):
    """Build the default ensemble, with two narrow members that are stacked."""
    template = LatentDefender(max_epochs=1)
    members = default_defenders(net, latent=template, n_latent=2, width=0.5)
    return MRREnsemble(net, defenders=members, **SHARED)


CASES = [
    Case("latent margin", latent()),
    Case("latent contrast", latent("contrast", exploration_radius=0.05)),
    Case("latent likelihood", latent("likelihood", density="gaussian")),
    Case(
        "certified",
        lambda net: CertifiedDefender(
            plain_network(), classifier=net, exploration_radius=0.05, **BRIEF
        ),
        compiles=False,  # torch.fx interprets its network, which torch.compile does not follow
    ),
    Case("margin", rival(MarginDetector)),
    Case("dense noise", rival(NoiseDefender), has_gradient=False),
    Case("sparse noise", rival(NoiseDefender, noise="sparse"), has_gradient=False),
    Case(
        "dictionary",
        rival(InputDictionaryDefender, **SMALL_DICTIONARY),
        exports=False,
        compiles=False,
    ),
    Case(
        "dictionary, relabel",
        rival(InputDictionaryDefender, statistic="relabel", **SMALL_DICTIONARY),
        exports=False,
        compiles=False,
    ),
    Case("default ensemble", default_ensemble),
    Case("ensemble of all", ensemble_of_all),
    Case("max-softmax", rival(MaxSoftmaxDetector)),
    Case("energy", rival(EnergyDetector)),
    Case("mahalanobis", rival(MahalanobisDetector, layer=["0", "4"])),
    Case("lid", rival(LIDDetector, layer=["4", "6:input"], n_neighbors=5)),
    Case("nearest neighbours", rival(NearestNeighborsDetector, n_neighbors=5)),
    Case("kernel density", rival(KernelDensityDetector)),
    Case("feature squeezing", rival(FeatureSqueezingDetector)),
    Case("magnet", rival(MagNetDetector, max_epochs=1)),
    Case("ape-gan", rival(APEGANDetector, max_epochs=1)),
    Case("efficient defenses", rival(EfficientDefensesDetector, max_epochs=1)),
    Case("pid", rival(PIDDetector, max_epochs=2)),
    Case("pid, robust", rival(PIDDetector, eps=0.1, max_epochs=2)),
    Case(
        "cpr",
        rival(CPRDetector, n_steps=4),
        exports=False,  # a search by gradients is no graph of rows
        compiles=False,
    ),
]

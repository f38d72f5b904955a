"""Oddness of a row under each class, read from a latent map."""

from abc import abstractmethod

from jaxtyping import Float, Int
from torch import Tensor

from skmrr.nn.densities import QuadraticDensity
from skmrr.nn.replica import LatentMap
from skmrr.nn.statistic import Statistic, against_best_other, against_others
from skmrr.nn.tapped import Pass


class LatentMargin(Statistic):
    """By how much the map's own logits z prefer another class: max_{j≠c} z_j − z_c.

    Parameters
    ----------
    latent_map : LatentMap
        Rows → unit features and logits.
    """

    def __init__(self, latent_map: LatentMap):
        super().__init__()
        self.latent_map = latent_map

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return the margin against each class."""
        return against_best_other(self.latent_map.features_and_logits(x)[1].double())

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the margin of each row against the class at its column."""
        return against_others(self.latent_map.features_and_logits(x)[1].double(), columns)


class _DensityStatistic(Statistic):
    """What a density of the latent vectors φ says.

    Parameters
    ----------
    latent_map : LatentMap
        Rows → unit features φ and logits.
    density : QuadraticDensity
        φ → log p(φ | c).
    """

    def __init__(self, latent_map: LatentMap, density: QuadraticDensity):
        super().__init__()
        self.latent_map = latent_map
        self.density = density

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return the statistic under each class."""
        return self.of_density(self.density(self.latent_map(x)))

    @abstractmethod
    def of_density(
        self, log_density: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, "batch classes"]:
        """Statistic under each class, from log p(φ | c)."""


class LatentLikelihood(_DensityStatistic):
    """−log p(φ | c), the published method."""

    def of_density(self, log_density):
        """Return −log p(φ | c)."""
        return -log_density


class LatentContrast(_DensityStatistic):
    """max_{j≠c} log p(φ | j) − log p(φ | c), the likelihood ratio."""

    def of_density(self, log_density):
        """Return the lead of the best other class."""
        return against_best_other(log_density)

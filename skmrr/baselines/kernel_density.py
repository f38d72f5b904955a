"""Kernel density of a row's features among those of its class."""

import math
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from skmrr._sklearn import Interval, StrOptions
from skmrr.baselines._feature_detector import FeatureDetector, Features
from skmrr.baselines._neighbours import Bank
from skmrr.nn.learnt_classes import LearntClasses
from skmrr.nn.statistic import Statistic
from skmrr.nn.tapped import Pass

MAX_BANDWIDTH_ROWS = 200  # of each class, that the bandwidth is chosen on
# Bandwidths to choose among, in units of the root mean square distance between rows of a class
CANDIDATES = np.geomspace(0.02, 1, 30)


class KernelDensityStatistic(Statistic):
    """Negative log-density of a row under each class, by Gaussian kernels.

    Parameters
    ----------
    features : Features
        Rows → features of one layer.
    banks : list of Tensor of shape (rows, dim), float64
        Features of the clean rows of each class.
    bandwidth : float
        Standard deviation h of the kernels.
    """

    def __init__(self, features: Features, banks: list[Tensor], bandwidth: float):
        super().__init__()
        self.features = features
        self.taps = features.taps
        self.bandwidth = bandwidth
        self.sizes = [len(bank) for bank in banks]
        self.bank = Bank(torch.cat(banks))  # class by class

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return the statistic of each row under each class, high = odd."""
        (of_layer,) = self.features(x, passed)
        return torch.stack([self._under(of_layer, c) for c in range(len(self.sizes))], dim=1)

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], passed: Pass
    ) -> Float[Tensor, " batch"]:
        """Return the statistic of each row under one class."""
        if torch.compiler.is_compiling():  # a graph has no loop over the classes that occur
            return super().at(x, columns, passed)
        (of_layer,) = self.features(x, passed)
        statistic = of_layer.new_empty(of_layer.shape[0])
        for c in columns.unique().tolist():
            statistic[columns == c] = self._under(of_layer[columns == c], c)
        return statistic

    def _under(self, features: Float[Tensor, "batch dim"], c: int) -> Float[Tensor, " batch"]:
        start = sum(self.sizes[:c])
        squared = self.bank.squared_distances(features, slice(start, start + self.sizes[c]))
        return -log_density(squared, self.bandwidth, self.sizes[c], features.shape[1])


def log_density(
    squared: Float[Tensor, "batch rows"], bandwidth: float, n_rows: int, dim: int
) -> Float[Tensor, " batch"]:
    """Log (1/n) Σ_i N(f; f_i, h² I) from the squared distances ‖f − f_i‖²."""
    kernels = -squared / (2 * bandwidth**2)
    normaliser = dim * math.log(bandwidth * math.sqrt(2 * math.pi)) + math.log(n_rows)
    return kernels.logsumexp(1) - normaliser


def choose_bandwidth(banks: list[Float[Tensor, "rows dim"]]) -> float:
    """Bandwidth under which rows are likeliest given the others of their class.

    1 if no class has rows that differ.
    """
    banks = [bank for bank in banks if len(bank) > 1]
    if not banks:
        return 1.0
    squares = [torch.cdist(bank, bank).square() for bank in banks]  # rows rows of each class
    size = math.sqrt(float(torch.cat([square.flatten() for square in squares]).mean()))
    if size == 0:
        return 1.0
    for square in squares:
        square.fill_diagonal_(torch.inf)  # a row says nothing of its own likelihood
    dim = banks[0].shape[1]

    def likelihood(bandwidth: float) -> float:
        return sum(float(log_density(s, bandwidth, len(s) - 1, dim).sum()) for s in squares)

    return max((size * candidate for candidate in CANDIDATES.tolist()), key=likelihood)


@dataclass(eq=False, repr=False)
class KernelDensityDetector(FeatureDetector):
    """Detector by the density of a row's features among clean rows of the decided class.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    layer : str, optional
        Dotted name of the layer whose output is looked at; by default the input of the last linear
        layer.
    pooling : {"flatten", "mean"}, default="mean"
        Whether to keep every activation of a convolution or to average over positions.
    bandwidth : "auto" or float, default="auto"
        Standard deviation of the Gaussian kernels. ``"auto"`` takes, of 30 bandwidths, the one
        under which up to 200 rows of each class are likeliest, each given the others.
    max_rows : int, default=1000
        Training rows of each class that carry a kernel; more are sampled down.

    Attributes
    ----------
    bandwidth_ : float
        In use.

    See Also
    --------
    MahalanobisDetector : One Gaussian for each class.

    Notes
    -----
    Deviations from the paper. The statistic is the negative logarithm of the density, which ranks
    as the density does and does not vanish far from all rows. Not every training row carries a
    kernel. The paper chooses the bandwidth on the training rows' likelihood as well, by ten-fold
    cross-validation. It combines the density with the uncertainty under dropout, in a logistic
    regression trained on attacks: nothing of that is done here.

    References
    ----------
    R. Feinman, R. R. Curtin, S. Shintre, A. B. Gardner, "Detecting Adversarial Samples from
    Artifacts", arXiv:1703.00410, 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from skmrr.baselines import KernelDensityDetector
    >>> X, y = load_digits(return_X_y=True)
    >>> detector = KernelDensityDetector(random_state=0).fit(X[:1500], y[:1500])
    >>> noisy = X[1500:] + np.random.default_rng(0).normal(0, 8, X[1500:].shape)
    >>> bool((detector.predict(noisy) == -1).mean() > 0.9)
    True
    """

    _: KW_ONLY
    layer: str | None = None
    bandwidth: float | Literal["auto"] = "auto"
    max_rows: int = 1000

    _parameter_constraints: ClassVar[dict] = {
        **FeatureDetector._parameter_constraints,
        "layer": [str, None],
        "bandwidth": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "max_rows": [Interval(Integral, 1, None, closed="left")],
    }

    def _fit_statistic(self, rows, columns, train, random_state):
        features = self._features(rows)
        shuffled = random_state.permutation(train)
        learnt = LearntClasses(columns, train, len(self.classes_))
        kept = [shuffled[columns[shuffled] == c] for c in learnt.learnt]
        banks = [self._read_features(features, rows, k[: self.max_rows])[0] for k in kept]
        bandwidth = self.bandwidth
        if bandwidth == "auto":
            bandwidth = choose_bandwidth([bank[:MAX_BANDWIDTH_ROWS] for bank in banks])
        self.bandwidth_ = bandwidth
        statistic = KernelDensityStatistic(features, banks, self.bandwidth_)
        return learnt.widen(statistic).to(self._device())

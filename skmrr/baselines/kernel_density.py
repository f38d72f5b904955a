"""Kernel density of a row's features among those of its class."""

import math
from numbers import Integral, Real

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from skmrr.baselines._features import AskedForFeatures, FeatureDetector, Features
from skmrr.baselines._neighbours import Bank

MAX_BANDWIDTH_ROWS = 200  # of each class, that the bandwidth is chosen on
# Bandwidths to choose among, in units of the root mean square distance between rows of a class
CANDIDATES = np.geomspace(0.02, 1, 30)


class KernelDensityStatistic(AskedForFeatures, nn.Module):
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
        self.bandwidth = bandwidth
        self.sizes = [len(bank) for bank in banks]
        self.bank = Bank(torch.cat(banks))  # class by class

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Return the statistic of each row under each class, high = odd."""
        (of_layer,) = self.features(x)
        return torch.stack([self._under(of_layer, c) for c in range(len(self.sizes))], dim=1)

    def at(
        self, x: Tensor, columns: Int[Tensor, " batch"], features: list[Tensor] | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the statistic of each row under one class."""
        (of_layer,) = self.seen(x, features)
        statistic = of_layer.new_empty(len(of_layer))
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


class KernelDensityDetector(FeatureDetector):
    """Detector by the density of a row's features among clean rows of the decided class.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits. Without it the rows of X, flattened, are the features.
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
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; other values raise an error.
    security_parameter : float, default=0.01
        Share of clean rows that may be flagged. Changing it on a fitted detector changes the
        verdicts and nothing else.
    calibration_fraction : float, default=0.2
        Share of the clean rows that `fit` holds out to calibrate on; 0 leaves that to `calibrate`.
    input_shape : tuple of int, optional
        Shape of each row of a 2-D X for the classifier, e.g. (channels, height, width).
    batch_size : int, default=128
        Rows per pass. Scores do not depend on it.
    device : str or torch.device, default="auto"
        Where to compute; ``"auto"`` is where `classifier` lives, else the CPU.
    random_state : int, RandomState or None, default=None
        Seed of the split and of the rows kept.

    Attributes
    ----------
    bandwidth_ : float
        In use.
    module_ : skmrr.nn.DetectorModule
        The fitted detector, ``forward(x, labels)`` → score, differentiable.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    offset_ : float
        Threshold on the score, log(`security_parameter`).
    n_features_in_, input_shape_ : int, tuple of int
        Values in a row of X; shape of a row as the classifier sees it.

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

    _parameter_constraints: dict = {
        **FeatureDetector._parameter_constraints,
        "layer": [str, None],
        "bandwidth": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "max_rows": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        classifier=None,
        *,
        layer=None,
        pooling="mean",
        bandwidth="auto",
        max_rows=1000,
        clip_values=None,
        security_parameter=0.01,
        calibration_fraction=0.2,
        input_shape=None,
        batch_size=128,
        device="auto",
        random_state=None,
    ):
        self.classifier = classifier
        self.layer = layer
        self.pooling = pooling
        self.bandwidth = bandwidth
        self.max_rows = max_rows
        self.clip_values = clip_values
        self.security_parameter = security_parameter
        self.calibration_fraction = calibration_fraction
        self.input_shape = input_shape
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def _fit_statistic(self, rows, columns, train, random_state):
        features = self._features()
        shuffled = random_state.permutation(train)
        kept = [shuffled[columns[shuffled] == c] for c in range(len(self.classes_))]
        banks = [self._read_features(features, rows, k[: self.max_rows])[0] for k in kept]
        self.bandwidth_ = self.bandwidth
        if self.bandwidth == "auto":
            self.bandwidth_ = choose_bandwidth([bank[:MAX_BANDWIDTH_ROWS] for bank in banks])
        return KernelDensityStatistic(features, banks, self.bandwidth_).to(self._home())

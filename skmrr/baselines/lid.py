"""Local intrinsic dimensionality of a row among clean rows."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from skmrr._sklearn import Interval
from skmrr.baselines._feature_detector import (
    FeatureDetector,
    Features,
    LayerMean,
    sample_rows,
)
from skmrr.baselines._neighbours import Bank, check_neighbors
from skmrr.nn.statistic import ClassFreeStatistic
from skmrr.nn.tapped import Pass

MAX_STANDARDISED_ROWS = 500  # rows of the bank that say what is usual in a layer
CLOSEST = 1e-12  # distance, beside that of the k-th neighbour, that counts as none
ALIKE = 1e-12  # mean log-ratio of distances that counts as all of them being the same


class LIDStatistic(ClassFreeStatistic):
    """Logarithm of the local intrinsic dimensionality of a row, averaged over layers.

    Parameters
    ----------
    features : Features
        Rows → features of each layer.
    banks : list of Bank
        Features of clean rows in each layer.
    n_neighbors : int
        Neighbours k of the estimate.
    n_classes : int
        Number of classes.
    """

    def __init__(self, features: Features, banks: list[Bank], n_neighbors: int, n_classes: int):
        super().__init__(n_classes)
        self.features = features
        self.taps = features.taps
        self.banks = nn.ModuleList(banks)
        self.n_neighbors = n_neighbors
        self.layer_mean = LayerMean(torch.zeros(1, len(banks), dtype=torch.float64))

    def level(self, x: Tensor, passed: Pass) -> Float[Tensor, " batch"]:
        """Mean log-dimensionality of each row."""
        return self.layer_mean(self.log_dimensions(self.features(x, passed)))

    def log_dimensions(
        self, features: Sequence[Tensor], n_skipped: int = 0
    ) -> Float[Tensor, "batch layers"]:
        """Log-dimensionality in each layer, not counting the nearest `n_skipped` neighbours."""
        parts = []
        for bank, part in zip(self.banks, features, strict=True):
            assert isinstance(bank, Bank)
            positions = bank.search(part, n_skipped + self.n_neighbors)[:, n_skipped:]
            parts.append(log_dimension(bank.distances(part, positions)))
        return torch.stack(parts, dim=1)

    def standardise(self, features: list[Tensor]) -> None:
        """Measure what is usual in each layer for rows of the bank, each among the others."""
        batches = zip(*(part.split(64) for part in features), strict=True)
        self.layer_mean = LayerMean(torch.cat([self.log_dimensions(b, 1) for b in batches]))


def log_dimension(distances: Float[Tensor, "batch k"]) -> Float[Tensor, " batch"]:
    """Log of −((1/k) Σ_i log(r_i / r_k))⁻¹, equation 4 of the paper; r_k is the largest."""
    farthest = distances.amax(1, keepdim=True)
    ratios = distances / farthest.clamp_min(torch.finfo(distances.dtype).tiny)
    return -(-ratios.clamp_min(CLOSEST).log().mean(1)).clamp_min(ALIKE).log()


@dataclass(eq=False, repr=False)
class LIDDetector(FeatureDetector):
    """Detector by the local intrinsic dimensionality of a row among clean rows.

    How fast the number of neighbours grows with their distance tells the dimension of the space
    that they fill around a row. Clean rows lie in few dimensions; what leaves them sees its
    neighbours from outside, all at about the same distance, as in a space of many.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    layer : str or list of str, optional
        Dotted name(s) of the layer(s) whose output is looked at; by default the input of the last
        linear layer. The paper takes all layers.
    pooling : {"flatten", "mean"}, default="flatten"
        Whether to keep every activation, as the paper does, or to average over positions, which
        takes far less memory in convolutions.
    n_neighbors : int, default=20
        Neighbours k of the estimate, at least 2.
    max_rows : int, default=1000
        Training rows among which the neighbours are found; more are sampled down.

    See Also
    --------
    NearestNeighborsDetector : The distance itself.

    Notes
    -----
    Deviations from the paper. It looks for neighbours in a minibatch of 100 clean rows drawn anew;
    here they come from one fixed bank, so that a score does not depend on chance nor on the rows
    beside it. It feeds the estimates of all layers to a logistic regression trained on attacks;
    nothing but clean rows is used here: with several layers the logarithm of the dimensionality is
    standardised in each, on up to 500 rows of the bank, each among the others, and averaged. In
    one layer the logarithm ranks as the estimate does.

    A row that is in the bank itself finds itself at no distance and looks more normal than it is.
    Gradients pass the distances; the choice of the neighbours is piecewise constant.

    References
    ----------
    X. Ma, B. Li, Y. Wang, S. M. Erfani, S. Wijewickrema, G. Schoenebeck, D. Song, M. E. Houle,
    J. Bailey, "Characterizing Adversarial Subspaces Using Local Intrinsic Dimensionality", ICLR
    2018.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from skmrr.baselines import LIDDetector
    >>> X, y = load_digits(return_X_y=True)
    >>> detector = LIDDetector(random_state=0).fit(X[:1500], y[:1500])
    >>> noisy = X[1500:] + np.random.default_rng(0).normal(0, 8, X[1500:].shape)
    >>> bool((detector.risk(noisy) > detector.risk(X[1500:])).mean() > 0.9)
    True
    """

    _: KW_ONLY
    pooling: str = "flatten"
    n_neighbors: int = 20
    max_rows: int = 1000

    _parameter_constraints: ClassVar[dict] = {
        **FeatureDetector._parameter_constraints,
        "n_neighbors": [Interval(Integral, 2, None, closed="left")],
        "max_rows": [Interval(Integral, 1, None, closed="left")],
    }

    def _fit_statistic(self, rows, columns, train, random_state):
        check_neighbors(self.n_neighbors, len(train), self.max_rows)
        features = self._features(rows)
        kept = self._read_features(features, rows, sample_rows(train, self.max_rows, random_state))
        banks = [Bank(part) for part in kept]
        statistic = LIDStatistic(features, banks, self.n_neighbors, len(self.classes_))
        if len(banks) > 1:
            rows_of_all = np.arange(len(kept[0]))  # not the first ones, which may be of one class
            some = sample_rows(rows_of_all, MAX_STANDARDISED_ROWS, random_state)
            statistic.standardise([part[some] for part in kept])
        return statistic.to(self._device())

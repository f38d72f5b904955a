"""Distance to the k-th nearest clean row on the unit sphere of features."""

from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from skmrr._sklearn import Interval
from skmrr.baselines._feature_detector import FeatureDetector, Features, sample_rows
from skmrr.baselines._neighbours import Bank, check_neighbors
from skmrr.nn.statistic import ClassFreeStatistic
from skmrr.nn.tapped import Pass


class NeighborStatistic(ClassFreeStatistic):
    """Distance of a row's unit features to the k-th nearest of a bank.

    Parameters
    ----------
    features : Features
        Rows → features of one layer.
    bank : Bank
        Unit features of clean rows.
    n_neighbors : int
        Which neighbour k counts.
    n_classes : int
        Number of classes.
    """

    def __init__(self, features: Features, bank: Bank, n_neighbors: int, n_classes: int):
        super().__init__(n_classes)
        self.features = features
        self.taps = features.taps
        self.bank = bank
        self.n_neighbors = n_neighbors

    def level(self, x: Tensor, passed: Pass) -> Float[Tensor, " batch"]:
        """Distance to the k-th neighbour."""
        (of_layer,) = self.features(x, passed)
        unit = functional.normalize(of_layer)
        last = self.bank.search(unit, self.n_neighbors)[:, -1:]
        return self.bank.distances(unit, last)[:, 0]


@dataclass(eq=False, repr=False)
class NearestNeighborsDetector(FeatureDetector):
    """Detector by the distance to the k-th nearest clean row, in features of norm 1.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    layer : str, optional
        Dotted name of the layer whose output is looked at; by default the input of the last linear
        layer.
    pooling : {"flatten", "mean"}, default="mean"
        Whether to keep every activation of a convolution or to average over positions.
    n_neighbors : int, default=50
        Which neighbour k counts.
    max_rows : int, default=10000
        Training rows among which the neighbours are found; more are sampled down.

    See Also
    --------
    LIDDetector : How the distances to the neighbours compare with each other.

    Notes
    -----
    The search is exact. The paper takes k from 50 (CIFAR-10) to 1000 (ImageNet), and a random
    share of the training rows where they are many; it chooses k on validation outliers, which are
    not used here. A row that is in the bank counts as its own nearest neighbour. Gradients pass the
    distance; the choice of the neighbour is piecewise constant.

    References
    ----------
    Y. Sun, Y. Ming, X. Zhu, Y. Li, "Out-of-Distribution Detection with Deep Nearest Neighbors",
    ICML 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from skmrr.baselines import NearestNeighborsDetector
    >>> X, y = load_digits(return_X_y=True)
    >>> detector = NearestNeighborsDetector(random_state=0).fit(X[:1500], y[:1500])
    >>> noisy = X[1500:] + np.random.default_rng(0).normal(0, 8, X[1500:].shape)
    >>> bool((detector.predict(noisy) == -1).mean() > 0.9)
    True
    """

    _: KW_ONLY
    layer: str | None = None
    n_neighbors: int = 50
    max_rows: int = 10_000

    _parameter_constraints: ClassVar[dict] = {
        **FeatureDetector._parameter_constraints,
        "layer": [str, None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "max_rows": [Interval(Integral, 1, None, closed="left")],
    }

    def _fit_statistic(self, rows, columns, train, random_state):
        check_neighbors(self.n_neighbors, len(train), self.max_rows)
        features = self._features(rows)
        kept = sample_rows(train, self.max_rows, random_state)
        bank = Bank(functional.normalize(self._read_features(features, rows, kept)[0]))
        return NeighborStatistic(features, bank, self.n_neighbors, len(self.classes_)).to(
            self._device()
        )

"""Distance to the k-th nearest clean row on the unit sphere of features."""

from numbers import Integral

from jaxtyping import Float
from sklearn.utils._param_validation import Interval
from torch import Tensor
from torch.nn import functional

from skmrr.baselines._features import AskedForFeatures, FeatureDetector, Features, sample_rows
from skmrr.baselines._neighbours import Bank, check_neighbors
from skmrr.nn.detector import ClassFreeStatistic


class NeighborStatistic(AskedForFeatures, ClassFreeStatistic):
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
        self.bank = bank
        self.n_neighbors = n_neighbors

    def level(self, x: Tensor, features: list[Tensor] | None = None) -> Float[Tensor, " batch"]:
        """Distance to the k-th neighbour."""
        (of_layer,) = self.seen(x, features)
        unit = functional.normalize(of_layer)
        last = self.bank.search(unit, self.n_neighbors)[:, -1:]
        return self.bank.distances(unit, last)[:, 0]


class NearestNeighborsDetector(FeatureDetector):
    """Detector by the distance to the k-th nearest clean row, in features of norm 1.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits. Without it the rows of X, flattened, are the features.
    layer : str, optional
        Dotted name of the layer whose output is looked at; by default the input of the last linear
        layer.
    pooling : {"flatten", "mean"}, default="mean"
        Whether to keep every activation of a convolution or to average over positions.
    n_neighbors : int, default=50
        Which neighbour k counts.
    max_rows : int, default=10000
        Training rows among which the neighbours are found; more are sampled down.
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

    _parameter_constraints: dict = {
        **FeatureDetector._parameter_constraints,
        "layer": [str, None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "max_rows": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        classifier=None,
        *,
        layer=None,
        pooling="mean",
        n_neighbors=50,
        max_rows=10_000,
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
        self.n_neighbors = n_neighbors
        self.max_rows = max_rows
        self.clip_values = clip_values
        self.security_parameter = security_parameter
        self.calibration_fraction = calibration_fraction
        self.input_shape = input_shape
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def _fit_statistic(self, rows, columns, train, random_state):
        check_neighbors(self.n_neighbors, len(train), self.max_rows)
        features = self._features()
        kept = sample_rows(train, self.max_rows, random_state)
        bank = Bank(functional.normalize(self._read_features(features, rows, kept)[0]))
        return NeighborStatistic(features, bank, self.n_neighbors, len(self.classes_)).to(
            self._home()
        )

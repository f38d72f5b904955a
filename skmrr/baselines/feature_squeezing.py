"""Feature squeezing: what the classifier makes of a coarser version of the row."""

from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skmrr._sklearn import Interval
from skmrr.base import StatisticDetector
from skmrr.baselines._squeezers import BitDepth, MedianFilter, NonLocalMeans
from skmrr.baselines._training import value_range
from skmrr.nn.statistic import ClassFreeStatistic
from skmrr.nn.tapped import NOTHING, Pass, Tapped

NO_CHANGE = 1e-30  # of probabilities, that has a logarithm
EXACT = 1e-9  # the same of rows without a classifier, as a share of their range
EIGHT_BITS = 255  # levels that the strength of non-local means is counted in


class SqueezingStatistic(ClassFreeStatistic):
    """Logarithm of how far the squeezers move the classifier's probabilities.

    Parameters
    ----------
    classifier : Tapped or None
        Rows → logits, run on squeezed rows. Without it the rows themselves are compared.
    squeezers : list of nn.Module
        Rows → rows.
    floor : float
        Distance that is added to all, so that none has its logarithm.
    n_classes : int
        Number of classes.
    """

    def __init__(
        self, classifier: Tapped | None, squeezers: list[nn.Module], floor: float, n_classes: int
    ):
        super().__init__(n_classes)
        self.classifier = classifier
        self.reads_logits = classifier is not None
        self.squeezers = nn.ModuleList(squeezers)
        self.floor = floor

    def level(self, x: Tensor, passed: Pass) -> Float[Tensor, " batch"]:
        """Return log max_s ‖g(x) − g(s(x))‖₁ over the squeezers s."""
        seen = self._seen(x, passed)
        distances = []
        for squeezer in self.squeezers:
            squeezed = squeezer(x)
            again = NOTHING if self.classifier is None else self.classifier(squeezed)
            distances.append((seen - self._seen(squeezed, again)).abs().sum(1))
        return (torch.stack(distances).amax(0) + self.floor).log()

    def _seen(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch dim"]:
        """Return the classifier's probabilities, or without one the rows themselves."""
        return x.flatten(1).double() if passed.logits is None else passed.logits.double().softmax(1)


@dataclass(eq=False, repr=False)
class FeatureSqueezingDetector(StatisticDetector):
    """Detector by how far squeezing a row moves the classifier's probabilities.

    A row is squeezed, to fewer bits or by smoothing, and shown to the classifier again. Clean rows
    hardly mind; adversarial perturbations rarely survive.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits. Without it the rows are compared, not what a classifier
        makes of them.
    bit_depth : int or None, default=5
        Bits of each value after squeezing; None leaves this squeezer out. In the paper 1 for
        MNIST, 5 for colour images.
    median_size : int or None, default=2
        Side of the window of the median filter; None leaves it out. Flat rows have no
        neighbourhoods and are not smoothed.
    non_local_means : tuple of (int, int, float), optional
        Search window and patch, both odd, and strength in levels of an 8-bit image of a smoothing
        by similar patches; in the paper (13, 3, 2) for CIFAR-10 and (11, 3, 4) for ImageNet.
        None leaves it out, as for MNIST.
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; other values raise an error. The bits divide this
        range, by default that of the training rows.

    Attributes
    ----------
    clip_values_ : tuple of float
        The range that the bits divide.

    See Also
    --------
    skmrr.InputDictionaryDefender : Shows the classifier a reconstruction from a dictionary.

    Notes
    -----
    The statistic is the logarithm of the paper's, the largest L1 distance, which ranks the same and
    keeps a gradient where the classifier is nearly certain. Non-local means are smoothed in the
    channels of X; the authors' program has OpenCV do so in another colour space. Without a
    classifier the statistic is not the paper's.

    Rounding has no gradient: to an attacker it passes gradients as if it were the identity (BPDA,
    Athalye et al. 2018). The other squeezers have gradients of their own.

    References
    ----------
    W. Xu, D. Evans, Y. Qi, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural
    Networks", NDSS 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from skmrr.baselines import FeatureSqueezingDetector
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> means = torch.as_tensor(np.stack([X[y == c].mean(0).ravel() for c in range(10)]))
    >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> with torch.no_grad():  # the nearest mean
    ...     _ = classifier[1].weight.copy_(10 * means)
    ...     _ = classifier[1].bias.copy_(-5 * means.square().sum(1))
    >>> detector = FeatureSqueezingDetector(classifier, clip_values=(0, 1), random_state=0)
    >>> detector.fit(X[:1500], y[:1500]).risk(X[1500:]).shape
    (297,)
    """

    _: KW_ONLY
    bit_depth: int | None = 5
    median_size: int | None = 2
    non_local_means: tuple[int, int, float] | None = None

    _parameter_constraints: ClassVar[dict] = {
        **StatisticDetector._parameter_constraints,
        "bit_depth": [Interval(Integral, 1, 16, closed="both"), None],
        "median_size": [Interval(Integral, 2, None, closed="left"), None],
        "non_local_means": ["array-like", None],
    }

    def _fit_statistic(self, rows, columns, train, random_state):
        low, high = value_range(rows, train, self.clip_values, self.batch_size_)
        self.clip_values_ = low, high
        squeezers = self._squeezers(low, high, is_image=len(rows.shape) == 3)
        floor = EXACT * (high - low) if self.classifier is None else NO_CHANGE
        return SqueezingStatistic(self._tapped(), squeezers, floor, len(self.classes_))

    def _squeezers(self, low: float, high: float, *, is_image: bool) -> list[nn.Module]:
        squeezers: list[nn.Module] = []
        if self.bit_depth is not None:
            # Rows compared with themselves have a gradient only past a rounding that has none.
            through = self.classifier is not None
            squeezers.append(BitDepth(self.bit_depth, low, high, through))
        if self.median_size is not None and is_image:
            squeezers.append(MedianFilter(self.median_size))
        if self.non_local_means is not None and is_image:
            squeezers.append(self._smoothing(high - low))
        if not squeezers:
            raise ValueError(
                "No squeezer is left: give bit_depth=…, or images (channels, height, width) and "
                "median_size=… or non_local_means=…."
            )
        return squeezers

    def _smoothing(self, extent: float) -> NonLocalMeans:
        try:
            search, patch, strength = cast(tuple, self.non_local_means)
            fits = search % 2 == patch % 2 == 1 and min(search, patch) > 0 and strength > 0
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(
                f"non_local_means={self.non_local_means} must be (search, patch, strength): two "
                "odd sides and a positive number, e.g. (11, 3, 4)."
            )
        return NonLocalMeans(search, patch, strength * extent / EIGHT_BITS)

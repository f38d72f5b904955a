"""The noise defender: what is loud where clean images are quiet."""

from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import ClassVar, Literal

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from skmrr._sklearn import Interval, StrOptions
from skmrr.base import StatisticDetector
from skmrr.nn.noise_statistic import NoiseStatistic, quiet_directions
from skmrr.nn.tapped import NOTHING

MAX_ROWS = 1000  # rows that the filters are found on, and as many to choose among them
PATCH_SIZES = (2, 3, 5, 7)
QUANTILES = {"dense": (0.5, 0.25, 0.1), "sparse": (1.0, 0.98, 0.95)}
FAINT = 1 / 64  # size of the dense noise to choose by, in standard deviations of X
FEW = 5  # values of a row that the sparse noise to choose by changes
CLOSE = 0.005  # AUC that a larger quantile may cost
FLOOR = 1e-3  # standard deviations of X: a response that counts as none


@dataclass(eq=False, repr=False)
class NoiseDefender(StatisticDetector):
    """Detector of perturbations by their noise where clean images have next to none.

    The patches of clean images hardly vary along some directions: smooth shades, dark grounds. The
    direction of least variance is a filter. A change of all pixels, however faint, shows where an
    image is quietest otherwise; a change of a few pixels where the filter responds most. It is no
    match for an attacker who knows of it, but those who do not give themselves away by changes
    too small to see.

    It is for inputs that all come from one clean source, such as one scanner's files. What it finds
    is noise, not deception: it flags that of another camera as well, and an attack that was saved
    as a JPEG hardly shows any.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    noise : {"dense", "sparse"}, default="dense"
        What to look for, and what ``"auto"`` below chooses by: faint ± noise of all values, or
        five values at the farther end of the range.
    patch_size : "auto" or int, default="auto"
        Side of the square patches, in pixels. Flat rows are one patch.
    quantile : "auto" or float, default="auto"
        Quantile of the response over an image's positions that counts. With ``"auto"``, size and
        quantile are those that best tell clean training rows from the same rows with noise; of
        quantiles nearly as good the largest, as an attack need not touch every position.
    n_components : int, default=1
        Number of filters.

    Attributes
    ----------
    filters_ : ndarray of shape (n_components, channels, height, width)
        Unit directions of least variance.
    patch_size_, quantile_ : int, float
        In use.

    Notes
    -----
    Not of the published method. The detection of attacks in the last principal components is due
    to Hendrycks and Gimpel ("Early Methods for Detecting Adversarial Images", ICLR workshop 2017),
    there of whole images; here of patches.

    Examples
    --------
    >>> import numpy as np
    >>> from skmrr import NoiseDefender
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> defender = NoiseDefender(clip_values=(0, 1), random_state=0).fit(X[:1500], y[:1500])
    >>> noisy = np.clip(X[1500:] + np.random.default_rng(0).normal(0, 0.2, X[1500:].shape), 0, 1)
    >>> bool((defender.risk(noisy) > defender.risk(X[1500:])).mean() > 0.8)
    True
    """

    _: KW_ONLY
    noise: str = "dense"
    patch_size: int | Literal["auto"] = "auto"
    quantile: float | Literal["auto"] = "auto"
    n_components: int = 1

    _parameter_constraints: ClassVar[dict] = {
        **StatisticDetector._parameter_constraints,
        "noise": [StrOptions({"dense", "sparse"})],
        "patch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "quantile": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="both")],
        "n_components": [Interval(Integral, 1, None, closed="left")],
    }

    def _check_shape(self, shape):
        if len(shape) > 3:
            raise ValueError(
                f"A NoiseDefender looks at images (channels, height, width) or flat rows, not at "
                f"rows of shape {shape}; leave it out."
            )

    def _fit_statistic(self, rows, columns, train, random_state):
        shape = (1,) * (3 - len(rows.shape)) + rows.shape
        images = rows.take(random_state.permutation(train)[: 2 * MAX_ROWS])
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        images = images.reshape(len(images), *shape)
        found, probed = (images[::2], images[1::2]) if len(images) > 1 else (images, images)
        spread = float(images.std(correction=0)) or 1.0
        noisy = self._disturb(probed, spread, random_state)
        candidates = []
        for patch_shape in self._patch_shapes(shape):
            filters = quiet_directions(
                found.split(self.batch_size_), patch_shape, self.n_components
            ).to(images.dtype)
            for quantile in QUANTILES[self.noise] if self.quantile == "auto" else [self.quantile]:
                floor = FLOOR * spread
                statistic = NoiseStatistic(filters, quantile, floor, shape, len(self.classes_))
                candidates.append((self._separation(statistic, probed, noisy), statistic))
        best = max(auc for auc, _ in candidates)
        close = [
            (statistic.quantile, auc, k)
            for k, (auc, statistic) in enumerate(candidates)
            if auc >= best - CLOSE
        ]
        chosen = candidates[max(close)[2]][1]
        self.patch_size_, self.quantile_ = chosen.filters.shape[3], chosen.quantile
        self.filters_ = chosen.filters.numpy()
        return chosen.to(self._device())

    def _disturb(self, x: torch.Tensor, spread: float, random_state) -> torch.Tensor:
        """Rows with the noise to choose by."""
        low, high = (x.min(), x.max()) if self.clip_values is None else self.clip_values
        low, high = float(low), float(high)
        if self.noise == "dense":
            signs = torch.as_tensor(random_state.choice([-1, 1], size=x.shape))
            return (x + FAINT * spread * signs).to(x.dtype).clamp(low, high)
        is_changed = torch.as_tensor(random_state.random_sample(x.shape) < FEW / x[0].numel())
        farther_end = torch.where(x < (low + high) / 2, high, low)
        return torch.where(is_changed, farther_end, x)

    def _patch_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Patch shapes to try on images of a shape; a flat row is one patch."""
        _, height, width = shape
        if height == 1:
            return [(1, width)]
        sizes = PATCH_SIZES if self.patch_size == "auto" else [self.patch_size]
        fitting = [(size, size) for size in sizes if size <= min(height, width)]
        if not fitting:
            raise ValueError(
                f"patch_size={self.patch_size} does not fit into images of {height}×{width} "
                f"pixels; choose at most {min(height, width)}."
            )
        return fitting

    @torch.no_grad()
    def _separation(self, statistic, clean, noisy) -> float:
        """AUC of rows with noise against the same rows without."""
        levels = [
            statistic.level(part, NOTHING)
            for x in (clean, noisy)
            for part in x.split(self.batch_size_)
        ]
        return roc_auc_score(np.repeat([0, 1], len(clean)), torch.cat(levels).numpy())

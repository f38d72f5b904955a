"""Class-conditional densities of latent vectors, all of them one quadratic form.

``log p(φ | c) = b_c − ½ Σ_j w_cj (u_cj·(φ − μ_c))² − ½ r_c ‖φ − μ_c‖²``

with axes u, weights w, residual weight r and offset b. Probabilistic PCA (the paper's HDDA with
spherical covariance inside and outside the class subspace generalises to it), a full Gaussian and
the released program's distance in a PCA subspace differ only in how these are chosen.
"""

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from skmrr.nn.statistic import in_parts

VARIANCE_FLOOR = 1e-6  # of a class, as a share of the mean variance of all features
MOST_PROJECTIONS = 2**24  # onto the axes of all classes that are held at a time


class ClassMoments:
    """Running count, mean and covariance of the features of each class, in float64.

    Parameters
    ----------
    n_classes, dim : int
        Number of classes and of features.
    of_each : bool, default=True
        Whether each class has a covariance, or all of them one alone.
    """

    def __init__(self, n_classes: int, dim: int, *, of_each: bool = True):
        self.counts = torch.zeros(n_classes, dtype=torch.float64)
        self.sums = torch.zeros(n_classes, dim, dtype=torch.float64)
        self.products = torch.zeros(n_classes if of_each else 1, dim, dim, dtype=torch.float64)

    def update(self, features: Float[Tensor, "batch dim"], classes: Int[Tensor, " batch"]) -> None:
        """Add a batch of features."""
        features = features.to("cpu", torch.float64)
        for c in classes.unique().tolist():
            rows = features[classes == c]
            self.counts[c] += len(rows)
            self.sums[c] += rows.sum(0)
            self.products[c if len(self.products) > 1 else 0] += rows.T @ rows

    @property
    def means(self) -> Float[Tensor, "classes dim"]:
        """Mean of each class."""
        return self.sums / self.counts[:, None]

    @property
    def covariances(self) -> Float[Tensor, "classes dim dim"]:
        """Maximum-likelihood covariance of each class."""
        means = self.means
        return self.products / self.counts[:, None, None] - means[:, :, None] * means[:, None, :]

    @property
    def pooled_covariance(self) -> Float[Tensor, "dim dim"]:
        """Maximum-likelihood covariance of all rows, whatever their class."""
        n = self.counts.sum()
        mean = self.sums.sum(0) / n
        return self.products.sum(0) / n - torch.outer(mean, mean)


class QuadraticDensity(nn.Module):
    """Log-density of a latent vector under each class.

    Build one with `ppca`, `gaussian` or `distance`.
    """

    means: Tensor
    axes: Tensor
    weights: Tensor
    residual_weight: Tensor
    offset: Tensor
    projected_means: Tensor

    def __init__(self, means, axes, weights, residual_weight, offset):
        super().__init__()
        self.register_buffer("means", means)  # classes dim
        self.register_buffer("axes", axes)  # classes dim k, or 1 dim k if shared
        self.register_buffer("weights", weights)  # classes k
        self.register_buffer("residual_weight", residual_weight)  # classes
        self.register_buffer("offset", offset)  # classes
        is_shared = len(axes) == 1  # which an einsum would copy for each class
        projected = means @ axes[0] if is_shared else torch.einsum("cd,cdk->ck", means, axes)
        self.register_buffer("projected_means", projected)

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """Return log p(φ | c), up to a constant shared by all classes for `distance`."""
        features = features.to(self.means.dtype)
        n = max(1, MOST_PROJECTIONS // max(1, self.projected_means.numel()))
        return torch.cat([self._of_some(part) for (part,) in in_parts(n, features)])

    def _of_some(self, features: Tensor) -> Tensor:
        if len(self.axes) == 1:
            projected = (features @ self.axes[0])[:, None, :]  # batch 1 k
        else:
            projected = torch.einsum("bd,cdk->bck", features, self.axes)
        inside = ((projected - self.projected_means).square() * self.weights).sum(-1)
        squared_distance = (
            features.square().sum(1, keepdim=True)
            - 2 * features @ self.means.T
            + self.means.square().sum(1)
        )
        return self.offset - 0.5 * (inside + self.residual_weight * squared_distance)

    @classmethod
    def join(cls, parts: "Sequence[QuadraticDensity]") -> "QuadraticDensity":
        """Join densities of some classes each, in their order."""
        k = max(part.axes.shape[2] for part in parts)

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        def padded(name: str) -> Tensor:
            short = [(getattr(part, name), k - part.axes.shape[2]) for part in parts]
            return torch.cat([functional.pad(value, (0, missing)) for value, missing in short])

        return cls(
            joined("means"),
            padded("axes"),
            padded("weights"),
            joined("residual_weight"),
            joined("offset"),
        )


def ppca(moments: ClassMoments, n_components: int | float) -> QuadraticDensity:
    """Probabilistic PCA per class (Tipping & Bishop 1999).

    Parameters
    ----------
    moments : ClassMoments
        Moments of the fitted rows.
    n_components : int or float
        Dimension of each class subspace, or the share of variance that it keeps.
    """
    values, axes = _eigen(moments.covariances)  # classes dim; classes dim dim
    dim = values.shape[1]
    floor = _floor(moments)
    ranks = _ranks(values, n_components, limit=dim - 1)
    inside = torch.arange(dim) < ranks[:, None]  # classes dim
    noise = (values * ~inside).sum(1) / (dim - ranks).clamp_min(1)
    noise = noise.clamp_min(floor)[:, None]
    variances = torch.where(inside, values.clamp_min(noise), noise)
    k = max(int(ranks.max()), 1)
    offset = -0.5 * (variances.log().sum(1) + dim * math.log(2 * math.pi))
    weights = (1 / variances - 1 / noise)[:, :k]
    kept = axes[:, :, :k].clone()  # a view would keep all of them
    return QuadraticDensity(moments.means, kept, weights, 1 / noise[:, 0], offset)


def gaussian(moments: ClassMoments) -> QuadraticDensity:
    """Full Gaussian per class, covariance shrunk by OAS (Chen et al. 2010)."""
    covariances = moments.covariances
    dim = covariances.shape[1]
    trace = covariances.diagonal(dim1=1, dim2=2).sum(1)
    mu = (trace / dim)[:, None, None]
    # Oracle approximating shrinkage in the form of its equation 23.
    alpha = covariances.square().mean((1, 2))[:, None, None]
    numerator = alpha + mu**2
    denominator = (moments.counts[:, None, None] + 1) * (alpha - mu**2 / dim)
    shrinkage = torch.where(denominator > 0, numerator / denominator, torch.ones(())).clamp_max(1)
    eye = torch.eye(dim, dtype=covariances.dtype)
    values, axes = _eigen((1 - shrinkage) * covariances + shrinkage * mu * eye)
    values = values.clamp_min(_floor(moments))
    offset = -0.5 * (values.log().sum(1) + dim * math.log(2 * math.pi))
    # Beyond the rank of n rows about their mean all variances are those of the shrinkage.
    k = max(1, min(int(moments.counts.max()), dim) - 1)
    rest = 1 / values[:, -1:]
    kept = axes[:, :, :k].clone()  # a view would keep all of them
    return QuadraticDensity(moments.means, kept, 1 / values[:, :k] - rest, rest[:, 0], offset)


def distance(moments: ClassMoments, n_components: int | float) -> QuadraticDensity:
    """Squared distance to the class mean in one PCA subspace (the paper's released program)."""
    values, axes = _eigen(moments.pooled_covariance[None])
    k = int(_ranks(values, n_components, limit=values.shape[1])[0])
    zeros = torch.zeros_like(moments.counts)
    weights = torch.full((len(zeros), max(k, 1)), 2.0, dtype=values.dtype)
    return QuadraticDensity(moments.means, axes[:, :, : max(k, 1)], weights, zeros, zeros)


def _eigen(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (largest first, not negative) and eigenvectors of symmetric matrices."""
    values, vectors = torch.linalg.eigh(covariances)
    return values.flip(-1).clamp_min(0), vectors.flip(-1)


def _floor(moments: ClassMoments) -> Tensor:
    """Smallest variance that a density may have, so that a constant feature is no spike."""
    spread = moments.pooled_covariance.diagonal().mean()
    return (VARIANCE_FLOOR * spread).clamp_min(torch.finfo(torch.float64).eps)


def _ranks(values: Tensor, n_components: int | float, limit: int) -> Tensor:
    """Return the number of leading axes per class."""
    if isinstance(n_components, Integral):
        return torch.full((len(values),), min(int(n_components), limit))
    shares = values.cumsum(1) / values.sum(1, keepdim=True).clamp_min(1e-300)
    return ((shares < n_components).sum(1) + 1).clamp_max(limit)

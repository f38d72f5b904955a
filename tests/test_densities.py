"""Densities agree with scikit-learn's own estimators."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.covariance import OAS
from sklearn.decomposition import PCA

from skmrr import LatentDefender
from skmrr.nn.densities import ClassMoments, QuadraticDensity, distance, gaussian, ppca


@pytest.fixture
def classes(rng):
    """Features of three classes that differ in mean, scale and orientation."""
    counts, dim = [300, 500, 80], 12
    return [
        rng.standard_normal((n, dim)) @ rng.standard_normal((dim, dim)) * 0.3 + 2 * c
        for c, n in enumerate(counts)
    ]


def moments_of(classes, batch_size=64):
    features = torch.as_tensor(np.concatenate(classes))
    labels = torch.as_tensor(np.repeat(np.arange(len(classes)), [len(c) for c in classes]))
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    moments = ClassMoments(len(classes), features.shape[1])
    for batch in order.split(batch_size):
        moments.update(features[batch], labels[batch])
    return moments


def test_streamed_moments_are_those_of_all_rows(classes):
    moments = moments_of(classes)
    for c, rows in enumerate(classes):
        np.testing.assert_allclose(moments.means[c], rows.mean(0))
        np.testing.assert_allclose(moments.covariances[c], np.cov(rows.T, bias=True), atol=1e-9)
    np.testing.assert_allclose(
        moments.pooled_covariance, np.cov(np.concatenate(classes).T, bias=True), atol=1e-9
    )


@pytest.mark.parametrize("n_components", [1, 5, 11, 0.9])
def test_ppca_is_scikit_learns(classes, rng, n_components):
    fresh = rng.standard_normal((50, 12)) * 2
    log_density = ppca(moments_of(classes), n_components)(torch.as_tensor(fresh)).numpy()
    for c, rows in enumerate(classes):
        pca = PCA(n_components, svd_solver="full").fit(rows)
        # scikit-learn divides by n − 1; the likelihood is maximal for n.
        shrink = (len(rows) - 1) / len(rows)
        pca.explained_variance_ *= shrink
        pca.noise_variance_ *= shrink
        np.testing.assert_allclose(log_density[:, c], pca.score_samples(fresh), rtol=1e-6)


@pytest.mark.parametrize(("n_rows", "n_axes"), [(500, 11), (5, 4)])
def test_gaussian_is_scikit_learns_oas(classes, rng, n_rows, n_axes):
    classes = [rows[:n_rows] for rows in classes]
    fresh = rng.standard_normal((50, 12)) * 2
    density = gaussian(moments_of(classes))
    assert density.axes.shape == (3, 12, n_axes)  # a thousand classes of few rows each fit
    log_density = density(torch.as_tensor(fresh)).numpy()
    for c, rows in enumerate(classes):
        covariance = OAS().fit(rows).covariance_
        expected = multivariate_normal(rows.mean(0), covariance).logpdf(fresh)
        np.testing.assert_allclose(log_density[:, c], expected, rtol=1e-6)


def test_distance_is_euclidean_in_the_pca_subspace(classes, rng):
    fresh = rng.standard_normal((50, 12))
    pca = PCA(0.9, svd_solver="full").fit(np.concatenate(classes))
    log_density = distance(moments_of(classes), 0.9)(torch.as_tensor(fresh)).numpy()
    for c, rows in enumerate(classes):
        gap = pca.transform(fresh) - pca.transform(rows).mean(0)
        np.testing.assert_allclose(log_density[:, c], -np.square(gap).sum(1), rtol=1e-9)


@pytest.mark.parametrize("fit", [gaussian, lambda m: ppca(m, 0.99), lambda m: distance(m, 0.99)])
def test_constant_features_and_single_rows_give_finite_densities(fit):
    rows = [np.c_[np.linspace(0, 1, 20), np.zeros((20, 3))], np.array([[0.5, 0, 0, 0]])]
    log_density = fit(moments_of(rows))(torch.rand(10, 4, dtype=torch.float64))
    assert torch.isfinite(log_density).all()


def test_densities_of_some_classes_at_a_time_are_those_of_all(classes, monkeypatch):
    X = torch.as_tensor(np.concatenate(classes))
    parts = [ppca(moments_of([part]), 0.9) for part in classes]
    joined = QuadraticDensity.join(parts)
    alone = torch.cat([part(X) for part in parts], dim=1)
    torch.testing.assert_close(joined(X), alone)
    y = np.repeat([0, 1, 2], [len(c) for c in classes])
    params = {"realign": False, "statistic": "likelihood", "random_state": 0}
    for density in ("ppca", "gaussian", "distance"):
        whole = LatentDefender(density=density, **params).fit(X.numpy(), y)
        with monkeypatch.context() as patch:
            patch.setattr("skmrr.defenders.latent.COVARIANCE_BYTES", 1)
            apart = LatentDefender(density=density, **params).fit(X.numpy(), y)
        # but for the least variance of all, which is that of each part
        np.testing.assert_allclose(whole.risk(X), apart.risk(X), atol=0.02)


@pytest.mark.parametrize("fit", [gaussian, lambda m: distance(m, 0.9)])
def test_many_classes_are_scored_some_rows_at_a_time(classes, rng, monkeypatch, fit):
    density = fit(moments_of(classes))
    fresh = torch.as_tensor(rng.standard_normal((50, 12)))
    whole = density(fresh)
    monkeypatch.setattr("skmrr.nn.densities.MOST_PROJECTIONS", 100)
    seen = []
    monkeypatch.setattr(
        density, "_of_some", lambda x, f=density._of_some: seen.append(len(x)) or f(x)
    )
    torch.testing.assert_close(density(fresh), whole)
    assert max(seen) * density.projected_means.numel() <= 100

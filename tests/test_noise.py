import numpy as np
import pytest
import torch

from skmrr import NoiseDefender
from skmrr.nn.noise_statistic import NoiseStatistic, quiet_directions
from skmrr.nn.tapped import NOTHING

params = {"clip_values": (0, 1), "security_parameter": 0.05, "random_state": 0}


@pytest.fixture(scope="module")
def smooth():
    """(X, y): 1200 colour images of slow waves, two classes by direction."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 1200)
    ramp = np.linspace(0, 2 * np.pi, 12)
    phase = rng.uniform(0, 2 * np.pi, (1200, 3, 1))
    waves = 0.5 + 0.4 * np.sin(ramp + phase)  # n channels 12
    waves = np.repeat(waves[:, :, None], 12, axis=2)
    images = np.where(y[:, None, None, None] == 1, waves, waves.swapaxes(2, 3))
    return (images + rng.normal(0, 0.002, images.shape)).clip(0, 1).astype(np.float32), y


def test_hears_noise_far_too_faint_to_see(smooth, rng):
    X, y = smooth
    defender = NoiseDefender(**params).fit(X[:800], y[:800])
    noisy = (X[800:] + rng.choice([-0.01, 0.01], X[800:].shape)).clip(0, 1)
    assert np.mean(defender.predict(X[800:]) == -1) < 0.1
    assert np.mean(defender.predict(noisy) == -1) > 0.99


def test_filters_are_the_quietest_directions(smooth):
    X = torch.as_tensor(smooth[0][:200])
    filters = quiet_directions(X.split(50), (3, 3), 2)
    assert filters.shape == (2, 3, 3, 3)
    flat = filters.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(2, dtype=flat.dtype))
    variance = torch.nn.functional.conv2d(X.double(), filters).var((0, 2, 3))
    patches = torch.nn.functional.unfold(X.double(), 3).transpose(1, 2).flatten(0, 1)
    least = torch.linalg.eigvalsh(torch.cov(patches.T))[:2]
    torch.testing.assert_close(variance, least, rtol=0.01, atol=0)


def test_filters_do_not_depend_on_how_many_patches_are_held_at_once(smooth, monkeypatch):
    X = torch.as_tensor(smooth[0][:50])
    at_once = quiet_directions([X], (3, 3), 2)
    monkeypatch.setattr("skmrr.nn.noise_statistic.VALUES_AT_ONCE", 10_000)
    torch.testing.assert_close(quiet_directions([X], (3, 3), 2).abs(), at_once.abs())


def test_filters_of_large_images_are_found_on_a_grid(rng, monkeypatch):
    """Of images that do not change from left to right but for some noise."""
    X = torch.as_tensor(rng.random((3, 1, 200, 1)) + rng.normal(0, 0.01, (3, 1, 200, 200)))
    seen = []
    unfold = torch.nn.functional.unfold

    def noted(*args, **kwargs):
        seen.append(unfold(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(torch.nn.functional, "unfold", noted)
    (filters,) = quiet_directions([X], (1, 2), 1)
    torch.testing.assert_close(filters.flatten().abs(), torch.full((2,), 0.5**0.5).double(),
                               atol=0.01, rtol=0)  # fmt: skip
    assert filters.flatten().prod() < 0  # a difference
    assert 64**2 <= sum(part.shape[2] for part in seen) / len(seen) < 200 * 199 / 4


def test_statistic_is_the_quantile_over_positions(rng):
    x = torch.as_tensor(rng.random((5, 1, 6, 6)))
    filters = torch.zeros(1, 1, 1, 1, dtype=torch.float64) + 1
    level = NoiseStatistic(filters, 0.5, 0.0, (1, 6, 6), 2).level(x, NOTHING)
    expected = np.quantile(x.flatten(1).numpy(), 0.5, axis=1, method="lower")
    torch.testing.assert_close(level.exp(), torch.as_tensor(expected))


def test_size_and_quantile_are_free_to_choose(smooth):
    X, y = smooth
    defender = NoiseDefender(patch_size=3, quantile=0.3, n_components=2, **params).fit(X, y)
    assert defender.filters_.shape == (2, 3, 3, 3)
    assert (defender.patch_size_, defender.quantile_) == (3, 0.3)
    chosen = NoiseDefender(**params).fit(X, y)
    assert chosen.patch_size_ in (2, 3, 5, 7)


def test_gradients_reach_the_input(smooth):
    X, y = smooth
    module = NoiseDefender(**params).fit(X, y).module_
    x = torch.as_tensor(X[:20] + 0.01).requires_grad_(True)
    (gradient,) = torch.autograd.grad(module(x, torch.as_tensor(y[:20])).sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_the_class_only_chooses_the_calibration(smooth):
    X, y = smooth
    defender = NoiseDefender(**params).fit(X, y)
    np.testing.assert_array_equal(
        defender.score_samples(X, labels=y), defender.score_samples(X, labels=1 - y)
    )


def test_dark_grounds_are_no_trouble():
    """Where most clean responses are exactly zero the rest still ranks."""
    X = np.zeros((400, 1, 8, 8), np.float32)
    X[:, :, 3:5, 3:5] = np.random.default_rng(0).random((400, 1, 2, 2))
    defender = NoiseDefender(**params).fit(X)
    assert np.isfinite(defender.score_samples(X)).all()
    assert (defender.predict(X) == 1).mean() > 0.9


def test_too_large_a_patch_is_refused(smooth):
    with pytest.raises(ValueError, match="choose at most 12"):
        NoiseDefender(patch_size=13, **params).fit(*smooth)


def test_hears_a_few_loud_values(smooth, rng):
    X, y = smooth
    changed = X[800:].copy()
    for image in changed:
        image.flat[rng.choice(image.size, 3)] = 1.0
    caught = {}
    for noise in ("dense", "sparse"):
        defender = NoiseDefender(noise=noise, **params).fit(X[:800], y[:800])
        assert np.mean(defender.predict(X[800:]) == -1) < 0.1
        caught[noise] = np.mean(defender.predict(changed) == -1)
    assert caught["sparse"] > 0.99 > caught["dense"]

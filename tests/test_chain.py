"""Rows moved from one defender to the next, and how much noise a classifier bears."""

import numpy as np
import pytest
import torch
from torch import nn

from skmrr import LatentDefender, replicate
from skmrr.nn.chain import move_apart
from skmrr.nn.replica import CosineMap, class_means
from skmrr.nn.tolerance import noise_tolerance


@pytest.fixture
def planar():
    """Map of the plane onto the unit circle, and rows of two classes."""
    encoder = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    nn.init.eye_(encoder.weight)
    x = torch.tensor([[2.0, 0.1], [3.0, -0.2], [0.1, 1.0], [-0.1, 2.0]], dtype=torch.float64)
    return CosineMap(encoder, 2, 2), x, torch.tensor([0, 0, 1, 1])


def options(**changes):
    return {"step": None, "clip_values": None, "batch_size": 3, **changes}


def test_rows_move_along_the_gradient_of_the_distance(planar):
    latent_map, x, classes = planar
    moved = move_apart(x, classes, latent_map, **options())
    centres = class_means(latent_map(x), classes, 2).detach()
    leaf = x.clone().requires_grad_(True)
    nearest = (latent_map(leaf)[:, None] - centres).square().sum(2).amin(1).sum()
    (gradient,) = torch.autograd.grad(nearest, leaf)
    torch.testing.assert_close(moved, x + gradient)
    further = (latent_map(moved)[:, None] - centres).square().sum(2).amin(1).sum()
    assert further > nearest


def test_a_step_has_its_size_and_range(planar):
    latent_map, x, classes = planar
    moved = move_apart(x, classes, latent_map, **options(step=0.1))
    assert set((moved - x).abs().round(decimals=9).flatten().tolist()) == {0.1}
    clipped = move_apart(x, classes, latent_map, **options(step=0.1, clip_values=(-0.2, 2.0)))
    assert clipped.min() >= -0.2
    assert clipped.max() <= 2


def test_moving_leaves_rows_and_map_alone(planar):
    latent_map, x, classes = planar
    before = x.clone()
    move_apart(x, classes, latent_map.train(), **options())
    assert torch.equal(x, before)
    assert latent_map.training
    assert all(p.grad is None for p in latent_map.parameters())


def test_tolerance_is_the_noise_that_changes_a_share_of_decisions(net, digits):
    x = torch.as_tensor(digits[0][:500])
    epsilon = noise_tolerance(net, x, (0, 1), generator=torch.Generator().manual_seed(0))
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def changed(size):
        with torch.no_grad():
            noisy = net((x + size * signs).clamp(0, 1)).argmax(1)
            return float((noisy != net(x).argmax(1)).double().mean())

    assert changed(epsilon) <= 0.05
    assert changed(1.3 * epsilon) >= 0.05
    assert 0.05 < epsilon < 0.5


def test_tolerance_has_the_units_of_the_rows(net, digits):
    x = torch.as_tensor(digits[0][:300])
    scaled = nn.Sequential(_Divide(), net)
    ours, theirs = (
        noise_tolerance(f, rows, generator=torch.Generator().manual_seed(0))
        for f, rows in ((net, x), (scaled, 255 * x))
    )
    assert theirs == pytest.approx(255 * ours, rel=0.02)


class _Divide(nn.Module):
    def forward(self, x):
        return x / 255


def test_automatic_radius(net, digits):
    X, y = digits
    defender = LatentDefender(
        replicate(net),
        classifier=net,
        exploration_radius="auto",
        max_epochs=1,
        clip_values=(0, 1),
        random_state=0,
    ).fit(X[:600], y[:600])
    assert 0.05 < defender.exploration_radius_ < 0.5
    with pytest.raises(ValueError, match="give classifier"):
        LatentDefender(exploration_radius="auto").fit(X[:600].reshape(600, 64), y[:600])


def test_training_under_autocast_learns(digits, make_net):
    """Autocast's cache of casted weights must not outlive an optimiser step."""
    X, y = digits
    defender = LatentDefender(
        replicate(make_net()), max_epochs=15, learning_rate=5e-3, gamma=0.0, random_state=0
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        defender.fit(X[:1000], y[:1000])
    with torch.no_grad():
        logits = defender.statistic_.latent_map.features_and_logits(torch.as_tensor(X[1000:]))[1]
    assert np.mean(logits.argmax(1).numpy() == y[1000:]) > 0.8

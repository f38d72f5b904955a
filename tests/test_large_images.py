"""Large images: batches that fit the memory, replicas that see less."""

import numpy as np
import pytest
import torch
from torch import nn

from skmrr import FeatureExtractor, LatentDefender, MarginDetector, MRREnsemble, replicate
from skmrr.nn.memory import MOST_ROWS, PASS_BYTES, rows_at_once
from skmrr.nn.replica import Shrunk

from .table import SHARED


def pooled(channels=8):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(16 * channels, 5))


def rigid():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 128 * 128, 5))


@pytest.fixture(scope="module")
def photographs():
    """Sixty images of 3×128×128 whose brightness is their class, one of five."""
    generator = np.random.default_rng(0)
    y = np.arange(60) % 5
    noise = 0.2 * generator.random((60, 3, 128, 128))
    return (noise + 0.15 * y[:, None, None, None]).astype(np.float32), y


def test_rows_of_a_pass_fit_the_memory():
    x = torch.rand(2, 3, 128, 128)
    wide = pooled(512)  # a step is given and gives 512·128² values of four bytes a row
    largest = 2 * 512 * 128**2 * 4
    assert rows_at_once(wide, x) == PASS_BYTES // (2 * largest)
    assert rows_at_once(pooled(), x[:, :, :8, :8]) == MOST_ROWS
    assert not wide[0]._forward_hooks


def test_batches_are_that_large_and_no_score_depends_on_it(photographs, monkeypatch):
    X, y = photographs
    seen = []

    class Watched(nn.Sequential):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    # of half the channels in double precision: in single, the last bit depends on the batch
    victim = Watched(*pooled(4)).double()
    params = {"clip_values": (0, 1), "security_parameter": 0.1, "random_state": 0}
    detector = MarginDetector(victim, **params).fit(X, y)
    assert detector.batch_size_ == MOST_ROWS
    monkeypatch.setattr("skmrr.nn.memory.PASS_BYTES", 2**24)
    small = MarginDetector(victim, **params).fit(X, y)
    assert small.batch_size_ == 8
    seen.clear()
    np.testing.assert_allclose(small.score_samples(X), detector.score_samples(X), atol=1e-5)
    assert seen == [8] * 7 + [4, 60]
    assert FeatureExtractor(victim, "1").fit(X).batch_size_ == 8
    small.set_params(batch_size=32)
    assert small.batch_size_ == 32


def test_a_replica_sees_large_images_at_three_quarters_of_their_size(photographs):
    X = torch.as_tensor(photographs[0])
    for network, images, scale in (
        (pooled(), X, 0.75),
        (pooled(), X[:, :, :64, :64], 1.0),
        (rigid(), X, 1.0),  # takes no other size
    ):
        replica = replicate(network, scale="auto").eval()
        replica.prepare(images[:2])
        assert replica.scale == scale
        assert replica(images[:2]).shape[0] == 2
    half = replicate(pooled(), "2", scale=0.5).eval()
    bare = replicate(pooled(), "2").eval()
    torch.testing.assert_close(half(X[:4]), bare(Shrunk(0.5)(X[:4])))
    mean = X[:4].unflatten(2, (64, 2)).unflatten(4, (64, 2)).mean((3, 5))
    torch.testing.assert_close(Shrunk(0.5)(X[:4]), mean)
    for bad in (0.0, 1.5):
        with pytest.raises(ValueError, match="scale="):
            replicate(pooled(), scale=bad)


def test_the_default_ensemble_does_so_by_itself_and_trains_nothing(photographs):
    X, y = photographs
    victim = pooled()
    params = {**SHARED, "security_parameter": 0.2, "calibration_fraction": 0.4}
    ensemble = MRREnsemble(victim, **params)
    with pytest.warns(UserWarning, match="for what y says"):
        ensemble.fit(X, y)
    member = ensemble.named_defenders_.latent_0
    assert member.history_ == {"loss": [], "held_out_loss": []}
    assert member.exploration_radius_ == member.transfer_radius_ == 0  # not even measured
    assert member.latent_map_.scale == 0.75
    assert member.latent_map_.layer == "1.4:input"
    assert np.isfinite(ensemble.score_samples(X)).all()
    assert ensemble.evidence_.members.stack is None  # a single replica without normalisation
    x = torch.as_tensor(X[:4])
    logits = member.latent_map_.features_and_logits(x)[1]
    torch.testing.assert_close(logits, victim(Shrunk(0.75)(x)))  # the classifier's own


@pytest.mark.parametrize(
    ("params", "n_epochs"),
    [
        ({}, 0),
        ({"realign": True, "max_epochs": 2}, 2),
        ({"module": replicate(pooled(), width=0.5, scale=0.5), "max_epochs": 2}, 2),
    ],
)
def test_a_copy_at_another_size_is_trained_on_demand(photographs, params, n_epochs):
    X, y = photographs
    params = {"module": replicate(pooled(), scale=0.5)} | params
    defender = LatentDefender(**params, security_parameter=0.2, random_state=0).fit(X, y)
    assert len(defender.history_["loss"]) == n_epochs


@pytest.mark.parametrize(
    "params", [{"max_epochs": 2}, {"max_time": 1.0}, {"gamma": 0.1}, {"exploration_radius": 0.1}]
)
def test_parameters_of_a_training_that_does_not_take_place_are_refused(photographs, params):
    X, y = photographs
    shared = {"security_parameter": 0.2, "random_state": 0}
    defender = LatentDefender(replicate(pooled(), scale="auto"), **shared, **params)
    name = next(iter(params))
    with pytest.raises(ValueError, match=rf"{name}=.* has no effect: .*realign=True"):
        defender.fit(X, y)
    small = X[:, :, :8, :8]
    if name != "max_time":
        defender.fit(small, y)

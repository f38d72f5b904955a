"""The training of a copy that agrees with its classifier in balls around images."""

import numpy as np
import pytest
import torch
from torch import nn

from skmrr.bench import hardening
from skmrr.bench.hardening import harden


@pytest.fixture(scope="module")
def victim():
    """A classifier of images by the brighter of two halves."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(4)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((256, 1, 8, 8), dtype=np.float32)


def weights(network):
    state = network.state_dict().items()
    return torch.cat([part.flatten() for name, part in state if "num_batches" not in name])


def test_it_learns_the_classifiers_answers_and_leaves_the_classifier(victim, images):
    before, generator = weights(victim), torch.get_rng_state()
    copied = harden(victim, images, radius=0.05, epochs=15, seed=1)
    assert torch.equal(weights(victim), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not copied.training
    x = torch.as_tensor(images)
    with torch.no_grad():
        other = nn.Sequential(*victim[:-1], nn.Linear(16, 3))
        distance = (copied(x).softmax(1) - victim(x).softmax(1)).abs().mean()
        assert distance < 0.5 * (other(x).softmax(1) - victim(x).softmax(1)).abs().mean()
    assert not torch.equal(weights(copied), before)


def test_the_points_are_the_worse_ones_and_no_farther_than_three_radii(victim, images):
    training = hardening._Training(victim, 0.05, 0.05, n_steps=10)
    x = torch.as_tensor(images[:64]) * 0.5 + 0.25
    answers = victim(x).softmax(1).detach()
    assert torch.equal(training._worst(x, answers), x)  # no ball yet
    training.schedule.last_epoch = 10
    before = weights(training.network)
    torch.manual_seed(0)
    points = training._worst(x, answers)
    assert torch.equal(weights(training.network), before)  # running statistics too
    change = (points - x).abs().amax((1, 2, 3))
    assert 0.05 < change.max() <= 0.15
    assert change.min() < 0.05  # each ball has a radius of its own

    def loss(network, points):
        return nn.functional.cross_entropy(network(points), answers)

    torch.manual_seed(0)
    radius = 0.05 * torch.rand(len(x), 1, 1, 1)
    noisy = x + 2 * radius * (2 * torch.rand_like(x) - 1)
    assert loss(training.network, points) > loss(training.network, noisy)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(victim, images, tmp_path):
    params = {"radius": 0.05, "seed": 3}
    whole = harden(victim, images, epochs=3, **params)
    again = harden(victim, images, epochs=3, **params)
    assert torch.equal(weights(whole), weights(again))
    path = tmp_path / "state.pt"

    class Interrupted(Exception):
        pass

    def save(self, path, original=hardening._Training.save):
        original(self, path)
        if self.schedule.last_epoch >= 4:  # of two epochs
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardening._Training, "save", save)
        with pytest.raises(Interrupted):
            harden(victim, images, epochs=3, checkpoint=path, **params)
    resumed = harden(victim, images, epochs=3, checkpoint=path, **params)
    assert torch.equal(weights(resumed), weights(whole))
    assert [part.name for part in tmp_path.iterdir()] == ["state.pt"]

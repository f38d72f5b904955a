"""Scoring beside the raw forward passes that it needs: ``make bench``.

Both sides alternate within one run; the ratio of their medians is what counts on a noisy machine.
"""

import time

import numpy as np
import pytest
import torch
from torch import nn

from skmrr import LatentDefender, replicate

N_IMAGES = 10_000
LIMITS = {"margin": 1.15, "contrast": 1.2}  # a density of 200 dimensions takes some time itself


@pytest.fixture(scope="module")
def victim():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    ).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("statistic", list(LIMITS))
def test_scoring_costs_little_more_than_its_forward_passes(benchmark, victim, statistic):
    """Peer: one pass of victim and one of replica over the same batches."""
    X = np.random.default_rng(0).random((N_IMAGES, 1, 28, 28), dtype=np.float32)
    y = np.arange(1000) % 10
    defender = LatentDefender(
        replicate(victim),
        classifier=victim,
        statistic=statistic,
        realign=False,
        batch_size=512,  # so small a network hardly outweighs what a batch costs
        random_state=0,
    ).fit(X[:1000], y)
    (member,) = defender.module_.evidence.members
    replica = member.latent_map

    def raw_passes():
        with torch.no_grad():
            for x in torch.as_tensor(X).split(defender.batch_size_):
                victim(x)
                replica(x)

    def seconds(run):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    pairs = [(seconds(lambda: defender.score_samples(X)), seconds(raw_passes)) for _ in range(15)]
    ratio = np.median([scoring / raw for scoring, raw in pairs])
    benchmark.extra_info["ratio to raw passes"] = round(float(ratio), 3)
    benchmark.pedantic(defender.score_samples, args=(X,), rounds=3)
    print(f"\n{statistic}: scoring / raw passes = {ratio:.3f}")
    assert ratio <= LIMITS[statistic]

"""Narrow defenders side by side beside one by one, and beside ``torch.func.vmap``: ``make bench``.

All sides alternate within one run; the ratio of their medians is what counts on a noisy machine.
"""

import copy
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from skmrr import LatentDefender, MRREnsemble, default_defenders

N_IMAGES = 2048


@pytest.fixture(scope="module")
def victim():
    torch.set_num_threads(1)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(800, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)),
    ).to(memory_format=torch.channels_last)


def medians(runs, repeats=9):
    """Median seconds of each function, all of them in turn."""
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


@pytest.mark.parametrize(("n", "width"), [(2, 0.5), (4, 0.5), (16, 0.25), (16, 0.125)])
def test_side_by_side_is_faster_than_one_by_one(benchmark, victim, n, width):
    """Peers: a loop over the same replicas, and vmap over their stacked weights."""
    X = np.random.default_rng(0).random((N_IMAGES, 1, 28, 28), dtype=np.float32)
    y = np.arange(1000) % 10
    defenders = default_defenders(
        victim,
        latent=LatentDefender(realign=False),
        n_latent=n,
        width=width,
        margin=False,
        noise=False,
    )
    ensemble = MRREnsemble(victim, defenders=defenders, random_state=0).fit(X[:1000], y)
    members = ensemble.module_.evidence.members
    replicas = [member.latent_map for member in members]
    networks = [copy.deepcopy(replica.network) for replica in replicas]
    weights = stack_module_state(networks)
    bare = copy.deepcopy(networks[0]).to("meta")
    at_once = vmap(lambda w, b, x: functional_call(bare, (w, b), (x,)), in_dims=(0, 0, None))
    batches = torch.as_tensor(X).split(64)

    def over_batches(run):
        def loop():
            with torch.no_grad():
                for x in batches:
                    run(x)

        return loop

    stacked = ensemble.set_params(batch_size=64)
    seconds = medians(
        {
            "victim": over_batches(victim),
            "side by side": over_batches(members.stack),
            "one by one": over_batches(lambda x: [replica(x) for replica in replicas]),
            "vmap": over_batches(lambda x: at_once(*weights, x)),
            "scoring": lambda: stacked.score_samples(X),
        }
    )
    ratios = {name: round(t / seconds["victim"], 2) for name, t in seconds.items()}
    benchmark.extra_info.update(ratios)
    benchmark.pedantic(stacked.score_samples, args=(X,), rounds=3)
    print(f"\nN = {n}, width {width}; times over the victim's pass: {ratios}")
    assert seconds["side by side"] < seconds["one by one"]
    assert seconds["side by side"] < seconds["vmap"]

"""Carlini-L2 beside ART's, at equal settings: ``make bench``.

Both sides alternate within one run; the ratio of their medians is what counts on a noisy machine.
"""

import time

import numpy as np
import pytest
import torch
from art.attacks.evasion import CarliniL2Method
from art.estimators.classification import PyTorchClassifier
from torch import nn

from skmrr.attacks import carlini_l2

SETTINGS = {"initial_const": 1.0, "learning_rate": 0.05}
SEARCH_STEPS, MAX_ITER = 6, 50


N_ROWS = 50


@pytest.mark.parametrize("batch_size", [1, N_ROWS])  # ART's default, and all rows at once
def test_carlini_beside_art(benchmark, net, digits, batch_size):
    """Peer: ART 1.20's CarliniL2Method with the same steps, weights and learning rate."""
    x = torch.as_tensor(digits[0][1000 : 1000 + N_ROWS])
    labels = net(x).argmax(1)
    wrapped = PyTorchClassifier(net, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))
    peer = CarliniL2Method(
        wrapped, binary_search_steps=SEARCH_STEPS, max_iter=MAX_ITER, batch_size=batch_size,
        verbose=False, **SETTINGS,
    )  # fmt: skip

    def ours():
        return carlini_l2(
            net, x, labels, search_steps=SEARCH_STEPS, max_iter=MAX_ITER, **SETTINGS
        ).adversarial

    def theirs():
        return torch.as_tensor(peer.generate(x.numpy(), labels.numpy()))

    def seconds(run):
        start = time.perf_counter()
        found = run()
        return time.perf_counter() - start, found

    pairs = [(seconds(ours), seconds(theirs)) for _ in range(1 if batch_size == 1 else 3)]
    for side, name in enumerate(("ours", "ART")):
        found = pairs[-1][side][1]
        fooled = net(found).argmax(1) != labels
        length = (found - x).flatten(1).norm(dim=1)[fooled].median()
        benchmark.extra_info[f"{name}: success"] = float(fooled.double().mean())
        benchmark.extra_info[f"{name}: median L2"] = float(length)
        benchmark.extra_info[f"{name}: seconds"] = float(np.median([p[side][0] for p in pairs]))
    ratio = benchmark.extra_info["ART: seconds"] / benchmark.extra_info["ours: seconds"]
    benchmark.extra_info["ART / ours"] = ratio
    print({key: round(value, 3) for key, value in benchmark.extra_info.items()})
    benchmark.pedantic(ours, rounds=1)

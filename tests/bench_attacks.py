"""Carlini-L2 and an attack on decisions beside ART's, at equal settings: ``make bench``.

Both sides alternate within one run; the ratio of their medians is what counts on a noisy machine.
"""

import time

import numpy as np
import pytest
import torch
from art.attacks.evasion import CarliniL2Method, HopSkipJump
from art.estimators.classification import PyTorchClassifier
from torch import nn

from skmrr.attacks import RayS, carlini_l2

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


class Counting(nn.Module):
    """A network that counts the rows it is asked about."""

    def __init__(self, network):
        super().__init__()
        self.network, self.n_rows = network, 0

    def forward(self, x):
        self.n_rows += len(x)
        return self.network(x.float())  # HopSkipJump turns rows into doubles


def test_decisions_beside_art(benchmark, net, digits):
    """Peer: ART 1.20's HopSkipJump in ℓ∞, given as many queries a row, on the classifier alone."""
    eps, n_rows = 0.15, 20
    x = torch.as_tensor(digits[0][1000 : 1000 + n_rows])
    labels = net(x).argmax(1)
    counting = Counting(net)
    wrapped = PyTorchClassifier(counting, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))
    peer = HopSkipJump(
        wrapped, batch_size=256, norm=np.inf, max_iter=5, max_eval=200, init_eval=50, verbose=False
    )
    np.random.seed(0)  # noqa: NPY002 (what ART draws from)
    start = time.process_time()
    theirs = torch.as_tensor(peer.generate(x.numpy(), labels.numpy())).float()
    seconds = time.process_time() - start
    queries = counting.n_rows // n_rows

    def ours():
        return RayS(queries=queries)(net, x, labels, eps=eps)

    start = time.process_time()
    result = ours()
    own_seconds = time.process_time() - start
    is_near = (theirs - x).flatten(1).abs().amax(1) <= eps
    fooled = (net(theirs).argmax(1) != labels) & is_near
    benchmark.extra_info.update(
        {
            "ART: success": float(fooled.double().mean()),
            "ART: queries": queries,
            "ART: seconds": seconds,
            "ours: success": float(result.success.double().mean()),
            "ours: queries": float(result.queries.double().mean()),
            "ours: seconds": own_seconds,
        }
    )
    print({key: round(value, 3) for key, value in benchmark.extra_info.items()})
    benchmark.pedantic(ours, rounds=1)

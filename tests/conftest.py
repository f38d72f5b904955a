"""Networks and data that tests share."""

import numpy as np
import pytest
import torch
from torch import nn

from skmrr.datasets import load_digits_images


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny batches run many times faster on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    """(X, y): 1797 images of 1×8×8 in [0, 1], shuffled, as they come sorted by writer."""
    X, y = load_digits_images()
    order = np.random.default_rng(0).permutation(len(X))
    return X[order], y[order]


@pytest.fixture(scope="session")
def make_net():
    """``make_net(seed)``: a small convolutional classifier of digits, untrained."""

    def make(seed: int = 0) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )

    return make


@pytest.fixture(scope="session")
def net(digits, make_net):
    """Classifier of digits trained on the first 1000 images. Treat it as read only."""
    X, y = (torch.as_tensor(part[:1000]) for part in digits)
    network = make_net()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        for batch in torch.randperm(len(X), generator=generator).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(X[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture
def rng():
    """Seeded numpy generator."""
    return np.random.default_rng(0)
